// The processor's matrix registers (Intel AMX): eight of at most 16 rows of 64 bytes, which multiply matrices of bfloat16
// into sums in float32.
#pragma once

#include <cstdint>
#include <utility>

#include "cpu/vector.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

constexpr int matrix_rows = 16, matrix_lanes = 16;  // of sums
constexpr int matrix_depth = 32;                    // how many products are added to a sum at a time
constexpr int matrix_elements = matrix_rows * matrix_depth;

template <int... i>
GCSA_EXT_INLINE vec<uint16_t> alternate_halves(vec<uint16_t> v, std::integer_sequence<int, i...>) {
    constexpr int half = sizeof...(i) / 2;
    const vec<uint16_t> from{static_cast<uint16_t>(i / 2 + i % 2 * half)...};
    return bit_cast<vec<uint16_t>>(_mm512_permutexvar_epi16(bit_cast<__m512i>(from), bit_cast<__m512i>(v)));
}

// Store two vectors as bfloat16, one behind the other or with their lanes in pairs; denormal numbers become zero.
GCSA_EXT_INLINE void store_rounded(bfloat16* to, vec<float> first, vec<float> second) {
    const auto both = _mm512_cvtne2ps_pbh(second, first);
    __builtin_memcpy(to, &both, sizeof(both));
}
GCSA_EXT_INLINE void store_pairs_rounded(bfloat16* to, vec<float> first, vec<float> second) {
    const auto both = bit_cast<vec<uint16_t>>(_mm512_cvtne2ps_pbh(second, first));
    const auto pairs = alternate_halves(both, std::make_integer_sequence<int, 32>{});
    __builtin_memcpy(to, &pairs, sizeof(pairs));
}

// Configures the thread's registers while it lives: 0 ... 5 have `rows` rows, the last two, for right factors, all 16.
class MatrixRegisters {
   public:
    explicit MatrixRegisters(int rows) {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {};
            uint8_t rows[16] = {};
        } shapes;
        static_assert(sizeof(shapes) == 64);
        for (int i = 0; i < 8; ++i)
            shapes.row_bytes[i] = 64, shapes.rows[i] = static_cast<uint8_t>(i < 6 ? rows : matrix_rows);
        asm volatile("ldtilecfg %0" ::"m"(shapes));
    }
    ~MatrixRegisters() { asm volatile("tilerelease"); }
    MatrixRegisters(const MatrixRegisters&) = delete;
    MatrixRegisters& operator=(const MatrixRegisters&) = delete;
};

// Calls body with every number as a constant.
template <int... i, class Body>
GCSA_EXT_INLINE void for_each_number(std::integer_sequence<int, i...>, const Body& body) {
    (body(std::integral_constant<int, i>{}), ...);
}

// Assembly, since the compilers' intrinsics take no register number from a template.
template <int number>
GCSA_EXT_INLINE void zero_register() {
    asm volatile("tilezero %%tmm%c0" ::"i"(number));
}
// Rows lie `stride` elements apart.
template <int number, class T>
GCSA_EXT_INLINE void load_register(const T* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride * static_cast<int64_t>(sizeof(T))), "i"(number)
                 : "memory");
}
template <int number>
GCSA_EXT_INLINE void store_register(float* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride * int64_t(4)), "i"(number) : "memory");
}
// sums[i][j] += a[i][2 k] b[k][2 j] + a[i][2 k + 1] b[k][2 j + 1] for all k: rows of b hold pairs. Denormal numbers count as
// zero.
template <int sums, int a, int b>
GCSA_EXT_INLINE void multiply_registers() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(a), "i"(b));
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
