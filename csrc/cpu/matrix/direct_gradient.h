// The backward pass of a convolution on the processor's matrix registers (direct_convolution.h).
//
// The gradient of the input is a convolution of the output's gradient g with the mirrored weights. That of a weight at
// offset d is sum_q in[q] g[q - d]: products of channels by channels, summed over positions. The map with fewer channels
// provides the left factors, which may begin anywhere in a row, and so is the one that is shifted by d.
#pragma once

#include "cpu/matrix/direct_convolution.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// How sums over all positions of a batch of maps are computed for every offset: one row of a bundle of images at a time,
// with the images interleaved at each column. A bundle has as many images as fill a whole number of factors best.
struct OffsetSums {
    int64_t batch, shifted, still, kernel, height, width;  // shifted, still: channels of the two maps
    int64_t bundle;                                        // images

    static constexpr int L = lanes<float>;

    OffsetSums(int64_t batch, int64_t shifted, int64_t still, int64_t kernel, int64_t height, int64_t width)
        : batch(batch), shifted(shifted), still(still), kernel(kernel), height(height), width(width), bundle(1) {
        for (int64_t n = 2; n <= std::min<int64_t>(batch, 16); ++n)
            if (cost_(n) <= cost_(bundle)) bundle = n;
    }
    int64_t radius() const { return kernel / 2; }
    int64_t bundles() const { return (batch + bundle - 1) / bundle; }
    int64_t rows() const { return bundles() * height; }
    int64_t factors() const { return (width * bundle + matrix_depth - 1) / matrix_depth; }  // of a row
    int64_t shifted_blocks() const { return (shifted + L - 1) / L; }
    int64_t still_blocks() const { return (still + L - 1) / L; }

    // The shifted map: [row][channel][position], with margins of zeros; an odd number of cache lines between channels.
    int64_t margin() const { return radius() * bundle; }
    int64_t line_size() const {
        return ((factors() * matrix_depth + 2 * margin() + matrix_depth) / matrix_depth | 1) * matrix_depth;
    }
    int64_t shifted_row_size() const { return shifted_blocks() * L * line_size(); }
    // The map that is not shifted: [row][block of channels][two positions][channel][position of the two].
    int64_t still_row_size() const { return still_blocks() * factors() * matrix_elements; }

    int64_t shifted_size() const { return Pieces<float>::size((rows() * shifted_row_size() + 1) / 2); }
    int64_t still_size() const { return Pieces<float>::size(rows() * still_row_size() / 2); }
    int64_t size() const { return shifted_size() + still_size(); }
    // Of each thread: sums of one block of shifted channels and two blocks of the others, for all offsets.
    int64_t sums_size() const { return 2 * kernel * kernel * matrix_rows * L; }

   private:
    // Factors, in all rows of the same height.
    int64_t cost_(int64_t n) const { return (batch + n - 1) / n * ((width * n + matrix_depth - 1) / matrix_depth); }
};

// Calls take(i, vector) for positions i = 0 ... of a row of a bundle of images, of one block of channels.
template <class Take>
GCSA_EXT_INLINE void for_each_position(
    const OffsetSums& s, const BlockedMap<float>& map, int64_t row, int64_t block, const Take& take
) {
    constexpr int L = lanes<float>;
    const int64_t bundle = row / s.height, y = row % s.height, images = std::min(s.bundle, s.batch - bundle * s.bundle);
    const float* const from = map.block(bundle * s.bundle, block) + y * s.width * L;
    for (int64_t x = 0, i = 0; x < s.width; ++x)
        for (int64_t image = 0; image < s.bundle; ++image, ++i)
            take(i, image < images ? load(from + image * map.image_size() + x * L, Full<float>{}) : vec<float>{});
}

