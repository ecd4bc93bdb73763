// Vectors of one register's width for the instruction set this file is compiled for, on compiler vector extensions
// (GCC, Clang), so that the same source serves every machine.
#pragma once

#include <cstdint>
#include <type_traits>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "../tensor.h"

#ifndef GCSA_EXT_ISA
#error "kernels are compiled once per instruction set: define GCSA_EXT_ISA and GCSA_EXT_VECTOR_BYTES"
#endif

// A call would pass all of its vectors through memory.
#define GCSA_EXT_INLINE __attribute__((always_inline)) inline

// Everything lives in the instruction set's own namespace: were two object files to share the name of an inline function,
// the linker would keep either one, and a plain machine could meet AVX-512 code.
namespace gcsa_ext::cpu::GCSA_EXT_ISA {

struct bfloat16 {
    uint16_t bits;
};

// The type that values of T are computed and summed in.
template <class T>
struct AccumulatorOf {
    using type = T;
};
template <>
struct AccumulatorOf<bfloat16> {
    using type = float;
};
template <class T>
using accumulator = typename AccumulatorOf<T>::type;

template <class T, int bytes>
struct VectorOf {
    typedef T type __attribute__((vector_size(bytes)));
};
template <class T>
using vec = typename VectorOf<T, GCSA_EXT_VECTOR_BYTES>::type;
template <class T>
constexpr int lanes = GCSA_EXT_VECTOR_BYTES / sizeof(T);

template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
    using type = int32_t;
};
template <>
struct IntegerOf<double> {
    using type = int64_t;
};
template <class T>
using integer = typename IntegerOf<T>::type;

template <class To, class From>
inline To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}

template <class T>
inline vec<T> broadcast(T value) {
    return value - vec<T>{};  // not a sum: 0 + -0 is 0, so compilers would carry it out
}

// ---- loads and stores: unaligned, any element type to and from its accumulator ----

// A full vector, as a count known at compile time.
template <class T>
struct Full {
    constexpr operator int() const { return lanes<accumulator<T>>; }
};

using half_width_bits = typename VectorOf<uint16_t, GCSA_EXT_VECTOR_BYTES / 2>::type;

inline vec<float> widen(half_width_bits bits) {
    return bit_cast<vec<float>>(__builtin_convertvector(bits, vec<uint32_t>) << 16);
}

// Round to nearest even; NaN stays NaN.
inline half_width_bits narrow(vec<float> value) {
    const auto bits = bit_cast<vec<uint32_t>>(value);
    const auto rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector(value == value ? rounded : vec<uint32_t>{} + 0x7fc0, half_width_bits);
}

template <class T>
inline vec<accumulator<T>> load(const T* from, Full<T>) {
    if constexpr (std::is_same_v<T, bfloat16>) {
        half_width_bits bits;
        __builtin_memcpy(&bits, from, sizeof(bits));
        return widen(bits);
    } else {
        vec<T> value;
        __builtin_memcpy(&value, from, sizeof(value));
        return value;
    }
}
// The first `count` lanes; the others are zero.
template <class T>
inline vec<accumulator<T>> load(const T* from, int count) {
    T lane[lanes<accumulator<T>>] = {};
    for (int i = 0; i < count; ++i) lane[i] = from[i];
    return load(lane, Full<T>{});
}

template <class T>
inline void store(T* to, vec<accumulator<T>> value, Full<T>) {
    if constexpr (std::is_same_v<T, bfloat16>) {
        const auto bits = narrow(value);
        __builtin_memcpy(to, &bits, sizeof(bits));
    } else {
        __builtin_memcpy(to, &value, sizeof(value));
    }
}
template <class T>
inline void store(T* to, vec<accumulator<T>> value, int count) {
    T lane[lanes<accumulator<T>>];
    store(lane, value, Full<T>{});
    for (int i = 0; i < count; ++i) to[i] = lane[i];
}

// Copy with conversion between an element type and its accumulator.
template <class T>
inline void load_row(const T* from, int64_t count, accumulator<T>* to) {
    using A = accumulator<T>;
    int64_t i = 0;
    for (; i + lanes<A> <= count; i += lanes<A>) store(to + i, load(from + i, Full<T>{}), Full<A>{});
    if (i < count) store(to + i, load(from + i, static_cast<int>(count - i)), static_cast<int>(count - i));
}
template <class T>
inline void store_row(T* to, int64_t count, const accumulator<T>* from) {
    using A = accumulator<T>;
    int64_t i = 0;
    for (; i + lanes<A> <= count; i += lanes<A>) store(to + i, load(from + i, Full<A>{}), Full<T>{});
    if (i < count) store(to + i, load(from + i, static_cast<int>(count - i)), static_cast<int>(count - i));
}

// ---- functions of a vector ----

template <class T>
inline vec<T> relu(vec<T> x) {
    return x < 0 ? vec<T>{} : x;  // keeps NaN, as torch.relu does
}

// ---- transposition of a square of lanes x lanes, in registers ----

// Swap the off-diagonal quarters of every 2 step x 2 step square, for step = 1, 2, 4, ... (Eklundh).
template <class T, int step = 1>
GCSA_EXT_INLINE void transpose(vec<T>* rows) {
    constexpr int n = lanes<T>;
    if constexpr (step < n) {
        vec<integer<T>> upper{}, lower{};
        for (int k = 0; k < n; ++k) {
            upper[k] = (k & step) ? n + k - step : k;
            lower[k] = (k & step) ? n + k : k + step;
        }
        for (int i = 0; i < n; ++i) {
            if (i & step) continue;
            const vec<T> a = rows[i], b = rows[i + step];
#if defined(__clang__)
            for (int k = 0; k < n; ++k) {
                rows[i][k] = (k & step) ? b[k - step] : a[k];
                rows[i + step][k] = (k & step) ? b[k] : a[k + step];
            }
#else
            rows[i] = __builtin_shuffle(a, b, upper);
            rows[i + step] = __builtin_shuffle(a, b, lower);
#endif
        }
        transpose<T, step * 2>(rows);
    }
}

// row(i) gives the rows of a square for i = 0 ... rows - 1, the others are zero; column(i, vector) takes its columns for i =
// 0 ... columns - 1. All stays in registers.
template <class T, class Row, class Column>
GCSA_EXT_INLINE void transpose_square(int64_t rows, int64_t columns, const Row& row, const Column& column) {
    constexpr int n = lanes<T>;
    vec<T> square[n];
    if (rows >= n)
        for (int i = 0; i < n; ++i) square[i] = row(i);
    else
        for (int i = 0; i < n; ++i) square[i] = i < rows ? row(i) : vec<T>{};
    transpose<T>(square);
    if (columns >= n)
        for (int i = 0; i < n; ++i) column(i, square[i]);
    else
        for (int i = 0; i < n; ++i)
            if (i < columns) column(i, square[i]);
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
