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

// Element (m, k) of A, k = segment * segment_length + j: the real part at data + m * row_stride + segment * segment_stride +
// j * k_stride, the imaginary part L elements behind it.
template <class T>
struct ComplexMatrix {
    const T* data;
    int64_t row_stride, segment_stride, k_stride;
};

struct SegmentedK {
    int64_t count, segment_length;  // count elements in segments, the last of which may be shorter
};

template <class T, int rows, bool conjugate>
inline void product_block(
    SegmentedK K, ComplexMatrix<T> A, const T* B, int64_t b_stride, T* C, int64_t c_stride, bool accumulate
) {
    constexpr int L = lanes<T>;
    vec<T> re[rows] = {}, im[rows] = {};
    if (accumulate)
        for (int i = 0; i < rows; ++i) {
            re[i] = load(C + i * c_stride, Full<T>{});
            im[i] = load(C + i * c_stride + L, Full<T>{});
        }
    const T* segment = A.data;
    for (int64_t left = K.count; left > 0; left -= K.segment_length, segment += A.segment_stride) {
        const int64_t length = left < K.segment_length ? left : K.segment_length;
        const T* a = segment;
        for (int64_t j = 0; j < length; ++j, a += A.k_stride, B += b_stride) {
            const vec<T> b_re = load(B, Full<T>{}), b_im = load(B + L, Full<T>{});
            for (int i = 0; i < rows; ++i) {
                const T a_re = a[i * A.row_stride], a_im = a[i * A.row_stride + L];
                re[i] += a_re * b_re;
                im[i] += a_im * b_re;
                if constexpr (conjugate) {
                    re[i] += a_im * b_im;
                    im[i] -= a_re * b_im;
                } else {
                    re[i] -= a_im * b_im;
                    im[i] += a_re * b_im;
                }
            }
        }
    }
    for (int i = 0; i < rows; ++i) {
        store(C + i * c_stride, re[i], Full<T>{});
        store(C + i * c_stride + L, im[i], Full<T>{});
    }
}

template <class T, bool conjugate, int rows = product_rows>
inline void product(
    int64_t M, SegmentedK K, ComplexMatrix<T> A, const T* B, int64_t b_stride, T* C, int64_t c_stride, bool accumulate
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
