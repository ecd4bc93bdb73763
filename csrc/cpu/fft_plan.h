// How a convolution is cut into tiles, and whether threads share them.
#pragma once

#include <algorithm>

#include "fft_convolution.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// The estimated time of a convolution with one tiling, in nanoseconds of one thread with AVX-512. Per point of a tile and
// vector, the transform of a tile costs about `transform_cost` and that of taps `tap_cost`, a complex product of vectors costs
// `product_cost`, the caches included.
template <class A>
inline double estimated_cost(const Convolution<A>& c, const Tiling& t) {
    constexpr double transform_cost = 10, product_cost = 1, tap_cost = 3, L = lanes<A>;
    const double points = static_cast<double>(t.y.length * t.x.length);
    const double in_blocks = std::ceil(c.inputs / L), out_blocks = std::ceil(c.outputs / L);
    const double tiles = static_cast<double>(c.batch * t.per_image());
    return points * (tiles * (transform_cost * (in_blocks + out_blocks) + product_cost / 2 * c.inputs * out_blocks) +
                     tap_cost * c.inputs * out_blocks);
}

template <class A>
inline Tiling choose_tiling(const Convolution<A>& c, int64_t height, int64_t width) {
    const int64_t radius = c.kernel / 2;
    Tiling best{{height, 0, radius}, {width, 0, radius}};
    double least = 0;
    for (int64_t y : fft_lengths)
        for (int64_t x : fft_lengths) {
            const Tiling t{{height, y, radius}, {width, x, radius}};
            // A kernel wraps onto itself in a shorter tile, and a tile must have a point that is its own.
            if (y <= 2 * radius || x <= 2 * radius) continue;
            const double cost = estimated_cost(c, t);
            if (best.y.length == 0 || cost < least) least = cost, best = t;
        }
    return best;
}

// The convolution with its tiling; `set_groups` says the rest.
template <class A>
inline Convolution<A> plan_convolution(
    int64_t batch, int64_t inputs, int64_t outputs, int64_t height, int64_t width, int64_t kernel
) {
    Convolution<A> c{batch, inputs, outputs, kernel, {}, 1, false, false};
    c.tiling = choose_tiling(c, height, width);
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
inline void set_groups(Convolution<A>& c, int threads, bool apart) {
    c.apart = apart;
    c.group = 1;
    const int64_t one = c.input_size() + c.output_size(), weights = c.weights_size();
    const int64_t most = apart ? (c.batch + threads - 1) / threads * c.tiling.per_image() : c.tiles();
    const int64_t cache = cache_elements<A> * (apart ? 1 : threads);
    c.group = std::max<int64_t>((apart ? cache : std::max(cache, weights)) / one / product_rows, 1) * product_rows;
    c.group = std::min(c.group, most);
    const int64_t out_blocks = (c.outputs + lanes<A> - 1) / lanes<A>;
    c.on_the_fly = !apart && c.group >= c.tiles() && out_blocks >= threads;
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
