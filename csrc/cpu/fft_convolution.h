// Convolution with 'same' zero padding by Fourier transforms of tiles (overlap-save).
//
// The map is cut into tiles of height x width points that overlap by k - 1, each is transformed, at every frequency the
// channels are mixed by one complex matrix product with the spectrum of the weights, and of the result transformed back the
// points are kept to which no other side of the tile has wrapped around. A tile that covers the whole axis needs only the
// size plus k / 2 points: the zeros that pad it behind serve in front as well, since it wraps around.
//
// All maps are blocked (blocked.h). Spectra lie as [channel block][frequency][tile][part][lane].
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "blocked.h"
#include "spectral_product.h"
#include "spectrum.h"
#include "tap_transform.h"
#include "team.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// How one axis of the map is cut into tiles.
struct TileAxis {
    int64_t size, length, radius;  // of the map, of a tile, k / 2

    bool whole() const { return length >= size + radius; }
    int64_t step() const { return whole() ? size : length - 2 * radius; }
    int64_t tiles() const { return (size + step() - 1) / step(); }
    int64_t margin() const { return whole() ? 0 : radius; }                  // first valid point of a tile
    int64_t origin(int64_t tile) const { return tile * step() - margin(); }  // where a tile begins on the map
    int64_t valid(int64_t tile) const {                                      // how many valid points it has
        const int64_t left = size - tile * step();
        return left < step() ? left : step();
    }
};

struct Tiling {
    TileAxis y, x;

    int64_t per_image() const { return y.tiles() * x.tiles(); }
    int64_t frequencies() const { return y.length * x.length / 2 + 2; }
};

template <class A>
inline int64_t tile_scratch(const Tiling& tiling) {
    return TileTransform<A>::scratch(tiling.y.length, tiling.x.length);
}

// The spectra of some tiles. What is read together lies together: the tiles of one channel block, frequency after frequency.
// The distance between frequencies is an odd number of tiles: a power of two would map all of them to the same few
// cache sets.
template <class A, int parts>
struct TileSpectra {
    A* data;
    int64_t blocks, stride, block_stride;
    static constexpr int64_t tile_stride = parts * lanes<A>;

    TileSpectra(A* data, int64_t channels, int64_t tiles, int64_t frequencies)
        : data(data),
          blocks((channels + lanes<A> - 1) / lanes<A>),
          stride((tiles | 1) * tile_stride),
          block_stride(frequencies * stride) {}
    int64_t size() const { return blocks * block_stride; }
    A* at(int64_t block, int64_t frequency) const { return data + block * block_stride + frequency * stride; }
};
template <class A>
using InputSpectra = TileSpectra<A, input_parts>;
template <class A>
using OutputSpectra = TileSpectra<A, 2>;

// The weights of a convolution: element (output, input, tap) at output * output_stride + input * input_stride + tap.
template <class A>
struct Taps {
    const A* data;
    int64_t outputs, inputs, output_stride, input_stride, kernel;
    bool mirrored;  // false: out[p] = sum_d w[d] in[p + d]; true: w[d] in[p - d], the gradient of the former's input

    const A* at(int64_t output, int64_t input) const { return data + output * output_stride + input * input_stride; }
};

// How many inputs' weights are transformed and multiplied at a time: the spectra of their rows, and of them one column of
// all, stay in the second-level cache.
template <class A>
inline int64_t inputs_at_once(const Tiling& tiling, int64_t kernel) {
    constexpr int64_t most = 32, cache = 640 << 10;
    const int64_t bytes =
        (TapTransform<A>::rows_size(tiling.x.length, kernel) +
         tiling.y.length * 2 * lanes<A>)*static_cast<int64_t>(sizeof(A));
    return std::min(std::max<int64_t>(cache / bytes / lanes<A>, 1) * lanes<A>, most);
}
// Between the frequencies of their spectra, in elements: no power of two.
template <class A>
inline int64_t frequency_stride(int64_t inputs) {
    return (inputs | 1) * 2 * lanes<A>;
}
// Whether their whole spectra are transformed before they are multiplied, not one column after the other: where these stay
// in the cache, the spectra of the rows stay in the first-level one.
template <class A>
inline bool whole_spectra(const Tiling& tiling, int64_t inputs) {
    constexpr int64_t cache = 320 << 10;
    return tiling.frequencies() * frequency_stride<A>(inputs) * static_cast<int64_t>(sizeof(A)) <= cache;
}

