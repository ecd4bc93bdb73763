// What the forward and the backward pass of the attention share. Everything between x and the result stays in the blocked
// layout that the convolutions compute in (blocked.h).
#pragma once

#include "cpu/operators/blocked_gate.h"
#include "cpu/operators/gate_shuffle.h"
#include "cpu/operators/grouped_weights.h"
#include "cpu/plan.h"
#include "cpu/sigmoid.h"
#include "params/gcsa.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// The sizes of a call and of its maps.
template <class T>
struct GcsaShape {
    using A = accumulator<T>;
    int64_t N, C, h, m, H, W, P;  // h hidden channels of the channel gate, m between the convolutions
    int threads;

    explicit GcsaShape(const GcsaForward& p)
        : N(p.gate.map.batch),
          C(p.gate.map.channels),
          h(p.gate.hidden),
          m(p.hidden),
          H(p.height),
          W(p.width),
          P(H * W),
          threads(p.gate.map.threads) {}

    BlockedMap<A> map(A* data, int64_t channels) const { return {data, channels, H, W}; }
    int64_t blocks(int64_t channels) const { return (channels + lanes<A> - 1) / lanes<A>; }
    int64_t most_blocks() const { return std::max(blocks(C), blocks(m)); }  // m may be more than C
    int64_t map_size(int64_t channels, int64_t images) const { return images * blocks(channels) * P * lanes<A>; }
};

// True for a call whose convolutions are alike, without groups, and padded with zeros.
inline bool is_plain(const GcsaForward& p) {
    const int64_t k = p.conv1.kernel;
    return p.conv1.groups == 1 && p.conv2.groups == 1 && k == p.conv2.kernel && k > 1 && !p.replicate;
}

// Calls body(std::true_type) if `condition` holds, else body(std::false_type).
template <class Body>
inline void with_constant(bool condition, const Body& body) {
    condition ? body(std::true_type{}) : body(std::false_type{});
}

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
