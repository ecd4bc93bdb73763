// The part of CUDA's header of this name that the kernels use, on a CPU: every thread of a block is a fiber, which runs
// until it waits (emulation.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulation.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (gcsa_ext::cuda::emulation::current->thread)
#define blockIdx (gcsa_ext::cuda::emulation::current->block)
#define blockDim (gcsa_ext::cuda::emulation::current->block_size)
#define gridDim (gcsa_ext::cuda::emulation::current->grid_size)

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline void __syncthreads() { gcsa_ext::cuda::emulation::block_barrier("__syncthreads"); }

inline void __syncwarp(unsigned mask = 0xffffffffu) {
    gcsa_ext::cuda::emulation::collective<int, int>("__syncwarp", mask, 0, [](auto&, auto&) {});
}

namespace gcsa_ext::cuda::emulation {

// Each lane gets the value of lane source(lane).
template <class T, class Source>
T shuffle(const char* what, unsigned mask, T value, const Source& source) {
    return collective<T, T>(what, mask, value, [&](auto& in, auto& out) {
        for (int lane = 0; lane < 32; ++lane) {
            if (!out[lane]) continue;
            const int from = source(lane);
            if (!in[from]) fail(std::string(what) + " reads from a lane that is not in the mask");
            *out[lane] = *in[from];
        }
    });
}

}  // namespace gcsa_ext::cuda::emulation

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int width = 32) {
    return gcsa_ext::cuda::emulation::shuffle("__shfl_xor_sync", mask, value, [&](int lane) {
        const int from = lane ^ distance;
        return from / width > lane / width ? lane : from;
    });
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
    return gcsa_ext::cuda::emulation::shuffle("__shfl_down_sync", mask, value, [&](int lane) {
        return lane % width + int(distance) < width ? lane + int(distance) : lane;
    });
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
    return gcsa_ext::cuda::emulation::shuffle("__shfl_up_sync", mask, value, [&](int lane) {
        return lane % width >= int(distance) ? lane - int(distance) : lane;
    });
}

// Every lane names its source, so lanes exchange pairs of a value and a source.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    using Pair = std::pair<T, int>;
    return gcsa_ext::cuda::emulation::collective<Pair, T>(
        "__shfl_sync", mask, Pair{value, source}, [&](auto& in, auto& out) {
            for (int lane = 0; lane < 32; ++lane) {
                if (!out[lane]) continue;
                const int from = lane / width * width + (in[lane]->second & (width - 1));
                if (!in[from]) gcsa_ext::cuda::emulation::fail("__shfl_sync reads from a lane that is not in the mask");
                *out[lane] = in[from]->first;
            }
        }
    );
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return gcsa_ext::cuda::emulation::collective<int, unsigned>("__ballot_sync", mask, predicate, [](auto& in, auto& out) {
        unsigned all = 0;
        for (int lane = 0; lane < 32; ++lane) all |= in[lane] && *in[lane] ? 1u << lane : 0;
        for (auto* result : out) {
            if (result) *result = all;
        }
    });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

inline void __threadfence() {}
inline void __threadfence_block() {}

// Caching hints.
template <class T>
T __ldg(const T* address) {
    return *address;
}
template <class T>
T __ldcs(const T* address) {
    return *address;
}
template <class T>
T __ldcg(const T* address) {
    return *address;
}
template <class T>
void __stcs(T* address, T value) {
    *address = value;
}
template <class T>
void __stcg(T* address, T value) {
    *address = value;
}

using std::fmaxf, std::fminf;
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __int_as_float(int x) {
    float result;
    std::memcpy(&result, &x, sizeof result);
    return result;
}
inline unsigned __float_as_uint(float x) {
    unsigned result;
    std::memcpy(&result, &x, sizeof result);
    return result;
}
inline float __uint_as_float(unsigned x) { return __int_as_float(int(x)); }
