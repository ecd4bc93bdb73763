// How a convolution is cut into tiles, and whether all threads work on the same tiles.
#pragma once

#include <algorithm>

#include "cpu/transforms/fft_convolution.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// How many tiles make a group, at most `most`. Their spectra should fit in the L2 and L3 cache, but the taps are transformed
// once per group, and with fewer than product_rows tiles the products are slow.
template <class A>
inline int64_t tiles_per_group(const Convolution<A>& c, int64_t most) {
    Convolution<A> one = c;
    one.group = 1;
    const int64_t cache = (int64_t(3) << 20) / static_cast<int64_t>(sizeof(A)) * c.team;
    const int64_t size = one.input_size(c.inputs) + one.output_size(c.outputs),
                  count = cache / size / product_rows * product_rows;
    return std::min(std::max<int64_t>(count, product_rows), most);
}

// The estimated time of a convolution, in nanoseconds of one thread of a Zen 4 with AVX-512. Per point of a tile and vector
// of channels, a transform costs more the larger the tile is beside the L1 cache, a product of spectra costs
// `product_cost`, where few tiles cost as much as `fewest`, and the transform of taps costs `tap_cost`, after `gather_cost`
// per vector of filters. With several groups each reads and writes the sums for the weights' gradient.
template <class A>
inline double estimated_cost(const Convolution<A>& c, bool with_gradient) {
    constexpr double product_cost = 0.5, fewest = 2.5, tap_cost = 2, gather_cost = 150, sums_cost = 3, L = lanes<A>;
    const double points = static_cast<double>(c.tiling.y.length * c.tiling.x.length), tiles = static_cast<double>(c.tiles());
    const double transform_cost = 6 + points / 330;
    const double in_blocks = std::ceil(c.inputs / L), out_blocks = std::ceil(c.outputs / L);
    const double products = static_cast<double>(c.inputs) * out_blocks / static_cast<double>(c.channel_groups);
    const double groups = std::ceil(tiles / static_cast<double>(c.group));
    const double taps = tap_cost * points + gather_cost + (with_gradient && groups > 1 ? sums_cost * points : 0);
    return points * (tiles * transform_cost * (in_blocks + out_blocks) +
                     std::max(tiles, groups * fewest) * product_cost * products) +
           groups * products * taps;
}

// The plan of least estimated cost. `split_batch`: every thread works on images of its own. `with_gradient`: the gradient of
// the weights is computed from the same tiles. With several groups of channels, each has whole blocks of outputs.
template <class A>
inline Convolution<A> plan_convolution(
    int64_t batch, int64_t inputs, int64_t outputs, int64_t height, int64_t width, int64_t kernel, int threads,
    bool split_batch, bool with_gradient = false, int64_t groups = 1, Border border = Border::zeros
) {
    const int64_t radius = kernel / 2;
    const int team = split_batch ? 1 : threads;
    const int64_t images = split_batch ? (batch + threads - 1) / threads : batch;
    if (kernel == 1) {
        const int64_t cache = (int64_t(1) << 20) / static_cast<int64_t>(sizeof(A)) * team;
        const int64_t group = std::max<int64_t>(cache / ((inputs + outputs) * height * width), 1);
        return {batch, inputs, outputs, 1, {{height, height, 0}, {width, width, 0}}, std::min(group, images), team, groups};
    }
    const int64_t margin = border == Border::full ? 2 * radius : 0;  // more results than points of the map
    Convolution<A> best{};
    double least = 0;
    for (int64_t y : fft_lengths) {
        // In a shorter tile a kernel would wrap onto itself, or no point would be valid.
        if (y <= 2 * radius) continue;
        const TileAxis rows{height + margin, y, radius, border};
        for (int64_t x : fft_lengths) {
            if (x <= 2 * radius) continue;
            const TileAxis columns{width + margin, x, radius, border};
            Convolution<A> c{batch, inputs, outputs, kernel, {rows, columns}, 1, team, groups};
            c.group = tiles_per_group(c, images * c.tiling.per_image());
            const double cost = estimated_cost(c, with_gradient);
            // At equal cost the longer columns: their transform is simpler than that of rows.
            if (best.kernel == 0 || cost <= least) least = cost, best = c;
            if (columns.whole()) break;  // longer ones have no more to offer
        }
        if (rows.whole()) break;
    }
    return best;
}

// True if it is faster to split the batch among threads: they do not wait for each other, but each transforms all taps.
template <class A>
inline bool better_split(const Convolution<A>& split, const Convolution<A>& together, int threads) {
    if (split.pointwise()) return threads > 1 && split.batch >= threads;
    return threads > 1 && split.batch >= threads && split.tiles() / threads >= product_rows &&
           estimated_cost(split, false) < 1.05 * estimated_cost(together, false);
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