// Between a block of outputs' taps, `count` scalars in a row per output, and vectors of all outputs for each.
template <class A>
inline void gather_taps(const A* from, int64_t output_stride, int64_t outputs, int64_t count, A* to) {
    constexpr int L = lanes<A>;
    constexpr int64_t few = L / 4;
    for (int64_t tap = 0; tap < count; tap += L) {
        const int64_t left = count - tap;
        if (outputs == L && left <= few) {
            for (int64_t j = tap; j < count; ++j)
                for (int i = 0; i < L; ++i) to[j * L + i] = from[i * output_stride + j];
            return;
        }
        const auto put = [&](int i, vec<A> value) { store(to + (tap + i) * L, value, Full<A>{}); };
        if (left >= L) {
            const auto row = [&](int i) { return load(from + i * output_stride + tap, Full<A>{}); };
            transpose_square<A>(outputs, L, row, put);
        } else {
            const auto row = [&](int i) { return load(from + i * output_stride + tap, static_cast<int>(left)); };
            transpose_square<A>(outputs, left, row, put);
        }
    }
}
template <class A>
inline void scatter_taps(const A* from, int64_t output_stride, int64_t outputs, int64_t count, A factor, A* to) {
    constexpr int L = lanes<A>;
    for (int64_t tap = 0; tap < count; tap += L) {
        const int64_t left = count - tap;
        const auto row = [&](int i) { return load(from + (tap + i) * L, Full<A>{}) * factor; };
        if (left >= L)
            transpose_square<A>(L, outputs, row, [&](int i, vec<A> value) {
                store(to + i * output_stride + tap, value, Full<A>{});
            });
        else
            transpose_square<A>(left, outputs, row, [&](int i, vec<A> value) {
                store(to + i * output_stride + tap, value, static_cast<int>(left));
            });
    }
}

// Calls take(i, vectors) for the taps of inputs first ... first + count and one block of outputs, i counted from `first`: a
// vector of all outputs for each tap. `gathered` is scratch for kernel^2 vectors of as many inputs as a vector has lanes.
// `next` is where the first weights of the next call are.
template <class A, class Take>
inline void for_each_taps(
    const Taps<A>& taps, int64_t block, int64_t first, int64_t count, const A* next, A* gathered, const Take& take
) {
    constexpr int L = lanes<A>;
    const int64_t outputs = std::min<int64_t>(taps.outputs - block * L, L), size = taps.kernel * taps.kernel;
    const A* const from = taps.at(block * L, first);
    // Inputs that follow each other in memory are gathered together, in full squares.
    const int64_t together = taps.input_stride == size ? L : 1;
    for (int64_t i = 0; i < count; i += together) {
        const int64_t inputs = std::min(together, count - i);
        gather_taps(from + i * taps.input_stride, taps.output_stride, outputs, inputs * size, gathered);
        for (int64_t j = 0; j < inputs; ++j) {
            // As many streams as lanes are more than the processor's own prefetching follows.
            for (int64_t k = 0; k < outputs; ++k)
                for (int64_t tap = 0; tap < size; tap += 64 / static_cast<int64_t>(sizeof(A)))
                    __builtin_prefetch(next + k * taps.output_stride + (i + j) * taps.input_stride + tap, 0, 2);
            take(i + j, gathered + j * size * L);
        }
    }
}

struct TileRangeOfBatch {
    int64_t first, count;
};

