// Convolution with stride 1 by Fourier transforms of tiles (overlap-save).
//
// The map is cut into tiles of height x width points that overlap by k - 1, each is transformed, at every frequency the
// channels are mixed by one complex matrix product with the spectrum of the weights, and of the result transformed back the
// points are kept to which no other side of the tile has wrapped around. A tile that covers the whole axis needs only the
// size plus k / 2 points: the zeros that pad it behind serve in front as well, since it wraps around.
//
// With groups of channels the tiles are the same: a block of outputs is multiplied by the inputs of its group alone.
//
// All maps are blocked (blocked.h). Spectra lie as [channel block][frequency][tile][part][lane].
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/blocked.h"
#include "cpu/border.h"
#include "cpu/pointwise.h"
#include "cpu/taps.h"
#include "cpu/team.h"
#include "cpu/transforms/spectral_product.h"
#include "cpu/transforms/spectrum.h"
#include "cpu/transforms/tap_transform.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// How one axis of the result is cut into tiles.
struct TileAxis {
    int64_t size, length, radius;  // of the result, of a tile, k / 2
    Border border = Border::zeros;

    // True if one tile covers the axis.
    bool whole() const {
        return length >= size + (border == Border::zeros ? radius : border == Border::replicate ? 2 * radius : 0);
    }
    int64_t step() const { return whole() ? size : length - 2 * radius; }
    int64_t tiles() const { return (size + step() - 1) / step(); }
    // The first valid point of a tile. Replicated values do not serve in front and behind at the same time.
    int64_t margin() const { return whole() && border != Border::replicate ? 0 : radius; }
    int64_t origin(int64_t tile) const {  // where a tile begins on the map
        return tile * step() - margin() - (border == Border::full ? radius : 0);
    }
    int64_t valid(int64_t tile) const {  // how many valid points it has
        const int64_t left = size - tile * step();
        return left < step() ? left : step();
    }
};

struct Tiling {
    TileAxis y, x;

    int64_t per_image() const { return y.tiles() * x.tiles(); }
    int64_t frequencies() const { return y.length * x.length / 2; }
    // True if frequency f stands for two real ones (spectrum.h).
    bool holds_two(int64_t f) const {
        const int64_t first = frequencies() - y.length;
        return f == first || f == first + y.length / 2;
    }
};

// Scratch memory for one tile, in elements: of its transform, then two rows that are put together where a tile with
// replicated values reaches beyond the map.
template <class A>
inline int64_t transform_scratch(const Tiling& tiling) {
    return TileTransform<A>::scratch(tiling.y.length, tiling.x.length);
}
template <class A>
inline int64_t tile_scratch(const Tiling& tiling) {
    return transform_scratch<A>(tiling) + (tiling.x.border == Border::zeros ? 0 : 2 * tiling.x.length * lanes<A>);
}

// The spectra of some tiles. Tiles of one channel block and frequency, which are read together, lie together.
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
    // The spectra from this block on.
    TileSpectra from(int64_t block) const {
        TileSpectra rest = *this;
        rest.data += block * block_stride;
        rest.blocks -= block;
        return rest;
    }
};
template <class A>
using InputSpectra = TileSpectra<A, input_parts>;
template <class A>
using OutputSpectra = TileSpectra<A, 2>;

// How many inputs are multiplied at a time. Per turn, the L2 cache holds the spectra of their weights' rows, one column of
// the weights' spectra and all spectra of the tiles.
template <class A>
inline int64_t inputs_at_once(const Tiling& tiling, int64_t kernel) {
    constexpr int64_t most = 32, cache = 2304 << 10;
    const int64_t weights = TapTransform<A>::rows_size(tiling.x.length, kernel) + tiling.y.length * 2 * lanes<A>;
    const int64_t tiles = product_rows * tiling.frequencies() * input_parts;
    const int64_t inputs = cache / static_cast<int64_t>(sizeof(A)) / (weights + tiles);
    return std::min(std::max<int64_t>(inputs / lanes<A>, 1) * lanes<A>, most);
}
// The distance between the frequencies of these weights' spectra, in elements: no power of two, as above.
template <class A>
inline int64_t frequency_stride(int64_t inputs) {
    return (inputs | 1) * 2 * lanes<A>;
}
// True if the whole spectra of the weights fit in the cache. They are then transformed before they are multiplied, while the
// spectra of an input's rows are in the L1 cache; otherwise one column of all inputs is transformed and multiplied at a
// time.
template <class A>
inline bool whole_spectra(const Tiling& tiling, int64_t inputs) {
    constexpr int64_t cache = 320 << 10;
    return tiling.frequencies() * frequency_stride<A>(inputs) * static_cast<int64_t>(sizeof(A)) <= cache;
}

