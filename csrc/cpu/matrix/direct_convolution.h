// Convolution of bfloat16 with 'same' zero padding on the processor's matrix registers (matrix_registers.h). They multiply
// so fast that transforms, which would save products, do not pay.
//
// A tile of sums is a run of positions of one row of the map by one block of outputs. Its left factor is the map itself,
// [position][channel], read from the position that a tap is at; its right factor is that tap's weights.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "cpu/blocked.h"
#include "cpu/matrix/matrix_registers.h"
#include "cpu/taps.h"
#include "cpu/team.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

struct ImageRange {
    int64_t first, count;
};

// What a convolution is and how it is carried out.
struct DirectConvolution {
    int64_t batch, inputs, outputs, kernel, height, width;
    int64_t group;  // images at a time
    int team;       // threads that work on one group: all, or 1 where the batch is split among threads

    static constexpr int L = lanes<float>;
    static constexpr int most_runs = 4;                                 // at a time
    static constexpr int64_t block_size = most_runs * matrix_rows * L;  // sums of as many runs, for a block of outputs
    static_assert(L == matrix_lanes);

    int64_t radius() const { return kernel / 2; }
    int64_t images_per_group() const { return group; }
    static constexpr bool block_by_block(int64_t) { return false; }  // blocks of several images are computed together
    ImageRange images(int64_t first, int64_t count) const { return {first, count}; }
    int64_t out_blocks() const { return (outputs + L - 1) / L; }
    // Blocks of outputs at a time: with two a left factor is loaded half as often.
    int64_t blocks_at_once() const { return out_blocks() >= 2 * team ? 2 : 1; }

    // The map in bfloat16: [bundle of images][group of channels][row][column][image][channel of the group] with a margin of
    // zeros all around. Narrow maps are bundled so that a row of one bundle fills the sums. A factor is 32 channels at one
    // tap or, of a map with up to 16, these channels at two neighbouring taps: each column is stored twice, the second time
    // beside its left neighbour.
    int64_t bundle() const {
        const int64_t fit = std::max<int64_t>(most_runs * matrix_rows / width, 1), bundles = (group + fit - 1) / fit;
        return (group + bundles - 1) / bundles;
    }
    int64_t bundles(int64_t images) const { return (images + bundle() - 1) / bundle(); }
    bool two_taps() const { return inputs <= L; }
    int64_t groups() const { return (inputs + matrix_depth - 1) / matrix_depth; }
    int64_t channels_per_group() const { return two_taps() ? L : matrix_depth; }
    int64_t factors_per_row() const { return two_taps() ? (kernel + 1) / 2 : kernel; }
    int64_t column_size() const { return bundle() * matrix_depth; }
    int64_t factor_step() const { return (two_taps() ? 2 : 1) * column_size(); }

    // A row of a bundle has `runs` tiles of sums. Where the registers do not hold them all, they are computed in `parts`
    // parts; where they hold more, several rows are computed at a time.
    int64_t runs() const { return (width * bundle() + matrix_rows - 1) / matrix_rows; }
    int64_t run_length() const { return (width * bundle() + runs() - 1) / runs(); }  // the last one may hold fewer
    int64_t parts() const { return (runs() + most_runs - 1) / most_runs; }
    int64_t rows_at_once() const { return std::max<int64_t>(most_runs / runs(), 1); }
    struct Set {
        int64_t bundle, y, rows;  // from y on
        int64_t run, across;      // runs of each row, from `run` on
    };
    int64_t sets_per_bundle() const { return parts() * ((height + rows_at_once() - 1) / rows_at_once()); }
    Set set(int64_t i) const {
        const int64_t part = i % parts(), y = i % sets_per_bundle() / parts() * rows_at_once(),
                      run = runs() * part / parts();
        return {i / sets_per_bundle(), y, std::min(rows_at_once(), height - y), run, runs() * (part + 1) / parts() - run};
    }