// The spectra of tiles of a map; without `halo` only the points a tile does not share with others.
template <class A>
inline void transform_tiles(
    const Team& team, const BlockedMap<A>& map, const Tiling& tiling, TileRangeOfBatch range, bool halo,
    const InputSpectra<A>& to, A* scratch
) {
    constexpr int L = lanes<A>;
    const TileTransform<A> transform(tiling.y.length, tiling.x.length);
    const int64_t across = tiling.x.tiles(), per_image = tiling.per_image();
    // The points of an axis that a tile takes from the map, as [begin, end) within the tile.
    const auto bounds = [&](const TileAxis& axis, int64_t tile, int64_t& begin, int64_t& end) {
        const int64_t origin = axis.origin(tile);
        begin = halo ? (origin < 0 ? -origin : 0) : axis.margin();
        end = halo ? axis.length : axis.margin() + axis.step();
        if (end > axis.size - origin) end = axis.size - origin;
    };
    team.for_each(range.count * to.blocks, [&](int64_t unit) {
        const int64_t tile = unit / to.blocks, block = unit % to.blocks, at = range.first + tile;
        const int64_t image = at / per_image, ty = at % per_image / across, tx = at % across;
        int64_t top, bottom, left, right;
        bounds(tiling.y, ty, top, bottom);
        bounds(tiling.x, tx, left, right);
        const A* from = map.block(image, block) + (tiling.y.origin(ty) * map.width + tiling.x.origin(tx)) * L;
        transform.template forward<input_parts>(
            [&](int64_t y) { return y < top || y >= bottom ? nullptr : from + y * map.width * L; }, left, right,
            to.at(block, 0) + tile * to.tile_stride, to.stride, scratch
        );
    });
}

// epilogue(image, block, first position, count, vectors, step between vectors) takes runs of the result.
template <class A, class Epilogue>
inline void transform_back(
    const Team& team, const OutputSpectra<A>& from, const Tiling& tiling, TileRangeOfBatch range, const Epilogue& epilogue,
    A* scratch
) {
    const TileTransform<A> transform(tiling.y.length, tiling.x.length);
    const int64_t across = tiling.x.tiles(), per_image = tiling.per_image(), width = tiling.x.size;
    team.for_each(range.count * from.blocks, [&](int64_t unit) {
        const int64_t tile = unit / from.blocks, block = unit % from.blocks, at = range.first + tile;
        const int64_t image = at / per_image, ty = at % per_image / across, tx = at % across;
        const int64_t y0 = ty * tiling.y.step(), x0 = tx * tiling.x.step();
        transform.inverse(
            from.at(block, 0) + tile * from.tile_stride, from.stride, tiling.y.margin(), tiling.y.valid(ty),
            [&](int64_t y, const A* row, int64_t step) {
                epilogue(image, block, (y0 + y) * width + x0, tiling.x.valid(tx), row + tiling.x.margin() * step, step);
            },
            scratch
        );
    });
}

// out[f] = in[f] weights[f] for every tile and frequency. The weights' spectra are many times larger than the weights: they
// are transformed a few inputs and frequencies at a time and used while they are in the first-level cache, which is as fast
// as reading spectra that were computed before back from memory.
template <class A, bool transforms = true>
inline void multiply_spectra(
    const Team& team, const Tiling& tiling, int64_t tiles, const InputSpectra<A>& in, const Taps<A>& taps,
    const OutputSpectra<A>& out, A* scratch
) {
    constexpr int L = lanes<A>;
    const TapTransform<A> transform(tiling.y.length, tiling.x.length, taps.kernel);
    const int64_t at_once = inputs_at_once<A>(tiling, taps.kernel), stride = frequency_stride<A>(at_once);
    const int64_t rows_size = TapTransform<A>::rows_size(tiling.x.length, taps.kernel);
    const bool whole = whole_spectra<A>(tiling, at_once);
    A* const gathered = scratch;
    A* const rows = gathered + taps.kernel * taps.kernel * L * L;
    A* const spectra = rows + (whole ? 1 : at_once) * rows_size;
    // Where there are fewer blocks of outputs than threads, some share one and divide its columns.
    const int64_t shares = (team.size + out.blocks - 1) / out.blocks;
    // The tiles' spectra of these inputs stay in the cache for all blocks of outputs.
    for (int64_t first = 0; first < taps.inputs; first += at_once) {
        const int64_t count = std::min(at_once, taps.inputs - first);
        const auto [begin, end] = team.share(out.blocks * shares);
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t block = unit / shares, share = unit % shares, columns = transform.columns();
            const int first_column = static_cast<int>(columns * share / shares);
            const int last_column = static_cast<int>(columns * (share + 1) / shares);
            const auto spectrum_of = [&](int column) {
                return spectra + (whole ? transform.first_frequency(column) : 0) * stride;
            };
            if constexpr (transforms) {
                const bool last = unit + 1 == end;
                const A* const next = taps.at((last ? begin : unit + 1) / shares * L, last ? first + at_once : first);
                for_each_taps(taps, block, first, count, next, gathered, [&](int64_t i, const A* vectors) {
                    A* const to = whole ? rows : rows + i * rows_size;
                    transform.forward_rows(vectors, to);
                    for (int k = first_column; whole && k < last_column; ++k)
                        transform.forward_column(to, 1, k, spectrum_of(k) + i * 2 * L, stride);
                });
            }
            for (int k = first_column; k < last_column; ++k) {
                if (transforms && !whole) transform.forward_column(rows, count, k, spectra, stride);
                for (int j = 0; j < transform.frequencies(k); ++j) {
                    const int64_t f = transform.first_frequency(k) + j;
                    const TilesByChannels<A> tile{in.at(first / L, f), in.block_stride};
                    const auto multiply =
                        taps.mirrored ? product<A, false, TilesByChannels<A>> : product<A, true, TilesByChannels<A>>;
                    multiply(
                        tiles, count, tile, spectrum_of(k) + j * stride, 2 * L, out.at(block, f), out.tile_stride, first > 0
                    );
                }
            }
        }
    }
}