struct TileRangeOfBatch {
    int64_t first, count;
};

// Transforms tiles of a map, from channel block `first_block` on as many blocks as `to` has. Without `halo` a tile has only
// the points that it does not share with other tiles; the others are zero. These are then tiles of the input of a forward
// convolution, whose values are replicated where the border of the convolution back is full.
template <class A>
inline void transform_tiles(
    const Team& team, const BlockedMap<A>& map, const Tiling& tiling, TileRangeOfBatch range, bool halo,
    const InputSpectra<A>& to, A* scratch, int64_t first_block = 0
) {
    constexpr int L = lanes<A>;
    const TileTransform<A> transform(tiling.y.length, tiling.x.length);
    const int64_t across = tiling.x.tiles(), per_image = tiling.per_image();
    const bool replicates = tiling.x.border == (halo ? Border::replicate : Border::full);
    A* const rows = scratch + transform_scratch<A>(tiling);
    // The points of an axis that a tile takes from the map of `size` points: [begin, end) within the tile.
    const auto bounds = [&](const TileAxis& axis, int64_t tile, int64_t size, int64_t& begin, int64_t& end) {
        const int64_t origin = axis.origin(tile);
        begin = halo ? 0 : axis.margin();
        end = !halo ? axis.margin() + axis.valid(tile) : replicates ? axis.valid(tile) + 2 * axis.radius : axis.length;
        if (replicates) return;
        begin = std::max(begin, -origin);
        end = std::min(end, size - origin);
    };
    team.for_each(range.count * to.blocks, [&](int64_t unit) {
        const int64_t tile = unit / to.blocks, block = unit % to.blocks, at = range.first + tile;
        const int64_t image = at / per_image, ty = at % per_image / across, tx = at % across;
        int64_t top, bottom, left, right;
        bounds(tiling.y, ty, map.height, top, bottom);
        bounds(tiling.x, tx, map.width, left, right);
        const int64_t y0 = tiling.y.origin(ty), x0 = tiling.x.origin(tx);
        const A* const from = map.block(image, first_block + block);
        const bool inside = x0 + left >= 0 && x0 + right <= map.width;
        const auto row = [&](int64_t y) -> const A* {
            if (y < top || y >= bottom) return nullptr;
            if (!replicates) return from + ((y0 + y) * map.width + x0) * L;
            const A* const nearest = from + std::clamp<int64_t>(y0 + y, 0, map.height - 1) * map.width * L;
            if (inside) return nearest + x0 * L;
            A* const copy = rows + y % 2 * tiling.x.length * L;
            for (int64_t x = left; x < right; ++x)
                store(copy + x * L, load(nearest + std::clamp<int64_t>(x0 + x, 0, map.width - 1) * L, Full<A>{}), Full<A>{});
            return copy;
        };
        transform.template forward<input_parts>(
            row, left, right, to.at(block, 0) + tile * to.tile_stride, to.stride, scratch
        );
    });
}

// Transforms the spectra of results back. epilogue(image, block, first position, count, vectors, step between vectors) takes
// runs of the result, finish(range) all positions of a block after the last tile of an image. The first block of `from` is
// `first_block` of the result. A thread takes all tiles of some blocks or, with fewer blocks than threads, some tiles of
// one.
template <class A, class Epilogue, class Finish>
inline void transform_back(
    const Team& team, const OutputSpectra<A>& from, const Tiling& tiling, TileRangeOfBatch range, const Epilogue& epilogue,
    const Finish& finish, A* scratch, int64_t first_block = 0
) {
    const TileTransform<A> transform(tiling.y.length, tiling.x.length);
    const int64_t across = tiling.x.tiles(), per_image = tiling.per_image(), width = tiling.x.size;
    team.for_each(range.count * from.blocks, [&](int64_t unit) {
        const int64_t block = unit / range.count, tile = unit % range.count, at = range.first + tile;
        const int64_t image = at / per_image, ty = at % per_image / across, tx = at % across;
        const int64_t y0 = ty * tiling.y.step(), x0 = tx * tiling.x.step();
        transform.inverse(
            from.at(block, 0) + tile * from.tile_stride, from.stride, tiling.y.margin(), tiling.y.valid(ty),
            [&](int64_t y, const A* row, int64_t step) {
                epilogue(
                    image, first_block + block, (y0 + y) * width + x0, tiling.x.valid(tx), row + tiling.x.margin() * step,
                    step
                );
            },
            scratch
        );
        if (at % per_image == per_image - 1) finish({image, first_block + block, 0, tiling.y.size * width});
    });
}

