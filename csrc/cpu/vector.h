// Vectors as wide as a register of the instruction set that this file is compiled for. They are the compilers' vector
// extensions (GCC, Clang), so that the same source serves every machine.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "params/tensor.h"

#ifndef GCSA_EXT_ISA
#error "kernels are compiled once per instruction set: define GCSA_EXT_ISA and GCSA_EXT_VECTOR_BYTES"
#endif

// For functions of vectors: a call would pass them through memory.
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

// Calls body(element) with a value of the element type.
template <class Body>
inline void with_element(DType dtype, const Body& body) {
    switch (dtype) {
        case DType::float32: return body(float{});
        case DType::float64: return body(double{});
        case DType::bfloat16: return body(bfloat16{});
        case DType::float16: return;  // refused by the bindings
    }
}

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

// The count of a full vector, known at compile time.
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
    constexpr int n = lanes<accumulator<T>>;
    T lane[n];
    store(lane, value, Full<T>{});
    if (count >= n) {
        __builtin_memcpy(to, lane, sizeof(lane));
        return;
    }
    int done = 0;
    const auto copy = [&](auto size) {  // of a constant size: one move or two
        if (count & size) {
            __builtin_memcpy(to + done, lane + done, size * sizeof(T));
            done += size;
        }
    };
    static_assert(n <= 32);
    if constexpr (n > 16) copy(std::integral_constant<int, 16>{});
    if constexpr (n > 8) copy(std::integral_constant<int, 8>{});
    if constexpr (n > 4) copy(std::integral_constant<int, 4>{});
    if constexpr (n > 2) copy(std::integral_constant<int, 2>{});
    copy(std::integral_constant<int, 1>{});
}

// Prefetch the cache lines of `count` elements, to read or to write them. The last line may be left out where the elements
// do not begin with a line. The addresses need not be mapped. Always inlined, since GCC removes calls of functions that only
// prefetch as having no effect.
constexpr int64_t cache_line = 64;  // bytes
template <class T>
GCSA_EXT_INLINE void prefetch(const T* from, int64_t count) {
    for (int64_t i = 0; i < count; i += cache_line / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(from + i);
}
template <class T>
GCSA_EXT_INLINE void prefetch_to_write(T* to, int64_t count) {
    for (int64_t i = 0; i < count; i += cache_line / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(to + i, 1);
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

// The elements with these numbers of two vectors, one behind the other.
template <class T, int... k>
GCSA_EXT_INLINE vec<T> shuffle(vec<T> a, vec<T> b) {
#if __has_builtin(__builtin_shufflevector)
    return __builtin_shufflevector(a, b, k...);
#else  // GCC before 12
    return __builtin_shuffle(a, b, vec<integer<T>>{k...});
#endif
}

// Two rows of a 2 step x 2 step square, `step` apart; returns the first or the second one after the off-diagonal quarters of
// the square were swapped.
template <class T, int step, bool second, int... k>
GCSA_EXT_INLINE vec<T> swap_quarters(vec<T> a, vec<T> b, std::integer_sequence<int, k...>) {
    constexpr int from_a = second ? step : 0, from_b = lanes<T> + from_a - step;
    return shuffle<T, (k & step ? k + from_b : k + from_a)...>(a, b);
}

// Transposes every square of `count` x `count` in `count` vectors: swaps the off-diagonal quarters of every 2 step x 2 step
// square, for step = 1, 2, 4, ... (Eklundh).
template <class T, int count = lanes<T>, int step = 1>
GCSA_EXT_INLINE void transpose(vec<T>* rows) {
    if constexpr (step < count) {
        constexpr std::make_integer_sequence<int, lanes<T>> all;
        for (int i = 0; i < count; ++i) {
            if (i & step) continue;
            const vec<T> a = rows[i], b = rows[i + step];
            rows[i] = swap_quarters<T, step, false>(a, b, all);
            rows[i + step] = swap_quarters<T, step, true>(a, b, all);
        }
        transpose<T, count, step * 2>(rows);
    }
}

// Transposes a square in registers: row(i) returns its rows for i = 0 ... rows - 1, the others are zero; column(i, vector)
// takes its columns for i = 0 ... columns - 1.
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

// join: a vector of two halves. load_pieces: a vector of pieces of 16 bytes that lie `distance` elements apart in memory.
template <class T, int bytes, int... k>
GCSA_EXT_INLINE auto join(
    typename VectorOf<T, bytes / 2>::type low, typename VectorOf<T, bytes / 2>::type high, std::integer_sequence<int, k...>
) {
#if __has_builtin(__builtin_shufflevector)
    return __builtin_shufflevector(low, high, k...);
#else
    const struct {
        decltype(low) first, second;
    } halves{low, high};
    return bit_cast<typename VectorOf<T, bytes>::type>(halves);
#endif
}
template <class T, int bytes = GCSA_EXT_VECTOR_BYTES>
GCSA_EXT_INLINE auto load_pieces(const T* from, int64_t distance) {
    if constexpr (bytes == 16) {
        typename VectorOf<T, 16>::type piece;
        __builtin_memcpy(&piece, from, 16);
        return piece;
    } else {
        const auto low = load_pieces<T, bytes / 2>(from, distance);
        const auto high = load_pieces<T, bytes / 2>(from + bytes / 32 * distance, distance);
        return join<T, bytes>(low, high, std::make_integer_sequence<int, bytes / static_cast<int>(sizeof(T))>{});
    }
}

// transpose_square of rows in memory, `stride` elements apart. In a full square, pieces of 16 bytes that move as a whole are
// loaded to their new places, which saves half of the permutations.
template <class T, class Column>
GCSA_EXT_INLINE void transpose_rows(const T* from, int64_t stride, int64_t rows, int64_t columns, const Column& column) {
    using A = accumulator<T>;
    constexpr int n = lanes<A>;
    if constexpr (std::is_same_v<T, A>) {
        constexpr int piece = 16 / sizeof(T);
        if (rows >= n && columns >= n) {
            for (int first = 0; first < n; first += piece) {
                vec<T> square[piece];
                for (int i = 0; i < piece; ++i) square[i] = load_pieces(from + i * stride + first, piece * stride);
                transpose<T, piece>(square);
                for (int i = 0; i < piece; ++i) column(first + i, square[i]);
            }
            return;
        }
    }
    const auto row = [&](int i) {
        const T* const at = from + i * stride;
        return columns >= n ? load(at, Full<T>{}) : load(at, static_cast<int>(columns));
    };
    transpose_square<A>(rows, columns, row, column);
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
