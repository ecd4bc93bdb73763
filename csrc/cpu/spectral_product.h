// A complex matrix product on one thread, for one frequency: C (M, L) = or += A (M, K) B (K, L) or A conj(B), where L are
// the lanes of one vector and complex numbers are stored as a vector of real parts and one of imaginary parts.
#pragma once

#include <cstdint>

#include "vector.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// Rows of C that stay in registers, two vectors each.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int product_rows = 8;
#else
constexpr int product_rows = 4;
#endif

// Element (m, k) of A: the real part at data + m * row_stride + k * k_stride, the imaginary part L elements behind it.
template <class T>
struct ComplexMatrix {
    const T* data;
    int64_t row_stride, k_stride;
};

template <class T, int rows, bool conjugate>
inline void product_block(
    int64_t K, ComplexMatrix<T> A, const T* B, int64_t b_stride, T* C, int64_t c_stride, bool accumulate
) {
    constexpr int L = lanes<T>;
    // Sums must not wait for each other: with few rows each is kept in several parts.
    constexpr int parts = rows >= 4 ? 1 : rows >= 2 ? 2 : 4;
    vec<T> re[parts][rows] = {}, im[parts][rows] = {};
    if (accumulate)
        for (int i = 0; i < rows; ++i) {
            re[0][i] = load(C + i * c_stride, Full<T>{});
            im[0][i] = load(C + i * c_stride + L, Full<T>{});
        }
    const auto step = [&](int64_t k, int part) {
        const T* const a = A.data + k * A.k_stride;
        const vec<T> b_re = load(B + k * b_stride, Full<T>{}), b_im = load(B + k * b_stride + L, Full<T>{});
        for (int i = 0; i < rows; ++i) {
            const T a_re = a[i * A.row_stride], a_im = a[i * A.row_stride + L];
            re[part][i] += a_re * b_re;
            im[part][i] += a_im * b_re;
            if constexpr (conjugate) {
                re[part][i] += a_im * b_im;
                im[part][i] -= a_re * b_im;
            } else {
                re[part][i] -= a_im * b_im;
                im[part][i] += a_re * b_im;
            }
        }
    };
    int64_t k = 0;
    for (; k + parts <= K; k += parts)
        for (int part = 0; part < parts; ++part) step(k + part, part);
    for (; k < K; ++k) step(k, 0);
    for (int i = 0; i < rows; ++i) {
        for (int part = 1; part < parts; ++part) {
            re[0][i] += re[part][i];
            im[0][i] += im[part][i];
        }
        store(C + i * c_stride, re[0][i], Full<T>{});
        store(C + i * c_stride + L, im[0][i], Full<T>{});
    }
}

template <class T, bool conjugate, int rows = product_rows>
inline void product(
    int64_t M, int64_t K, ComplexMatrix<T> A, const T* B, int64_t b_stride, T* C, int64_t c_stride, bool accumulate
) {
    for (; M >= rows; M -= rows) {
        product_block<T, rows, conjugate>(K, A, B, b_stride, C, c_stride, accumulate);
        A.data += rows * A.row_stride;
        C += rows * c_stride;
    }
    if constexpr (rows > 1) {
        if (M > 0) product<T, conjugate, rows - 1>(M, K, A, B, b_stride, C, c_stride, accumulate);
    }
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