// out[f] = in[f] weights[f] for every tile and frequency. The weights' spectra are many times larger than the weights, so
// the weights of a few inputs are transformed at a time and multiplied while their spectra are in the cache.
template <class A>
class Multiplication {
    static constexpr int L = lanes<A>;

   public:
    Multiplication(const Tiling& tiling, const Taps<A>& taps, A* scratch)
        : tiling_(tiling),
          taps_(taps),
          transform_(tiling.y.length, tiling.x.length, taps.kernel),
          at_once_(inputs_at_once<A>(tiling, taps.kernel)),
          stride_(frequency_stride<A>(at_once_)),
          rows_size_(TapTransform<A>::rows_size(tiling.x.length, taps.kernel)),
          whole_(whole_spectra<A>(tiling, at_once_)),
          gathered_(scratch),
          rows_(gathered_ + taps.kernel * taps.kernel * L * L),
          spectra_(rows_ + (whole_ ? 1 : at_once_) * rows_size_) {}

    const Taps<A>& taps() const { return taps_; }
    int64_t columns() const { return transform_.columns(); }
    int64_t at_once() const { return at_once_; }

    // Computes what inputs first ... first + count, at most at_once of one group, contribute to columns
    // [first_column, last_column) of a block of that group's outputs. It is written to block `to` of `out`, or added if
    // `first` is not the first input of the group. `in` begins with the block of channels of input `first`. `next` is where
    // the weights of the next call begin: they are prefetched.
    void run(
        int64_t tiles, const InputSpectra<A>& in, int64_t first, int64_t count, int64_t block, int first_column,
        int last_column, const A* next, const OutputSpectra<A>& out, int64_t to
    ) const {
        const int64_t lane = first % L;
        const bool accumulate = first > taps_.first_input(block);
        // The weights of the next call are prefetched: they lie in as many streams as there are outputs or inputs, more than
        // the processor's prefetcher follows. Products of many tiles leave time for that; with few tiles it is done beside
        // the transforms. The lines are prefetched into the L1 cache, although they do not all fit there: a busy Zen 5 drops
        // many prefetches into the L2 cache.
        const TapLines<A> next_lines(taps_, next, count);
        const bool beside_transforms = tiles < product_rows;
        const auto spectrum_of = [&](int column) {
            return spectra_ + (whole_ ? transform_.first_frequency(column) : 0) * stride_;
        };
        for_each_taps(
            taps_, block, first, count, beside_transforms ? &next_lines : nullptr, gathered_,
            [&](int64_t i, const A* vectors) {
                A* const rows = whole_ ? rows_ : rows_ + i * rows_size_;
                transform_.forward_rows(vectors, rows);
                for (int k = first_column; whole_ && k < last_column; ++k)
                    transform_.forward_column(rows, 1, k, spectrum_of(k) + i * 2 * L, stride_);
            }
        );
        int64_t step = 0;
        for (int k = first_column; k < last_column; ++k) {
            if (!whole_) transform_.forward_column(rows_, count, k, spectra_, stride_);
            for (int j = 0; j < transform_.frequencies(k); ++j, ++step) {
                const int64_t f = transform_.first_frequency(k) + j;
                using Tiles = TilesByChannels<A>;
                const Tiles tile{in.at(0, f) + lane, in.block_stride, in.stride, next_lines.step(step)};
                const auto multiply = tiling_.holds_two(f) ? product<RealSums<A>, Tiles>
                                      : taps_.mirrored     ? product<Sum<A, false>, Tiles>
                                                           : product<Sum<A, true>, Tiles>;
                multiply(
                    tiles, count, tile, spectrum_of(k) + j * stride_, 2 * L, out.at(to, f), out.tile_stride, accumulate
                );
            }
        }
    }

   private:
    Tiling tiling_;
    Taps<A> taps_;
    TapTransform<A> transform_;
    int64_t at_once_, stride_;
    int64_t rows_size_;
    bool whole_;
    A *gathered_, *rows_, *spectra_;
};