inline void round_shifted(const Team& team, const OffsetSums& s, const BlockedMap<float>& map, bfloat16* to) {
    constexpr int L = lanes<float>;
    team.for_each(s.rows() * s.shifted_blocks(), [&](int64_t unit) {
        const int64_t row = unit / s.shifted_blocks(), block = unit % s.shifted_blocks(), count = s.width * s.bundle;
        bfloat16* const line = to + row * s.shifted_row_size() + block * L * s.line_size();
        for (int64_t i = 0; i < L * s.line_size(); i += matrix_depth) store_rounded(line + i, vec<float>{}, vec<float>{});
        vec<float> square[L];
        const auto flush = [&](int64_t first) {
            transpose<float>(square);
            for (int i = 0; i < L; ++i) store(line + i * s.line_size() + s.margin() + first, square[i], Full<bfloat16>{});
        };
        for_each_position(s, map, row, block, [&](int64_t i, vec<float> value) {
            square[i % L] = value;
            if (i % L == L - 1) flush(i - (L - 1));
        });
        if (count % L == 0) return;
        for (int64_t i = count % L; i < L; ++i) square[i] = vec<float>{};
        flush(count / L * L);
    });
}

inline void round_still(const Team& team, const OffsetSums& s, const BlockedMap<float>& map, bfloat16* to) {
    constexpr int L = lanes<float>;
    team.for_each(s.rows() * s.still_blocks(), [&](int64_t unit) {
        bfloat16* const pairs = to + unit * s.factors() * matrix_elements;
        const int64_t count = s.width * s.bundle;
        vec<float> first{};
        for_each_position(s, map, unit / s.still_blocks(), unit % s.still_blocks(), [&](int64_t i, vec<float> value) {
            if (i % 2) return store_pairs_rounded(pairs + (i - 1) * L, first, value);
            first = value;
        });
        if (count % 2) store_pairs_rounded(pairs + (count - 1) * L, first, vec<float>{});
        for (int64_t i = (count + 1) / 2 * 2; i < s.factors() * matrix_depth; i += 2)
            store_pairs_rounded(pairs + i * L, vec<float>{}, vec<float>{});
    });
}

// Adds what rows [begin, end), counted through all bundles, contribute to sums of one block of shifted channels, at one
// offset or two neighbouring ones, by one block of the other channels or two. The left factors' rows are `row` further down.
template <int offsets, int blocks>
inline void sum_rows(
    const OffsetSums& s, const bfloat16* left, const bfloat16* right, int64_t row, int64_t begin, int64_t end, float* sums,
    int64_t offset_step, int64_t block_step, int64_t stride, bool accumulate
) {
    constexpr std::make_integer_sequence<int, offsets> all_offsets;
    constexpr std::make_integer_sequence<int, blocks> all_blocks;
    const auto for_all = [&](const auto& body) {
        for_each_number(all_offsets, [&](auto i) { for_each_number(all_blocks, [&](auto j) { body(i, j); }); });
    };
    for_all([&](auto i, auto j) {
        if (accumulate)
            load_register<2 * i + j>(sums + j * block_step + i * offset_step, stride);
        else
            zero_register<2 * i + j>();
    });
    const int64_t factors = s.factors(), line = s.line_size(), n = s.bundle;
    for (int64_t at = begin, y = begin % s.height + row; at < end; ++at, ++y) {
        if (y == s.height + row) y = row;
        if (y < 0 || y >= s.height) continue;
        const bfloat16* a = left + (at + row) * s.shifted_row_size();
        const bfloat16* b = right + at * s.still_row_size();
        for (int64_t factor = 0; factor < factors; ++factor, a += matrix_depth, b += matrix_elements) {
            for_each_number(all_offsets, [&](auto i) { load_register<4 + i>(a + i * n, line); });
            for_each_number(all_blocks, [&](auto j) {
                load_register<6 + j>(b + j * factors * matrix_elements, matrix_depth);
            });
            for_all([&](auto i, auto j) { multiply_registers<2 * i + j, 4 + i, 6 + j>(); });
        }
    }
    for_all([&](auto i, auto j) { store_register<2 * i + j>(sums + j * block_step + i * offset_step, stride); });
}

