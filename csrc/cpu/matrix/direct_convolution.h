// Convolution of bfloat16 with 'same' zero padding on the processor's matrix registers (matrix_registers.h), where so many
// products are made at a time that none need be saved.
//
// A tile of sums is a run of positions of one row of the map by one block of outputs. Its left factor is read from the map
// as it lies, [position][channel], from the position that a tap looks at on; the right one are that tap's weights.
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
    int team;       // threads that work on one group: all, or 1 where every thread has images of its own

    static constexpr int L = lanes<float>;
    static constexpr int most_runs = 4;  // at a time
    static_assert(L == matrix_lanes);

    int64_t radius() const { return kernel / 2; }
    int64_t images_per_group() const { return group; }
    static constexpr bool block_by_block(int64_t) { return false; }  // images and two blocks take turns
    ImageRange images(int64_t first, int64_t count) const { return {first, count}; }
    int64_t out_blocks() const { return (outputs + L - 1) / L; }
    // Blocks of outputs at a time: two save every other load of a left factor.
    int64_t blocks_at_once() const { return out_blocks() >= 2 * team ? 2 : 1; }

    // The map in bfloat16: [images' bundle][group of channels][row][column][image][channel of the group] with a margin of
    // zeros all around. Narrow maps are bundled so that a row of one bundle fills the sums. A factor is 32 channels of one
    // tap or, where there are only 16, of two taps beside each other: they lie there twice, a second time beside their left
    // neighbours.
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

    // A row of a bundle is computed in `runs` tiles of sums, `parts` times over if these are too many at a time; if they are
    // few, several rows at a time.
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

    // The weights of these outputs for so many groups of channels stay in the second-level cache.
    int64_t factors_per_group() const { return kernel * factors_per_row(); }
    int64_t groups_at_once() const {
        constexpr int64_t cache = 896 << 10;
        const int64_t group = blocks_at_once() * factors_per_group() * matrix_elements * 2;
        return std::min(std::max<int64_t>(cache / group, 1), groups());
    }
    int64_t weights_of_block() const { return groups_at_once() * factors_per_group() * matrix_elements; }

    // Memory in floats: of a team, of each thread.
    int64_t workspace_size() const { return Pieces<float>::size((bundles(group) * bundle_size() + 1) / 2); }
    int64_t weights_size() const { return blocks_at_once() * weights_of_block() / 2; }
    int64_t sums_size() const {
        const int64_t sets = groups_at_once() < groups() ? bundles(group) * sets_per_bundle() : 1;
        return sets * blocks_at_once() * most_runs * matrix_rows * L;
    }
    int64_t gathered_size() const { return Pieces<float>::size(kernel * kernel * L * L); }
    int64_t scratch_size() const { return gathered_size() + weights_size() + sums_size(); }
};