// Computes what inputs begin ... end contribute to all outputs.
template <class A>
inline void multiply_spectra(
    const Team& team, const Multiplication<A>& product, int64_t tiles, const InputSpectra<A>& in, int64_t begin, int64_t end,
    const OutputSpectra<A>& out
) {
    const Taps<A>& taps = product.taps();
    const int64_t at_once = product.at_once(), size = taps.group_inputs(), columns = product.columns();
    // The blocks of outputs of the groups that these inputs belong to.
    const int64_t first_block = begin / size * taps.group_blocks();
    const int64_t blocks = ((end - 1) / size + 1) * taps.group_blocks() - first_block;
    // Where there are fewer blocks of outputs than threads, some share one and divide its columns.
    const int64_t shares = (team.size + blocks - 1) / blocks;
    const auto [first_unit, end_unit] = team.share(blocks * shares);
    const auto first_input = [&](int64_t block) { return std::max(begin, taps.first_input(block)); };
    // Some inputs of every group at a time: the tiles' spectra of these stay in the cache for all blocks of outputs.
    for (int64_t done = 0; done < std::min(size, end - begin); done += at_once)
        for (int64_t unit = first_unit; unit < end_unit; ++unit) {
            const int64_t block = first_block + unit / shares, share = unit % shares, first = first_input(block) + done;
            const int64_t count = std::min(at_once, std::min(end, taps.first_input(block) + size) - first);
            if (count <= 0) continue;
            const bool last = unit + 1 == end_unit;
            const int64_t next = first_block + (last ? first_unit : unit + 1) / shares;
            product.run(
                tiles, in.from((first - begin) / lanes<A>), first, count, block, static_cast<int>(columns * share / shares),
                static_cast<int>(columns * (share + 1) / shares),
                taps.at(next, first_input(next) + done + (last ? at_once : 0)), out, block
            );
        }
}
// Computes one block of outputs after the other from all inputs; the thread that has a block transforms it back at once.
// `block_spectra` is the thread's memory for the spectra of one block.
template <class A, class Epilogue, class Finish>
inline void multiply_and_transform_back(
    const Team& team, const Multiplication<A>& product, const Tiling& tiling, TileRangeOfBatch range,
    const InputSpectra<A>& in, const OutputSpectra<A>& block_spectra, const Epilogue& epilogue, const Finish& finish,
    A* scratch
) {
    const Taps<A>& taps = product.taps();
    const int columns = static_cast<int>(product.columns());
    const auto [begin, end] = team.share((taps.outputs + lanes<A> - 1) / lanes<A>);
    for (int64_t block = begin; block < end; ++block) {
        const int64_t end_input = taps.first_input(block) + taps.group_inputs();
        for (int64_t first = taps.first_input(block); first < end_input;) {
            const int64_t count = std::min(product.at_once(), end_input - first), after = first + count;
            const A* const next =
                after < end_input ? taps.at(block, after) : taps.at(block + 1, taps.first_input(block + 1));
            product.run(range.count, in.from(first / lanes<A>), first, count, block, 0, columns, next, block_spectra, 0);
            first = after;
        }
        transform_back(Team{0, 1}, block_spectra, tiling, range, epilogue, finish, scratch, block);
    }
}

// ---- a whole convolution ----

// What a convolution is and how it is carried out. That of a 1x1 kernel is computed without transforms, by pointwise.h, and
// has one tile per image.
template <class A>
struct Convolution {
    int64_t batch, inputs, outputs, kernel;
    Tiling tiling;
    int64_t group;  // tiles that are transformed, multiplied and transformed back at a time
    int team;       // threads that work on one group: all, or 1 where the batch is split among threads
    int64_t channel_groups = 1;

