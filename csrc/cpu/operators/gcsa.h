// What the forward and the backward pass of the attention share. Everything between x and the result stays in the blocked
// layout that the convolutions compute in (blocked.h).
#pragma once

#include "cpu/operators/blocked_gate.h"
#include "cpu/plan.h"
#include "cpu/sigmoid.h"
#include "params/gcsa.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// The sizes of a call and of its maps.
template <class T>
struct GcsaShape {
    using A = accumulator<T>;
    int64_t N, C, h, H, W, P, k;
    int threads;

    explicit GcsaShape(const GcsaForward& p)
        : N(p.gate.map.batch),
          C(p.gate.map.channels),
          h(p.gate.hidden),
          H(p.height),
          W(p.width),
          P(H * W),
          k(p.kernel),
          threads(p.gate.map.threads) {}

    BlockedMap<A> map(A* data, int64_t channels) const { return {data, channels, H, W}; }
    int64_t blocks(int64_t channels) const { return (channels + lanes<A> - 1) / lanes<A>; }
    int64_t most_blocks() const { return std::max(blocks(C), blocks(h)); }  // h may be more than C
    int64_t map_size(int64_t channels, int64_t images) const { return images * blocks(channels) * P * lanes<A>; }
};

// Element i of a vector that may be missing.
template <class A>
inline A value_or(const void* values, int64_t i, A otherwise) {
    return values ? static_cast<const A*>(values)[i] : otherwise;
}
template <class A>
inline A inverse_deviation(const BatchNorm& norm, int64_t c) {
    const A var = static_cast<const A*>(norm.var)[c] + static_cast<A>(norm.eps);
    return A(1) / (sizeof(A) == 4 ? static_cast<A>(__builtin_sqrtf(static_cast<float>(var)))
                                  : static_cast<A>(__builtin_sqrt(static_cast<double>(var))));
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
