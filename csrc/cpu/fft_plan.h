// How a convolution is cut into tiles, and whether threads share them.
#pragma once

#include <algorithm>

#include "fft_convolution.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// The estimated time of a convolution of whole maps with one tiling, in arbitrary units on one thread. A transform costs
// about `transform_cost` per point and vector, a complex multiplication of two vectors `product_cost`; both were measured
// (8 x 64 x 56 x 56 and smaller maps, AVX-512).
template <class A>
inline double estimated_cost(const Convolution<A>& c, const Tiling& t, bool weights_ready) {
    constexpr double transform_cost = 6, product_cost = 0.75, L = lanes<A>;
    const double points = static_cast<double>(t.y.length * t.x.length);
    const double in_blocks = std::ceil(c.inputs / L), out_blocks = std::ceil(c.outputs / L);
    const double tiles = static_cast<double>(c.batch * t.per_image());
    const double weights = weights_ready ? 1 : 5;  // reading them costs something, too
    return points * (tiles * (transform_cost * (in_blocks + out_blocks) + product_cost / 2 * c.inputs * out_blocks) +
                     weights * c.inputs * out_blocks);
}

template <class A>
inline Tiling choose_tiling(const Convolution<A>& c, int64_t height, int64_t width, bool weights_ready) {
    const int64_t radius = c.kernel / 2;
    Tiling best{{height, 0, radius}, {width, 0, radius}};
    double least = 0;
    for (int64_t y : fft_lengths)
        for (int64_t x : fft_lengths) {
            const Tiling t{{height, y, radius}, {width, x, radius}};
            // A kernel wraps onto itself in a shorter tile, and a tile must have a point that is its own.
            if (y <= 2 * radius || x <= 2 * radius) continue;
            const double cost = estimated_cost(c, t, weights_ready);
            if (best.y.length == 0 || cost < least) least = cost, best = t;
        }
    return best;
}

// The convolution with its tiling; `set_groups` says the rest. `weights_ready`: their spectra were computed before.
template <class A>
inline Convolution<A> plan_convolution(
    int64_t batch, int64_t inputs, int64_t outputs, int64_t height, int64_t width, int64_t kernel, bool weights_ready
) {
    Convolution<A> c{batch, inputs, outputs, kernel, {}, 1, false, false};
    c.tiling = choose_tiling(c, height, width, weights_ready);
    return c;
}

// Tiles of one group stay in the second-level cache if they can. Where the weights are larger than that, so is the group,
// since they are read once per group.
template <class A>
constexpr int64_t cache_elements = (2 << 20) / sizeof(A);

// Whether every thread may work on images of its own, with weights that it reads in full for each of its groups.
template <class A>
inline bool can_work_apart(const Convolution<A>& c, int threads) {
    return threads > 1 && c.batch >= threads && c.tiles() / threads >= product_rows &&
           c.weights_size() <= 4 * cache_elements<A>;
}

template <class A>
inline void set_groups(Convolution<A>& c, int threads, bool apart, bool weights_ready) {
    c.apart = apart;
    c.group = 1;
    const int64_t one = c.input_size() + c.output_size(), weights = c.weights_size();
    const int64_t most = apart ? (c.batch + threads - 1) / threads * c.tiling.per_image() : c.tiles();
    const int64_t cache = cache_elements<A> * (apart ? 1 : threads);
    c.group = std::max<int64_t>((apart ? cache : std::max(cache, weights)) / one / product_rows, 1) * product_rows;
    c.group = std::min(c.group, most);
    const int64_t out_blocks = (c.outputs + lanes<A> - 1) / lanes<A>;
    c.on_the_fly = !weights_ready && !apart && c.group >= c.tiles() && out_blocks >= threads;
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