    int64_t row_size() const {
        return std::max(runs() * run_length() + 2 * radius() * bundle(), (width + 2 * radius() + 1) * bundle()) *
               matrix_depth;
    }
    int64_t group_size() const { return (height + 2 * radius()) * row_size(); }
    int64_t bundle_size() const { return groups() * group_size(); }

    // Groups of channels at a time: as many as have weights that fit in the L2 cache.
    int64_t factors_per_group() const { return kernel * factors_per_row(); }
    int64_t groups_at_once() const {
        constexpr int64_t cache = 896 << 10;
        const int64_t group = blocks_at_once() * factors_per_group() * matrix_elements * 2;
        return std::min(std::max<int64_t>(cache / group, 1), groups());
    }
    int64_t weights_of_block() const { return groups_at_once() * factors_per_group() * matrix_elements; }

    // Memory in floats: workspace_size of a team, scratch_size of each thread.
    int64_t workspace_size() const { return Pieces<float>::size((bundles(group) * bundle_size() + 1) / 2); }
    int64_t weights_size() const { return blocks_at_once() * weights_of_block() / 2; }
    int64_t sums_size() const {
        const int64_t sets = groups_at_once() < groups() ? bundles(group) * sets_per_bundle() : 1;
        return sets * blocks_at_once() * most_runs * matrix_rows * L;
    }
    int64_t gathered_size() const { return Pieces<float>::size(kernel * kernel * L * L); }
    int64_t scratch_size() const { return gathered_size() + weights_size() + sums_size(); }
};

// Writes some images of a blocked map as a DirectConvolution reads them.
inline void round_map(
    const Team& team, const DirectConvolution& c, const BlockedMap<float>& map, ImageRange range, bfloat16* to
) {
    constexpr int L = lanes<float>;
    const int64_t radius = c.radius(), rows = c.height + 2 * radius, n = c.bundle(), step = c.column_size();
    const bool two_taps = c.two_taps();
    // Columns that hold values: with two taps the second one reaches one column further to the left.
    const int64_t begin = radius - (two_taps ? 1 : 0), end = radius + c.width;
    team.for_each(c.bundles(range.count) * c.groups() * rows, [&](int64_t unit) {
        const int64_t y = unit % rows - radius, group = unit / rows % c.groups(), bundle = unit / rows / c.groups();
        bfloat16* const row = to + unit * c.row_size();
        const auto clear = [&](int64_t from, int64_t to) {
            for (int64_t i = from; i < to; i += matrix_depth) store_rounded(row + i, vec<float>{}, vec<float>{});
        };
        if (y < 0 || y >= c.height) return clear(0, c.row_size());
        clear(0, begin * step);
        clear(end * step, c.row_size());
        for (int64_t i = 0; i < n; ++i) {
            const int64_t image = bundle * n + i, block = two_taps ? 0 : 2 * group;
            bfloat16* at = row + begin * step + i * matrix_depth;
            if (image >= range.count) {
                for (int64_t x = begin; x < end; ++x, at += step) store_rounded(at, vec<float>{}, vec<float>{});
                continue;
            }
            const float* const first = map.block(range.first + image, block) + y * c.width * L;
            const float* const second = first + c.width * c.height * L;
            const auto value = [&](const float* from, int64_t x) { return load(from + x * L, Full<float>{}); };
            if (two_taps) {
                store_rounded(at, vec<float>{}, value(first, 0));
                for (int64_t x = 0; x < c.width - 1; ++x) store_rounded(at += step, value(first, x), value(first, x + 1));
                store_rounded(at + step, value(first, c.width - 1), vec<float>{});
            } else if (block + 1 < map.blocks()) {
                for (int64_t x = 0; x < c.width; ++x, at += step) store_rounded(at, value(first, x), value(second, x));
            } else {
                for (int64_t x = 0; x < c.width; ++x, at += step) store_rounded(at, value(first, x), vec<float>{});
            }
        }
    });
}