// Some images of a blocked map as a DirectConvolution reads them.
inline void round_map(
    const Team& team, const DirectConvolution& c, const BlockedMap<float>& map, ImageRange range, bfloat16* to
) {
    constexpr int L = lanes<float>;
    const int64_t radius = c.radius(), rows = c.height + 2 * radius, n = c.bundle(), step = c.column_size();
    const bool two_taps = c.two_taps();
    // Columns that hold something: of two taps the second begins before the map.
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

// The weights of a block of outputs for groups of channels first ... first + count, as right factors: [group][row of taps]
// [factor][two channels][output][channel of the two].
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
        gather_taps(taps.at(block * L, input + i), taps.strides, outputs, some, size, gathered);
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

// Adds what some groups of channels contribute to `runs` tiles of sums for one block of outputs or two, whose right factors
// lie `block` apart, and whose sums as many tiles as are computed at a time. The left factors of the first tap begin at
// `left`; rows of taps [top, bottom).
template <int runs, int blocks>
inline void multiply_runs(
    const DirectConvolution& c, const bfloat16* const* left, const bfloat16* right, int64_t groups, int64_t top,
    int64_t bottom, float* sums, bool accumulate
) {
    const int64_t factors = c.factors_per_row(), row_size = c.row_size(), step = c.factor_step();
    const int64_t size = c.run_length() * matrix_lanes,
                  block_size = DirectConvolution::most_runs * matrix_rows * matrix_lanes;
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

// epilogue and finish as for a convolution by Fourier transforms.
template <class Epilogue, class Finish>
inline void convolve(
    const Team& team, const DirectConvolution& c, const BlockedMap<float>& in, ImageRange range, const Taps<float>& taps,
    float* memory, float* scratch, const Epilogue& epilogue, const Finish& finish
) {
    constexpr int L = lanes<float>, most = DirectConvolution::most_runs;
    constexpr int64_t block_size = most * matrix_rows * L;
    bfloat16* const map = reinterpret_cast<bfloat16*>(memory);
    float* const gathered = scratch;
    bfloat16* const weights = reinterpret_cast<bfloat16*>(gathered + c.gathered_size());
    float* const sums = gathered + c.gathered_size() + c.weights_size();
    const int64_t blocks = c.out_blocks(), n = c.bundle(), R = c.run_length(), at_once = c.groups_at_once();
    const MatrixRegisters registers(static_cast<int>(R));
    int64_t shares = 1;
    for (int64_t done = 0; done < range.count; done += c.group) {
        const ImageRange images{range.first + done, std::min(range.count - done, c.group)};
        round_map(team, c, in, images, map);
        team.barrier();
        // Where there are fewer units of outputs than threads, some share one and divide its sets of sums.
        const int64_t units = (blocks + c.blocks_at_once() - 1) / c.blocks_at_once();
        const int64_t sets = c.sets_per_bundle() * c.bundles(images.count);
        shares = (team.size + units - 1) / units;
        const auto [begin, end] = team.share(units * shares);
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t block = unit / shares * c.blocks_at_once(),
                          together = std::min(c.blocks_at_once(), blocks - block);
            const int64_t first = sets * (unit % shares) / shares, last = sets * (unit % shares + 1) / shares;
            for (int64_t group = 0; group < c.groups(); group += at_once) {
                const int64_t groups = std::min(at_once, c.groups() - group);
                const bool complete = group + groups == c.groups();
                for (int64_t j = 0; j < together; ++j)
                    round_weights(c, taps, block + j, group, groups, gathered, weights + j * c.weights_of_block());
                for (int64_t i = first; i < last; ++i) {
                    const auto [bundle, y0, rows, run, across] = c.set(i);
                    const bfloat16* const from = map + bundle * c.bundle_size() + group * c.group_size();
                    const bfloat16* left[most];
                    for (int64_t j = 0; j < rows * across; ++j)
                        left[j] = from + (y0 + j / across) * c.row_size() + (run + j % across) * R * matrix_depth;
                    // The rows of taps that reach beyond the map for all rows are left out.
                    const int64_t top = std::max<int64_t>(c.radius() - (y0 + rows - 1), 0),
                                  bottom = std::min(c.kernel, c.height + c.radius() - y0);
                    float* const own = sums + (at_once < c.groups() ? (i - first) * c.blocks_at_once() * block_size : 0);
                    const auto multiply = together == 2 ? multiply_all<2> : multiply_all<1>;
                    multiply(rows * across, c, left, weights, groups, top, bottom, own, group > 0);
                    // Either one image or whole rows.
                    const int64_t x = run * R / n, count = n == 1 ? std::min(across * R, c.width - x) : c.width;
                    for (int64_t j = 0; complete && j < together; ++j)
                        for (int64_t y = 0; y < rows; ++y)
                            for (int64_t image = 0; image < n && bundle * n + image < images.count; ++image)
                                epilogue(
                                    images.first + bundle * n + image, block + j, (y0 + y) * c.width + x, count,
                                    own + j * block_size + (y * across * R + image) * L, n * L
                                );
                }
            }
            for (int64_t i = 0; shares == 1 && i < images.count * together; ++i)
                finish(BlockRange{images.first + i / together, block + i % together, 0, c.height * c.width});
        }
        team.barrier();
        if constexpr (!std::is_same_v<Finish, NoFinish>) {
            if (shares == 1) continue;
            team.for_each(block_ranges(images.count, blocks, c.height * c.width), [&](int64_t i) {
                BlockRange part = block_range(i, blocks, c.height * c.width);
                part.image += images.first;
                finish(part);
            });
            team.barrier();
        }
    }
}

// How a convolution is carried out; `apart` as for one by Fourier transforms, and a gradient of the weights changes nothing.
inline DirectConvolution plan_direct(
    int64_t batch, int64_t inputs, int64_t outputs, int64_t height, int64_t width, int64_t kernel, int threads, bool apart,
    bool /*with_gradient*/ = false
) {
    DirectConvolution c{batch, inputs, outputs, kernel, height, width, 1, apart ? 1 : threads};
    // Of a group, all that lies between the map and the result stays in the second-level caches; but weights are rounded
    // once per group, which takes as long as to multiply them by about 200 positions.
    constexpr int64_t cache = int64_t(2) << 20, least_positions = 2500;
    const int64_t padded = (height + 2 * c.radius()) * (width + 2 * c.radius()), positions = height * width;
    const int64_t image = std::max(inputs, outputs) * (padded * 2 + positions * 5);
    const int64_t images = apart ? (batch + threads - 1) / threads : batch;
    const int64_t most = std::max(cache * c.team / image, (least_positions + positions - 1) / positions);
    const int64_t groups = (images + most - 1) / most;
    c.group = (images + groups - 1) / groups;
    return c;
}

// Whether threads are better off with images of their own, though each rounds all weights.
inline bool better_apart(const DirectConvolution& apart, const DirectConvolution&, int threads) {
    return threads > 1 && apart.batch >= threads && apart.batch * apart.height * apart.width / threads >= 2000;
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