// ---- a whole convolution ----

// What one is and how it is carried out.
template <class A>
struct Convolution {
    int64_t batch, inputs, outputs, kernel;
    Tiling tiling;
    int64_t group;  // tiles that are transformed, multiplied and transformed back at a time
    bool apart;     // every thread has images of its own; otherwise all work on one group

    static constexpr int L = lanes<A>;
    int64_t tiles() const { return batch * tiling.per_image(); }
    InputSpectra<A> input_spectra(A* data) const { return {data, inputs, group, tiling.frequencies()}; }
    OutputSpectra<A> output_spectra(A* data) const { return {data, outputs, group, tiling.frequencies()}; }
    // Of the map that a gradient of the weights needs besides, and which has the channels of the output.
    InputSpectra<A> other_input_spectra(A* data) const { return {data, outputs, group, tiling.frequencies()}; }
    // The memory for what is in use at the same time, in elements: inputs and outputs, or inputs and the other inputs, in
    // whose place the outputs come later.
    int64_t input_size() const { return Pieces<A>::size(input_spectra(nullptr).size()); }
    int64_t spectra_size() const { return input_size() + Pieces<A>::size(output_spectra(nullptr).size()); }
    int64_t gradient_spectra_size() const { return input_size() + Pieces<A>::size(other_input_spectra(nullptr).size()); }
    // Of each thread.
    int64_t scratch_size() const {
        const int64_t inputs = inputs_at_once<A>(tiling, kernel);
        const int64_t taps =
            kernel * kernel * L * L + inputs * TapTransform<A>::rows_size(tiling.x.length, kernel) +
            (whole_spectra<A>(tiling, inputs) ? tiling.frequencies() : tiling.y.length) * frequency_stride<A>(inputs);
        const int64_t tile = tile_scratch<A>(tiling);
        return taps > tile ? taps : tile;
    }
};

// The tiles of some images, group by group; `spectra` is memory of spectra_size elements.
template <class A, class Epilogue>
inline void convolve(
    const Team& team, const Convolution<A>& c, const BlockedMap<A>& in, TileRangeOfBatch range, const Taps<A>& taps,
    A* spectra, A* scratch, const Epilogue& epilogue
) {
    const InputSpectra<A> in_spectra = c.input_spectra(spectra);
    const OutputSpectra<A> out_spectra = c.output_spectra(spectra + c.input_size());
    for (int64_t done = 0; done < range.count; done += c.group) {
        const int64_t left = range.count - done;
        const TileRangeOfBatch group{range.first + done, left < c.group ? left : c.group};
        transform_tiles(team, in, c.tiling, group, true, in_spectra, scratch);
        team.barrier();
        multiply_spectra(team, c.tiling, group.count, in_spectra, taps, out_spectra, scratch);
        team.barrier();
        transform_back(team, out_spectra, c.tiling, group, epilogue, scratch);
        team.barrier();
    }
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