// Writes the weights of a block of outputs for groups of channels first ... first + count as right factors: [group][row of
// taps][factor][two channels][output][channel of the two].
inline void round_weights(
    const DirectConvolution& c, const Taps<float>& taps, int64_t block, int64_t first, int64_t count, float* gathered,
    bfloat16* to
) {
    constexpr int L = lanes<float>;
    const int64_t G = c.channels_per_group(), k = c.kernel, size = k * k, input = first * G;
    const int64_t inputs = std::min(count * G, c.inputs - input), outputs = std::min<int64_t>(c.outputs - block * L, L);
    if (c.two_taps() || inputs < count * G) std::fill(to, to + count * c.factors_per_group() * matrix_elements, bfloat16{});
    for (int64_t i = 0; i < inputs; i += L) {
        const int64_t some = std::min<int64_t>(inputs - i, L);
        gather_taps(taps.at(block, input + i), taps.strides, outputs, some, size, gathered);
        bfloat16* const group = to + i / G * c.factors_per_group() * matrix_elements;
        for (int64_t j = 0; j < some; j += 2) {
            const float* const lower = gathered + j * size * L;
            for (int64_t y = 0; y < k; ++y)
                for (int64_t x = 0; x < k; ++x) {
                    const int64_t tap = (taps.mirrored ? size - 1 - (y * k + x) : y * k + x) * L;
                    const int64_t depth = x * G + i % G + j;
                    bfloat16* const at = group + (y * c.factors_per_row() + depth / matrix_depth) * matrix_elements;
                    const auto value = load(lower + tap, Full<float>{});
                    const auto other = j + 1 < some ? load(lower + size * L + tap, Full<float>{}) : vec<float>{};
                    store_pairs_rounded(at + depth % matrix_depth * L, value, other);
                }
        }
    }
}

// Adds what some groups of channels contribute to `runs` tiles of sums for one block of outputs or two, at rows of taps
// [top, bottom). The left factors of the first tap begin at `left`. Between two blocks of outputs right factors lie
// weights_of_block elements apart and sums block_size.
template <int runs, int blocks>
inline void multiply_runs(
    const DirectConvolution& c, const bfloat16* const* left, const bfloat16* right, int64_t groups, int64_t top,
    int64_t bottom, float* sums, bool accumulate
) {
    const int64_t factors = c.factors_per_row(), row_size = c.row_size(), step = c.factor_step();
    const int64_t size = c.run_length() * matrix_lanes;
    constexpr int64_t block_size = DirectConvolution::block_size;
    const int64_t block = c.weights_of_block();
    const auto for_runs = [](const auto& body) { for_each_number(std::make_integer_sequence<int, runs>{}, body); };
    const auto for_blocks = [](const auto& body) { for_each_number(std::make_integer_sequence<int, blocks>{}, body); };
    for_runs([&](auto i) {
        for_blocks([&](auto j) {
            if (accumulate)
                load_register<blocks * i + j>(sums + j * block_size + i * size, matrix_lanes);
            else
                zero_register<blocks * i + j>();
        });
    });
    for (int64_t group = 0; group < groups; ++group)
        for (int64_t y = top; y < bottom; ++y) {
            const bfloat16* b = right + (group * c.kernel + y) * factors * matrix_elements;
            int64_t offset = group * c.group_size() + y * row_size;
            for (int64_t factor = 0; factor < factors; ++factor, b += matrix_elements, offset += step) {
                for_blocks([&](auto j) { load_register<6 + j>(b + j * block, matrix_depth); });
                for_runs([&](auto i) {
                    load_register<4 + i % 2>(left[i] + offset, matrix_depth);
                    for_blocks([&](auto j) { multiply_registers<blocks * i + j, 4 + i % 2, 6 + j>(); });
                });
            }
        }
    for_runs([&](auto i) {
        for_blocks([&](auto j) { store_register<blocks * i + j>(sums + j * block_size + i * size, matrix_lanes); });
    });
}
// The same for any number of runs.
template <int blocks, int most = DirectConvolution::most_runs / blocks>
inline void multiply_all(
    int64_t runs, const DirectConvolution& c, const bfloat16* const* left, const bfloat16* right, int64_t groups,
    int64_t top, int64_t bottom, float* sums, bool accumulate
) {
    for (; runs >= most; runs -= most, left += most, sums += most * c.run_length() * matrix_lanes)
        multiply_runs<most, blocks>(c, left, right, groups, top, bottom, sums, accumulate);
    if constexpr (most > 1)
        if (runs > 0) multiply_all<blocks, most - 1>(runs, c, left, right, groups, top, bottom, sums, accumulate);
}