// grad (outputs, inputs, kernel, kernel) of a convolution of `input` with the output's gradient g; `memory` of size()
// floats, of each thread `sums` of sums_size().
inline void weight_gradient(
    const Team& team, const OffsetSums& s, const BlockedMap<float>& input, const BlockedMap<float>& g, float* memory,
    float* sums, float* grad, Layout layout
) {
    constexpr int L = lanes<float>;
    const bool input_shifted = input.channels <= g.channels;
    bfloat16* const shifted = reinterpret_cast<bfloat16*>(memory);
    bfloat16* const still = reinterpret_cast<bfloat16*>(memory + s.shifted_size());
    round_shifted(team, s, input_shifted ? input : g, shifted);
    round_still(team, s, input_shifted ? g : input, still);
    team.barrier();
    // So few rows at a time that their factors stay in the L1 cache for all offsets.
    constexpr int64_t factors_at_once = 8;
    const int64_t k = s.kernel, pairs = (s.still_blocks() + 1) / 2;
    const int64_t units = s.shifted_blocks() * pairs, parts = std::min(k, (team.size + units - 1) / units);
    const int64_t rows_at_once = std::max<int64_t>(factors_at_once / s.factors(), 1);
    const MatrixRegisters registers(matrix_rows);
    team.for_each(units * parts, [&](int64_t unit) {
        const int64_t part = unit % parts, block = unit / parts / pairs, first = unit / parts % pairs * 2;
        const int64_t top = k * part / parts, bottom = k * (part + 1) / parts, taps = (bottom - top) * k;
        const int64_t blocks = std::min<int64_t>(s.still_blocks() - first, 2);
        const bfloat16* const left = shifted + block * L * s.line_size();
        const bfloat16* const right = still + first * s.factors() * matrix_elements;
        // Sums lie as [block][shifted channel][tap][other channel]. With g shifted the taps come in reverse.
        const int64_t block_size = taps * matrix_rows * L, step = input_shifted ? L : -L;
        for (int64_t row = 0; row < s.rows(); row += rows_at_once)
            for (int64_t tap = 0, offsets; tap < taps; tap += offsets) {
                const int64_t y = top + tap / k - s.radius(), x = tap % k;
                offsets = std::min<int64_t>(k - x, 2);
                const auto sum = offsets == 2 ? (blocks == 2 ? sum_rows<2, 2> : sum_rows<2, 1>)
                                              : (blocks == 2 ? sum_rows<1, 2> : sum_rows<1, 1>);
                sum(s, left + x * s.bundle, right, y, row, std::min(row + rows_at_once, s.rows()),
                    sums + (input_shifted ? tap : taps - 1 - tap) * L, step, block_size, taps * L, row > 0);
            }
        const int64_t first_tap = (input_shifted ? top : k - bottom) * k;
        const TapStrides of_grad = TapStrides::of(layout, input.channels, k);
        const TapStrides strides = input_shifted ? of_grad : of_grad.exchanged();  // lanes are the other map's channels
        const int64_t channels = std::min<int64_t>(s.shifted - block * L, L);
        for (int64_t j = 0; j < blocks; ++j) {
            const int64_t others = std::min<int64_t>(s.still - (first + j) * L, L);
            float* const to = grad + strides.at((first + j) * L, block * L, first_tap);
            scatter_taps(sums + j * block_size, strides, others, channels, taps, 1.0f, to);
        }
    });
}

// ---- the whole backward pass, of a DirectConvolution of g with the mirrored weights ----

inline OffsetSums offset_sums(const DirectConvolution& c) {
    return {c.batch, std::min(c.inputs, c.outputs), std::max(c.inputs, c.outputs), c.kernel, c.height, c.width};
}
inline int64_t unit_size(const DirectConvolution& c) { return offset_sums(c).sums_size(); }
inline int64_t unit_sums_size(const DirectConvolution&) { return 0; }  // the whole batch is summed at a time
inline int64_t gradient_workspace_size(const DirectConvolution& c) {
    return std::max(c.workspace_size(), offset_sums(c).size());
}

// See that of a convolution by Fourier transforms.
template <class Epilogue>
inline void convolve_backward(
    const Team& team, const DirectConvolution& c, const BlockedMap<float>& g, const Taps<float>& taps, float* memory,
    float* unit, float* scratch, const WeightGradient<float>& weights, bool want_input, const Epilogue& epilogue
) {
    if (weights.input) weight_gradient(team, offset_sums(c), *weights.input, g, memory, unit, weights.grad, weights.layout);
    team.barrier();
    if (want_input) convolve(team, c, g, c.images(0, c.batch), taps, memory, scratch, epilogue, NoFinish{});
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
