// A small matrix product on one thread: C (M, N) = or += A (M, K) B (K, N).
#pragma once

#include <cstdint>

#include "cpu/vector.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// The block of C that is in registers: block_rows x (block_vectors * lanes). 24 of 32 registers (AVX-512, aarch64) hold
// sums, or 12 of 16 (AVX2, SSE).
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int block_rows = 6, block_vectors = 4;
#else
constexpr int block_rows = 6, block_vectors = 2;
#endif

template <class T>
struct MatrixView {
    const T* data;
    int64_t row_stride, column_stride;
};

template <class T, int rows, int vectors>
GCSA_EXT_INLINE void matmul_block(
    int64_t K, MatrixView<T> A, const T* B, int64_t b_stride, T* C, int64_t c_stride, bool accumulate
) {
    vec<T> sum[rows][vectors] = {};
    for (int64_t k = 0; k < K; ++k) {
        vec<T> b[vectors];
        for (int j = 0; j < vectors; ++j) b[j] = load(B + k * b_stride + j * lanes<T>, Full<T>{});
        for (int i = 0; i < rows; ++i) {
            const T a = A.data[i * A.row_stride + k * A.column_stride];
            for (int j = 0; j < vectors; ++j) sum[i][j] += a * b[j];
        }
    }
    // The previous value of C is added last: a sum over many tiles then adds up the sums of tiles instead of single
    // products, with fewer rounding errors.
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < vectors; ++j) {
            T* const to = C + i * c_stride + j * lanes<T>;
            store(to, accumulate ? load(to, Full<T>{}) + sum[i][j] : sum[i][j], Full<T>{});
        }
}

// All rows of one panel of columns. The rows that do not fill a block go to smaller blocks.
template <class T, int vectors, int rows = block_rows>
inline void matmul_panel(
    int64_t M, int64_t K, MatrixView<T> A, const T* B, int64_t b_stride, T* C, int64_t c_stride, bool accumulate
) {
    int64_t i = 0;
    for (; i + rows <= M; i += rows)
        matmul_block<T, rows, vectors>(
            K, {A.data + i * A.row_stride, A.row_stride, A.column_stride}, B, b_stride, C + i * c_stride, c_stride,
            accumulate
        );
    if constexpr (rows > 1) {
        if (i < M)
            matmul_panel<T, vectors, rows - 1>(
                M - i, K, {A.data + i * A.row_stride, A.row_stride, A.column_stride}, B, b_stride, C + i * c_stride,
                c_stride, accumulate
            );
    }
}

// The columns that do not fill a panel are one narrower panel.
template <class T, int vectors>
inline void matmul_rest(
    int64_t M, int64_t N, int64_t K, MatrixView<T> A, const T* B, int64_t b_stride, T* C, int64_t c_stride, bool accumulate
) {
    if (N == vectors * lanes<T>) return matmul_panel<T, vectors>(M, K, A, B, b_stride, C, c_stride, accumulate);
    if constexpr (vectors > 1) matmul_rest<T, vectors - 1>(M, N, K, A, B, b_stride, C, c_stride, accumulate);
}

// N is a multiple of the vector's lanes: pad B and C.
template <class T>
inline void matmul(
    int64_t M, int64_t N, int64_t K, MatrixView<T> A, const T* B, int64_t b_stride, T* C, int64_t c_stride, bool accumulate
) {
    constexpr int64_t panel = block_vectors * lanes<T>;
    int64_t j = 0;
    for (; j + panel <= N; j += panel) matmul_panel<T, block_vectors>(M, K, A, B + j, b_stride, C + j, c_stride, accumulate);
    matmul_rest<T, block_vectors - 1>(M, N - j, K, A, B + j, b_stride, C + j, c_stride, accumulate);
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