// What a thread works in: the rounded map of its team, and memory of its own.
struct DirectWorkspace {
    bfloat16* map;
    float* gathered;
    bfloat16* weights;
    float* sums;

    DirectWorkspace(const DirectConvolution& c, float* memory, float* scratch)
        : map(reinterpret_cast<bfloat16*>(memory)),
          gathered(scratch),
          weights(reinterpret_cast<bfloat16*>(gathered + c.gathered_size())),
          sums(gathered + c.gathered_size() + c.weights_size()) {}
};

// Adds to one set of sums, of one block of outputs or two, what `count` groups of channels from `group` on contribute.
inline void multiply_set(
    const DirectConvolution& c, const DirectWorkspace& w, const DirectConvolution::Set& set, int64_t group, int64_t count,
    int64_t blocks, float* sums
) {
    const auto [bundle, y0, rows, run, across] = set;
    const bfloat16* const from = w.map + bundle * c.bundle_size() + group * c.group_size();
    const bfloat16* left[DirectConvolution::most_runs];
    for (int64_t j = 0; j < rows * across; ++j)
        left[j] = from + (y0 + j / across) * c.row_size() + (run + j % across) * c.run_length() * matrix_depth;
    // The rows of taps that reach beyond the map for all rows are left out.
    const int64_t top = std::max<int64_t>(c.radius() - (y0 + rows - 1), 0),
                  bottom = std::min(c.kernel, c.height + c.radius() - y0);
    const auto multiply = blocks == 2 ? multiply_all<2> : multiply_all<1>;
    multiply(rows * across, c, left, w.weights, count, top, bottom, sums, group > 0);
}

// Calls the epilogue for one complete set of sums, of `blocks` blocks of outputs from `block` on. A run that it gets is of
// one image or of whole rows.
template <class Epilogue>
inline void finish_set(
    const DirectConvolution& c, ImageRange images, const DirectConvolution::Set& set, int64_t block, int64_t blocks,
    const float* sums, const Epilogue& epilogue
) {
    constexpr int L = lanes<float>;
    const int64_t n = c.bundle(), R = c.run_length(), first = set.bundle * n, x = set.run * R / n;
    const int64_t count = n == 1 ? std::min(set.across * R, c.width - x) : c.width;
    for (int64_t j = 0; j < blocks; ++j)
        for (int64_t y = 0; y < set.rows; ++y)
            for (int64_t image = 0; image < n && first + image < images.count; ++image)
                epilogue(
                    images.first + first + image, block + j, (set.y + y) * c.width + x, count,
                    sums + j * DirectConvolution::block_size + (y * set.across * R + image) * L, n * L
                );
}

// Computes sets [first, last) of one block of outputs or two, from `block` on.
template <class Epilogue>
inline void convolve_blocks(
    const DirectConvolution& c, const DirectWorkspace& w, ImageRange images, const Taps<float>& taps, int64_t block,
    int64_t blocks, int64_t first, int64_t last, const Epilogue& epilogue
) {
    const int64_t at_once = c.groups_at_once();
    const int64_t sums_of_set = at_once < c.groups() ? c.blocks_at_once() * DirectConvolution::block_size : 0;
    for (int64_t group = 0; group < c.groups(); group += at_once) {
        const int64_t count = std::min(at_once, c.groups() - group);
        for (int64_t j = 0; j < blocks; ++j)
            round_weights(c, taps, block + j, group, count, w.gathered, w.weights + j * c.weights_of_block());
        for (int64_t i = first; i < last; ++i) {
            const DirectConvolution::Set set = c.set(i);
            float* const sums = w.sums + (i - first) * sums_of_set;
            multiply_set(c, w, set, group, count, blocks, sums);
            if (group + count == c.groups()) finish_set(c, images, set, block, blocks, sums, epilogue);
        }
    }
}