    static constexpr int L = lanes<A>;
    bool pointwise() const { return kernel == 1; }
    int64_t tiles() const { return batch * tiling.per_image(); }
    int64_t images_per_group() const { return std::max<int64_t>(group / tiling.per_image(), 1); }
    TileRangeOfBatch images(int64_t first, int64_t count) const {
        return {first * tiling.per_image(), count * tiling.per_image()};
    }
    // The spectra that exist at a time are to fit in the L2 cache. Either the spectra of all inputs exist and one block of
    // outputs per thread, which is transformed back when it is done (`by_outputs`). Or the spectra of all outputs exist and
    // those of some inputs, a turn.
    bool by_outputs() const { return outputs > inputs && outputs > (team - 1) * L; }
    // True if each thread completes one block of outputs of one image before it begins another, for so many images.
    bool block_by_block(int64_t images) const {
        return !pointwise() && by_outputs() && (images * tiling.per_image() <= group || group % tiling.per_image() == 0);
    }
    int64_t channels_per_turn(int64_t channels) const {
        constexpr int64_t cache = (640 << 10) / static_cast<int64_t>(sizeof(A));
        const int64_t at_once = inputs_at_once<A>(tiling, kernel);
        return std::min(std::max<int64_t>(cache / input_size(at_once), 1) * at_once, channels);
    }
    InputSpectra<A> input_spectra(A* data, int64_t channels) const { return {data, channels, group, tiling.frequencies()}; }
    OutputSpectra<A> output_spectra(A* data, int64_t channels) const {
        return {data, channels, group, tiling.frequencies()};
    }
    // Sizes of spectra that exist at the same time, in elements.
    int64_t input_size(int64_t channels) const { return Pieces<A>::size(input_spectra(nullptr, channels).size()); }
    int64_t output_size(int64_t channels) const { return Pieces<A>::size(output_spectra(nullptr, channels).size()); }
    // All turns use the same memory. With two buffers threads would wait for each other less, but miss the cache more.
    int64_t turn_size(int64_t channels) const { return input_size(channels_per_turn(channels)); }
    int64_t workspace_size() const {
        if (pointwise()) return 0;
        return by_outputs() ? input_size(inputs) + team * output_size(L) : turn_size(inputs) + output_size(outputs);
    }
    // Transforms tiles of a map with the inputs or the outputs of the convolution, turn by turn, and calls take(spectra,
    // first channel, end) for each turn. After the last turn a barrier is needed before `spectra` is overwritten.
    template <class Take>
    void for_each_turn(
        const Team& team, const BlockedMap<A>& map, TileRangeOfBatch range, bool halo, A* spectra, A* scratch,
        const Take& take
    ) const {
        const int64_t turn = channels_per_turn(map.channels);
        for (int64_t begin = 0; begin < map.channels; begin += turn) {
            const int64_t end = std::min(begin + turn, map.channels);
            const InputSpectra<A> some = input_spectra(spectra, end - begin);
            if (begin > 0) team.barrier();
            transform_tiles(team, map, tiling, range, halo, some, scratch, begin / L);
            team.barrier();
            take(some, begin, end);
        }
    }
    // Scratch memory of each thread, in elements.
    int64_t scratch_size() const {
        if (pointwise()) return pointwise_scratch<A>(inputs);
        const int64_t inputs = inputs_at_once<A>(tiling, kernel);
        const int64_t taps =
            kernel * kernel * L * L + inputs * TapTransform<A>::rows_size(tiling.x.length, kernel) +
            (whole_spectra<A>(tiling, inputs) ? tiling.frequencies() : tiling.y.length) * frequency_stride<A>(inputs);
        const int64_t tile = tile_scratch<A>(tiling);
        return taps > tile ? taps : tile;
    }
};

// Convolves the tiles of some images, group by group. `spectra` has workspace_size elements. epilogue as in transform_back;
// finish(range) is called for ranges of all blocks once they are complete, if possible by the thread that computed them.
template <class A, class Epilogue, class Finish>
inline void convolve(
    const Team& team, const Convolution<A>& c, const BlockedMap<A>& in, TileRangeOfBatch range, const Taps<A>& taps,
    A* spectra, A* scratch, const Epilogue& epilogue, const Finish& finish
) {
    if (c.pointwise()) return convolve_pointwise(team, in, {range.first, range.count}, taps, scratch, epilogue, finish);
    const Multiplication<A> product(c.tiling, taps, scratch);
    for (int64_t done = 0; done < range.count; done += c.group) {
        const int64_t left = range.count - done;
        const TileRangeOfBatch group{range.first + done, left < c.group ? left : c.group};
        if (c.by_outputs()) {
            const InputSpectra<A> all = c.input_spectra(spectra, c.inputs);
            A* const block_spectra = spectra + c.input_size(c.inputs) + team.rank * c.output_size(c.L);
            transform_tiles(team, in, c.tiling, group, true, all, scratch);
            team.barrier();
            multiply_and_transform_back(
                team, product, c.tiling, group, all, c.output_spectra(block_spectra, c.L), epilogue, finish, scratch
            );
        } else {
            const OutputSpectra<A> all = c.output_spectra(spectra + c.turn_size(c.inputs), c.outputs);
            c.for_each_turn(
                team, in, group, true, spectra, scratch, [&](const InputSpectra<A>& some, int64_t begin, int64_t end) {
                    multiply_spectra(team, product, group.count, some, begin, end, all);
                }
            );
            team.barrier();
            transform_back(team, all, c.tiling, group, epilogue, NoFinish{}, scratch);
        }
        team.barrier();
    }
    if constexpr (!std::is_same_v<Finish, NoFinish>) {
        if (c.by_outputs()) return;
        const int64_t per_image = c.tiling.per_image(), blocks = (c.outputs + c.L - 1) / c.L;
        const int64_t positions = c.tiling.y.size * c.tiling.x.size;
        team.for_each(block_ranges(range.count / per_image, blocks, positions), [&](int64_t i) {
            BlockRange part = block_range(i, blocks, positions);
            part.image += range.first / per_image;
            finish(part);
        });
        team.barrier();
    }
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
