// The emulation's counterpart of csrc/cuda/gpu/platform.h, where these functions are described.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <tuple>

#include "emulation.h"
#include "plan.h"

namespace gcsa_ext::cuda {

inline unsigned char* shared_memory() { return emulation::shared_memory(); }

inline void require_alignment(const void* address, int bytes) {
    if (reinterpret_cast<uintptr_t>(address) % bytes) {
        emulation::fail("an access of " + std::to_string(bytes) + " bytes is not aligned");
    }
}

inline void grid_barrier() { emulation::all_blocks_barrier(); }

inline void copy_async(void* shared, const void* global, int bytes = 16) {
    require_alignment(shared, 16);
    if (bytes > 0) require_alignment(global, 16);
    auto& groups = emulation::current->copies;
    if (groups.empty()) groups.emplace_back();
    groups.back().push_back({static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global), bytes, 16});
}

template <int bytes>
void copy_few_async(void* shared, const void* global) {
    require_alignment(shared, bytes);
    require_alignment(global, bytes);
    auto& groups = emulation::current->copies;
    if (groups.empty()) groups.emplace_back();
    groups.back().push_back({static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global), bytes, bytes});
}

inline void commit_copies() {
    auto& groups = emulation::current->copies;
    if (groups.empty()) groups.emplace_back();
    groups.emplace_back();
}

template <int newest>
void wait_for_copies() {
    auto& groups = emulation::current->copies;
    while (groups.size() > size_t(newest) + 1) {
        for (const auto& copy : groups.front()) {
            std::memset(copy.shared, 0, copy.written);
            std::memcpy(copy.shared, copy.global, copy.bytes);
        }
        groups.erase(groups.begin());
    }
}

namespace emulation {

template <int k, class Decode>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Decode& decode) {
    struct Operands {
        uint32_t a[4], b[2];
        float d[4];
    };
    struct Result {
        float d[4];
    };
    Operands operands;
    std::memcpy(operands.a, a, sizeof operands.a);
    std::memcpy(operands.b, b, sizeof operands.b);
    std::memcpy(operands.d, d, sizeof operands.d);
    const auto result = collective<Operands, Result>("mma", 0xffffffffu, operands, [&](auto& in, auto& out) {
        constexpr int per_register = k / 8;
        float left[16][k], right[k][8];
        for (int lane = 0; lane < 32; ++lane) {
            const int group = lane / 4, pair = lane % 4;
            for (int i = 0; i < 4; ++i) {
                for (int e = 0; e < per_register; ++e) {
                    left[group + i % 2 * 8][i / 2 * (k / 2) + pair * per_register + e] = decode(in[lane]->a[i], e);
                }
            }
            for (int i = 0; i < 2; ++i) {
                for (int e = 0; e < per_register; ++e) {
                    right[i * (k / 2) + pair * per_register + e][group] = decode(in[lane]->b[i], e);
                }
            }
        }
        for (int lane = 0; lane < 32; ++lane) {
            for (int i = 0; i < 4; ++i) {
                const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
                float sum = in[lane]->d[i];
                for (int j = 0; j < k; ++j) sum += left[row][j] * right[j][column];
                out[lane]->d[i] = sum;
            }
        }
    });
    std::memcpy(d, result.d, sizeof result.d);
}

template <int matrices, bool transposed>
void load_matrices(uint32_t (&r)[matrices], const void* row) {
    struct Result {
        uint32_t r[matrices];
    };
    if (current->lane < 8 * matrices) require_alignment(row, 16);
    const auto result = collective<const void*, Result>("ldmatrix", 0xffffffffu, row, [](auto& in, auto& out) {
        for (int lane = 0; lane < 32; ++lane) {
            for (int m = 0; m < matrices; ++m) {
                for (int e = 0; e < 2; ++e) {
                    const int group = lane / 4, column = lane % 4 * 2 + e;
                    const auto* found = static_cast<const uint16_t*>(*in[8 * m + (transposed ? column : group)]);
                    const uint32_t bits = found[transposed ? group : column];
                    out[lane]->r[m] = e == 0 ? bits : out[lane]->r[m] | bits << 16;
                }
            }
        }
    });
    std::memcpy(r, result.r, sizeof result.r);
}

}  // namespace emulation

inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) {
    emulation::multiply_add<16>(d, a, b, [](uint32_t bits, int e) { return __bfloat162float({uint16_t(bits >> 16 * e)}); });
}
inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) {
    emulation::multiply_add<16>(d, a, b, [](uint32_t bits, int e) { return __half2float({uint16_t(bits >> 16 * e)}); });
}
inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float) {
    // Tensor cores read only these bits.
    emulation::multiply_add<8>(d, a, b, [](uint32_t bits, int) { return __uint_as_float(bits & 0xffffe000u); });
}

inline uint32_t to_tf32(float x) {
    const uint32_t bits = __float_as_uint(x);
    return std::isfinite(x) ? (bits + 0x1000) & 0xffffe000u : bits;
}

inline void load_matrices(uint32_t (&r)[4], const void* row) { emulation::load_matrices<4, false>(r, row); }
inline void load_matrices(uint32_t (&r)[2], const void* row) { emulation::load_matrices<2, false>(r, row); }
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) { emulation::load_matrices<4, true>(r, row); }
inline void load_matrices_transposed(uint32_t (&r)[2], const void* row) { emulation::load_matrices<2, true>(r, row); }

inline std::string platform_error() { return ""; }
inline Device platform_limits(int) { return {3, 227 * 1024}; }

template <class Parameter>
void launch(void (*kernel)(Parameter), const Plan& plan, Stream, Parameter parameter) {
    check(plan);
    emulation::run(plan, [&] { kernel(parameter); });
}

}  // namespace gcsa_ext::cuda