// epilogue and finish as for a convolution by Fourier transforms.
template <class Epilogue, class Finish>
inline void convolve(
    const Team& team, const DirectConvolution& c, const BlockedMap<float>& in, ImageRange range, const Taps<float>& taps,
    float* memory, float* scratch, const Epilogue& epilogue, const Finish& finish
) {
    const DirectWorkspace workspace(c, memory, scratch);
    const int64_t blocks = c.out_blocks(), positions = c.height * c.width;
    // Where there are fewer units of outputs than threads, some threads share one and divide its sets of sums.
    const int64_t units = (blocks + c.blocks_at_once() - 1) / c.blocks_at_once();
    const int64_t shares = (team.size + units - 1) / units;
    const MatrixRegisters registers(static_cast<int>(c.run_length()));
    for (int64_t done = 0; done < range.count; done += c.group) {
        const ImageRange images{range.first + done, std::min(range.count - done, c.group)};
        round_map(team, c, in, images, workspace.map);
        team.barrier();
        const int64_t sets = c.sets_per_bundle() * c.bundles(images.count);
        team.for_each(units * shares, [&](int64_t unit) {
            const int64_t block = unit / shares * c.blocks_at_once(), share = unit % shares;
            const int64_t together = std::min(c.blocks_at_once(), blocks - block);
            convolve_blocks(
                c, workspace, images, taps, block, together, sets * share / shares, sets * (share + 1) / shares, epilogue
            );
            for (int64_t i = 0; shares == 1 && i < images.count * together; ++i)
                finish(BlockRange{images.first + i / together, block + i % together, 0, positions});
        });
        team.barrier();
        if constexpr (!std::is_same_v<Finish, NoFinish>) {
            if (shares == 1) continue;
            team.for_each(block_ranges(images.count, blocks, positions), [&](int64_t i) {
                BlockRange part = block_range(i, blocks, positions);
                part.image += images.first;
                finish(part);
            });
            team.barrier();
        }
    }
}

// The plan of a convolution. `split_batch` as for one by Fourier transforms; a gradient of the weights changes nothing.
inline DirectConvolution plan_direct(
    int64_t batch, int64_t inputs, int64_t outputs, int64_t height, int64_t width, int64_t kernel, int threads,
    bool split_batch, bool /*with_gradient*/ = false
) {
    DirectConvolution c{batch, inputs, outputs, kernel, height, width, 1, split_batch ? 1 : threads};
    // Everything between the map and the result of a group is to fit in the L2 caches. But weights are rounded once per
    // group, which takes as long as multiplying them by about 200 positions.
    constexpr int64_t cache = int64_t(2) << 20, least_positions = 2500;
    const int64_t padded = (height + 2 * c.radius()) * (width + 2 * c.radius()), positions = height * width;
    const int64_t image = std::max(inputs, outputs) * (padded * 2 + positions * 5);
    const int64_t images = split_batch ? (batch + threads - 1) / threads : batch;
    const int64_t most = std::max(cache * c.team / image, (least_positions + positions - 1) / positions);
    const int64_t groups = (images + most - 1) / most;
    c.group = (images + groups - 1) / groups;
    return c;
}

// True if it is faster to split the batch among threads, although each then rounds all weights.
inline bool better_split(const DirectConvolution& split, const DirectConvolution&, int threads) {
    return threads > 1 && split.batch >= threads && split.batch * split.height * split.width / threads >= 2000;
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
