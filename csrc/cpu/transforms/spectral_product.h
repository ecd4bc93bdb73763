// A complex matrix product on one thread, for one frequency: C (M, L) = or += A (M, K) B (K, L) or A conj(B), where L are
// the lanes of one vector and complex numbers are stored as a vector of real parts and one of imaginary parts. Or, for
// frequencies that stand for two real ones, the real product of each part.
#pragma once

#include <cstdint>

#include "cpu/transforms/fft.h"
#include "cpu/vector.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// Rows of C that stay in registers, and how many products of real numbers make one of complex numbers.
#if defined(__AVX512F__)
constexpr int product_rows = 8, real_products = 3;
#elif defined(__aarch64__)
constexpr int product_rows = 8, real_products = 4;
#else
constexpr int product_rows = 4, real_products = 4;
#endif

// How many vectors a complex vector takes in the spectra of tiles: with three products the sum of both parts is a third.
constexpr int input_parts = real_products == 3 ? 3 : 2;

// Cache lines that are prefetched one by one, one with every k.
template <class T>
struct Lines {
    const T* first;
    int64_t stride, segment_stride;  // between lines of consecutive k, and between the first lines of segments
};

// The spectra of tiles at one frequency as A, (tiles, channels) or (channels, tiles): element (m, k) at m * row_stride + k *
// k_stride, but after every `segment` values of k `segment_stride` elements further on. Its parts are L elements apart.
//
// The next operand lies `ahead` elements further on. It is prefetched while this one is multiplied, ahead_step<rows>
// elements with every k, which add up to a whole block of channels. Where there are enough rows to multiply, a cache line of
// `later` is prefetched with every k too.
template <class T>
struct TilesByChannels {
    const T* data;
    int64_t segment_stride;  // between blocks of channels
    int64_t ahead;           // to the same tiles at the next frequency: jumps that no prefetcher foresees
    Lines<T> later;          // the weights of a later product
    static constexpr int64_t row_stride = input_parts * lanes<T>, k_stride = 1, segment = lanes<T>;
    static constexpr bool prefetches_later = true;
    template <int rows>
    static constexpr int64_t ahead_step = rows * input_parts;
};
template <class T>
struct ChannelsByTiles {
    const T* data;
    static constexpr int64_t row_stride = 1, k_stride = input_parts * lanes<T>, segment = INT64_MAX / 2, segment_stride = 0;
    static constexpr bool prefetches_later = false;
    static constexpr int64_t ahead = 8 * k_stride;  // tiles; with few tiles they are about those of the next frequency
    template <int rows>
    static constexpr int64_t ahead_step = k_stride;
};

// The running sum of products of a = a1 + i a2, the same in all lanes, and b1 + i b2 or, with `conjugate`, b1 - i b2.
template <class T, int products, bool conjugate>
struct ComplexSum;

template <class T, bool conjugate>
struct ComplexSum<T, 4, conjugate> {
    using Element = T;
    vec<T> re{}, im{};

    using Factor = Complex<T>;
    static Factor factor(vec<T> b1, vec<T> b2) { return {b1, b2}; }
    void add(const T* a, Factor b) {
        const T a1 = a[0], a2 = a[lanes<T>];
        re += a1 * b.re;
        im += a2 * b.re;
        if constexpr (conjugate) {
            re += a2 * b.im;
            im -= a1 * b.im;
        } else {
            re -= a2 * b.im;
            im += a1 * b.im;
        }
    }
    void add(const ComplexSum& other) {
        re += other.re;
        im += other.im;
    }
    Complex<T> value() const { return {re, im}; }
};

// With p = (a1 + a2) b1, q = a1 (b2 - b1) and r = a2 (b1 + b2) the product is p - r + i (p + q).
template <class T, bool conjugate>
struct ComplexSum<T, 3, conjugate> {
    using Element = T;
    vec<T> p{}, q{}, r{};

