// The part of CUDA's header of this name that the kernels use, on a CPU: every thread of a block is a fiber, which runs
// until it waits (emulation.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulation.h"

#define __global__
#define __device__
#define __launch_bounds__(...)

#define threadIdx (gcsa_ext::cuda::emulation::current->thread)
#define blockIdx (gcsa_ext::cuda::emulation::current->block)
#define blockDim (gcsa_ext::cuda::emulation::current->block_size)
#define gridDim (gcsa_ext::cuda::emulation::current->grid_size)

inline void __syncthreads() { gcsa_ext::cuda::emulation::block_barrier("__syncthreads"); }

inline void __syncwarp(unsigned mask = 0xffffffffu) {
    gcsa_ext::cuda::emulation::collective<int, int>("__syncwarp", mask, 0, [](auto&, auto&) {});
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
    return gcsa_ext::cuda::emulation::collective<T, T>("__shfl_xor_sync", mask, value, [&](auto& in, auto& out) {
        for (int lane = 0; lane < 32; ++lane) {
            if (!out[lane]) continue;
            const auto& from = in[lane ^ distance];
            if (!from) gcsa_ext::cuda::emulation::fail("__shfl_xor_sync reads from a lane that is not in the mask");
            *out[lane] = *from;
        }
    });
}

using std::fmaxf, std::fminf;
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline unsigned __float_as_uint(float x) {
    unsigned result;
    std::memcpy(&result, &x, sizeof result);
    return result;
}
inline float __uint_as_float(unsigned x) {
    float result;
    std::memcpy(&result, &x, sizeof result);
    return result;
}
