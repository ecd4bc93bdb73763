// Elements of maps and packs of them, for code that is written once for all element types: sums are float32, and memory is
// accessed 16 bytes at a time.
#pragma once

#include <cstdint>

#include "map.h"
#include "platform.h"

namespace gcsa_ext::cuda {

using bfloat16 = __nv_bfloat16;
using float16 = __half;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(float16 x) { return __half2float(x); }

template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
    return x;
}
template <>
__device__ inline bfloat16 from_float<bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}
template <>
__device__ inline float16 from_float<float16>(float x) {
    return __float2half_rn(x);
}

// `count` elements that are loaded and stored by one instruction, of at most 16 bytes.
template <class T, int count>
struct alignas(sizeof(T) * count) Pack {
    static_assert(sizeof(T) * count <= 16 && (count & (count - 1)) == 0, "a power of two, at most 16 bytes");
    T at[count];
};

template <class T>
constexpr int elements_per_access = 16 / int(sizeof(T));

template <class T, int count>
__device__ inline Pack<T, count> load_pack(const T* address) {
    require_alignment(address, sizeof(T) * count);
    return *reinterpret_cast<const Pack<T, count>*>(address);
}

template <class T, int count>
__device__ inline void store_pack(T* address, const Pack<T, count>& pack) {
    require_alignment(address, sizeof(T) * count);
    *reinterpret_cast<Pack<T, count>*>(address) = pack;
}

__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// Calls function(T()) with the element type of a map.
template <class Function>
void with_element(DType dtype, const Function& function) {
    switch (dtype) {
        case DType::float32: return function(float());
        case DType::bfloat16: return function(bfloat16());
        case DType::float16: return function(float16());
        case DType::float64: return;  // refused by the bindings
    }
}

}  // namespace gcsa_ext::cuda