    struct Factor {
        vec<T> b1, difference, sum;
    };
    static Factor factor(vec<T> b1, vec<T> b2) { return {b1, b2 - b1, b1 + b2}; }
    void add(const T* a, Factor b) {
        const T a1 = a[0], a2 = a[lanes<T>], sum = a[2 * lanes<T>];
        p += sum * b.b1;
        if constexpr (conjugate) {
            q -= a1 * b.sum;
            r -= a2 * b.difference;
        } else {
            q += a1 * b.difference;
            r += a2 * b.sum;
        }
    }
    void add(const ComplexSum& other) {
        p += other.p;
        q += other.q;
        r += other.r;
    }
    Complex<T> value() const { return {p - r, p + q}; }
};

template <class T, bool conjugate>
using Sum = ComplexSum<T, real_products, conjugate>;

// The sums of a1 b1 and of a2 b2.
template <class T>
struct RealSums {
    using Element = T;
    vec<T> first{}, second{};

    using Factor = Complex<T>;
    static Factor factor(vec<T> b1, vec<T> b2) { return {b1, b2}; }
    void add(const T* a, Factor b) {
        first += a[0] * b.re;
        second += a[lanes<T>] * b.im;
    }
    void add(const RealSums& other) {
        first += other.first;
        second += other.second;
    }
    Complex<T> value() const { return {first, second}; }
};

template <class Sum, int rows, class Matrix, class T = typename Sum::Element>
GCSA_EXT_INLINE void product_block(
    int64_t K, Matrix A, const T* B, int64_t b_stride, T* C, int64_t c_stride, bool accumulate
) {
    constexpr int L = lanes<T>;
    constexpr int64_t ahead_step = Matrix::template ahead_step<rows>;
    constexpr bool prefetches_later = Matrix::prefetches_later && rows == product_rows;
    constexpr int64_t factors_ahead = 4;  // values of k
    // Additions must not wait for each other: with few rows each sum is split into several.
    constexpr int parts = rows >= 4 ? 1 : rows >= 2 ? 2 : 4;
    for (int i = 0; i < rows; ++i) prefetch_to_write(C + i * c_stride, 2 * L);
    Sum sum[parts][rows];
    const T *ahead, *later;
    const auto step = [&](const T* a, const T* b, int part) {
        prefetch(ahead, ahead_step);
        prefetch(b + factors_ahead * b_stride, 2 * L);
        ahead += ahead_step;
        if constexpr (prefetches_later) {
            prefetch(later, 1);
            later += A.later.stride;
        }
        const auto factor = Sum::factor(load(b, Full<T>{}), load(b + L, Full<T>{}));
        for (int i = 0; i < rows; ++i) sum[part][i].add(a + i * A.row_stride, factor);
    };
    for (; K > 0; K -= A.segment, A.data += A.segment_stride) {
        const T* a = A.data;
        ahead = a + A.ahead;
        if constexpr (prefetches_later) {
            later = A.later.first;
            A.later.first += A.later.segment_stride;
        }
        int64_t left = K < A.segment ? K : A.segment;
        for (; left >= parts; left -= parts)
            for (int part = 0; part < parts; ++part, a += A.k_stride, B += b_stride) step(a, B, part);
        for (; left > 0; --left, a += A.k_stride, B += b_stride) step(a, B, 0);
    }
    for (int i = 0; i < rows; ++i) {
        for (int part = 1; part < parts; ++part) sum[0][i].add(sum[part][i]);
        Complex<T> value = sum[0][i].value();
        T* const to = C + i * c_stride;
        if (accumulate) value = value + Complex<T>{load(to, Full<T>{}), load(to + L, Full<T>{})};
        store(to, value.re, Full<T>{});
        store(to + L, value.im, Full<T>{});
    }
}

template <class Sum, class Matrix, int rows = product_rows, class T = typename Sum::Element>
inline void product(int64_t M, int64_t K, Matrix A, const T* B, int64_t b_stride, T* C, int64_t c_stride, bool accumulate) {
    for (; M >= rows; M -= rows) {
        product_block<Sum, rows>(K, A, B, b_stride, C, c_stride, accumulate);
        A.data += rows * A.row_stride;
        C += rows * c_stride;
    }
    if constexpr (rows > 1) {
        if (M > 0) product<Sum, Matrix, rows - 1>(M, K, A, B, b_stride, C, c_stride, accumulate);
    }
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
