// Short complex Fourier transforms of many signals at once, one per vector lane.
//
//   X[k] = sum_n x[n] exp(-2 pi i n k / N)
//
// N = N1 N2 in two steps (Cooley and Tukey, 1965): with n = N2 n1 + n2 and k = k1 + N1 k2,
//
//   X[k1 + N1 k2] = sum_n2 W_N2^(n2 k2) W_N^(n2 k1) sum_n1 W_N1^(n1 k1) x[N2 n1 + n2],    W_N = exp(-2 pi i / N)
//
// the inner sums being transforms of 2 to 10 points, written out below. The inverse without its factor 1 / N is the same
// transform with real and imaginary parts exchanged, of the argument and of the result.
#pragma once

#include <cstdint>

#include "cpu/vector.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

template <class T>
struct Complex {
    vec<T> re, im;
};

// ---- cosine and sine of 2 pi k / n, at compile time: no initialiser of this instruction set may run at load time ----

// The sum of the Taylor series of the cosine (first = 0) or the sine (first = 1); |x| <= pi / 4.
constexpr double taylor(double x, int first) {
    double term = first ? x : 1, sum = term;
    for (int k = first + 1; k < 24; k += 2) {
        term *= -x * x / (k * (k + 1));
        sum += term;
    }
    return sum;
}
constexpr double cos_turn(int k, int n) {
    constexpr double pi = 3.14159265358979323846;
    k %= n;
    if (2 * k > n) k = n - k;                                     // cos(2 pi - a) = cos(a)
    if (4 * k > n) return -cos_turn(n - 2 * k, 2 * n);            // cos(a) = -cos(pi - a)
    if (8 * k > n) return taylor(pi * (n - 4 * k) / (2 * n), 1);  // cos(a) = sin(pi / 2 - a)
    return taylor(2 * pi * k / n, 0);
}
constexpr double sin_turn(int k, int n) { return cos_turn(3 * n + 4 * k, 4 * n); }  // sin(a) = cos(a - pi / 2)

// cos and -sin of 2 pi n2 k1 / (N1 N2): the factors W_N^(n2 k1).
template <class T, int N1, int N2>
struct TwiddleTable {
    T re[N2][N1], im[N2][N1];
    constexpr TwiddleTable() : re(), im() {
        for (int n2 = 0; n2 < N2; ++n2)
            for (int k1 = 0; k1 < N1; ++k1) {
                re[n2][k1] = T(cos_turn(n2 * k1, N1 * N2));
                im[n2][k1] = T(-sin_turn(n2 * k1, N1 * N2));
            }
    }
};
template <class T, int N1, int N2>
constexpr TwiddleTable<T, N1, N2> twiddles;

// ---- transforms of a few points, in place ----

template <class T>
inline Complex<T> operator+(Complex<T> a, Complex<T> b) {
    return {a.re + b.re, a.im + b.im};
}
template <class T>
inline Complex<T> operator-(Complex<T> a, Complex<T> b) {
    return {a.re - b.re, a.im - b.im};
}
template <class T>
inline Complex<T> times_minus_i(Complex<T> a) {
    return {a.im, -a.re};
}
// a (re + i im)
template <class T>
inline Complex<T> times(Complex<T> a, T re, T im) {
    return {a.re * re - a.im * im, a.re * im + a.im * re};
}

template <class T, int N>
GCSA_EXT_INLINE void dft(Complex<T>* x);

// The two steps on registers.
template <class T, int N1, int N2>
GCSA_EXT_INLINE void dft_of_product(Complex<T>* x) {
    constexpr const auto& w = twiddles<T, N1, N2>;
    Complex<T> t[N2][N1];
    for (int n2 = 0; n2 < N2; ++n2) {
        for (int n1 = 0; n1 < N1; ++n1) t[n2][n1] = x[N2 * n1 + n2];
        dft<T, N1>(t[n2]);
        if (n2)
            for (int k1 = 1; k1 < N1; ++k1) t[n2][k1] = times<T>(t[n2][k1], w.re[n2][k1], w.im[n2][k1]);
    }
    for (int k1 = 0; k1 < N1; ++k1) {
        Complex<T> row[N2];
        for (int n2 = 0; n2 < N2; ++n2) row[n2] = t[n2][k1];
        dft<T, N2>(row);
        for (int k2 = 0; k2 < N2; ++k2) x[k1 + N1 * k2] = row[k2];
    }
}

template <class T, int N>
GCSA_EXT_INLINE void dft(Complex<T>* x) {
    if constexpr (N == 2) {
        const auto a = x[0], b = x[1];
        x[0] = a + b;
        x[1] = a - b;
    } else if constexpr (N == 3) {
        constexpr T s = T(sin_turn(1, 3));
        const auto sum = x[1] + x[2], difference = times_minus_i(x[1] - x[2]);
        const Complex<T> middle{x[0].re - T(0.5) * sum.re, x[0].im - T(0.5) * sum.im};
        x[0] = x[0] + sum;
        x[1] = {middle.re + s * difference.re, middle.im + s * difference.im};
        x[2] = {middle.re - s * difference.re, middle.im - s * difference.im};
    } else if constexpr (N == 4) {
        const auto a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3], d = times_minus_i(x[1] - x[3]);
        x[0] = a + c;
        x[1] = b + d;
        x[2] = a - c;
        x[3] = b - d;
    } else if constexpr (N == 5) {
        constexpr T c1 = T(cos_turn(1, 5)), c2 = T(cos_turn(2, 5)), s1 = T(sin_turn(1, 5)), s2 = T(sin_turn(2, 5));
        const auto a = x[1] + x[4], b = x[2] + x[3];
        const auto c = times_minus_i(x[1] - x[4]), d = times_minus_i(x[2] - x[3]);
        const Complex<T> p{x[0].re + c1 * a.re + c2 * b.re, x[0].im + c1 * a.im + c2 * b.im};
        const Complex<T> q{x[0].re + c2 * a.re + c1 * b.re, x[0].im + c2 * a.im + c1 * b.im};
        const Complex<T> r{s1 * c.re + s2 * d.re, s1 * c.im + s2 * d.im};
        const Complex<T> t{s2 * c.re - s1 * d.re, s2 * c.im - s1 * d.im};
        x[0] = x[0] + a + b;
        x[1] = p + r;
        x[2] = q + t;
        x[3] = q - t;
        x[4] = p - r;
    } else if constexpr (N == 6) {
        dft_of_product<T, 2, 3>(x);
    } else if constexpr (N == 8) {
        dft_of_product<T, 2, 4>(x);
    } else if constexpr (N == 10) {
        dft_of_product<T, 2, 5>(x);
    }
}

// ---- the two-step transform ----

// A sequence of complex vectors: element i at re + i * stride and im + i * stride, strides in scalars. In a sequence of
// three parts, the sum of both lies as far behind the imaginary part as that lies behind the real part.
template <class T>
struct Sequence {
    T *re, *im;
    int64_t stride;
};

template <class T>
GCSA_EXT_INLINE Complex<T> get(Sequence<T> from, int64_t at) {
    return {load(from.re + at, Full<T>{}), load(from.im + at, Full<T>{})};
}
template <int parts, class T>
GCSA_EXT_INLINE void put(Sequence<T> to, int64_t at, Complex<T> value) {
    store(to.re + at, value.re, Full<T>{});
    store(to.im + at, value.im, Full<T>{});
    if constexpr (parts == 3) store(to.im + (to.im - to.re) + at, value.re + value.im, Full<T>{});
}

// The inner transforms and the factors: element(n) is x[n], t[n2][k1] the sum over n1.
template <class T, int N1, int N2, class Element>
GCSA_EXT_INLINE void first_step(const Element& element, Complex<T> (&t)[N2][N1]) {
    constexpr const auto& w = twiddles<T, N1, N2>;
    for (int n2 = 0; n2 < N2; ++n2) {
        for (int n1 = 0; n1 < N1; ++n1) t[n2][n1] = element(N2 * n1 + n2);
        dft<T, N1>(t[n2]);
        for (int k1 = 1; k1 < N1; ++k1) t[n2][k1] = times<T>(t[n2][k1], w.re[n2][k1], w.im[n2][k1]);
    }
}
// The outer transform for one k1: X[k1 + N1 k2] for all k2.
template <class T, int N1, int N2>
GCSA_EXT_INLINE void second_step(const Complex<T> (&t)[N2][N1], int k1, Complex<T> (&X)[N2]) {
    for (int n2 = 0; n2 < N2; ++n2) X[n2] = t[n2][k1];
    dft<T, N2>(X);
}

template <class T, int N1, int N2, int parts>
void fft(Sequence<T> x, Sequence<T> X) {
    Complex<T> t[N2][N1], row[N2];
    first_step<T, N1, N2>([&](int n) { return get(x, n * x.stride); }, t);
    for (int k1 = 0; k1 < N1; ++k1) {
        second_step<T, N1, N2>(t, k1, row);
        for (int k2 = 0; k2 < N2; ++k2) put<parts>(X, (k1 + N1 * k2) * X.stride, row[k2]);
    }
}

// ---- two real sequences at a time ----

// The transforms U and V of u and v are the two halves of that of u + i v: with its elements a at k and b at N - k,
//   2 U[k] = a + conj(b),   2 V[k] = -i (a - conj(b)).
// Element n of u and v is at n * lanes, and 0 outside of [begin, end). 2 U[k] and 2 V[k] go to columns + k * stride as four
// vectors, for k = 1 ... N / 2 - 1; in place of column 0 there are U[0], U[N / 2], V[0] and V[N / 2], which are real.
template <class T, int N1, int N2>
void fft_of_rows(const T* u, const T* v, int64_t begin, int64_t end, T* columns, int64_t stride) {
    constexpr int N = N1 * N2, half = N / 2, L = lanes<T>;
    Complex<T> t[N2][N1], row[N2], mirror[N2], middle;
    const auto element = [&](int n) -> Complex<T> {
        if (n < begin || n >= end) return {vec<T>{}, vec<T>{}};
        return {load(u + n * L, Full<T>{}), load(v + n * L, Full<T>{})};
    };
    const auto put_both = [&](int k, Complex<T> a, Complex<T> b) {
        put<2>(Sequence<T>{columns, columns + L, 0}, k * stride, {a.re + b.re, a.im - b.im});
        put<2>(Sequence<T>{columns + 2 * L, columns + 3 * L, 0}, k * stride, {a.im + b.im, b.re - a.re});
    };
    first_step<T, N1, N2>(element, t);

    // N1 k2 and N - N1 k2 = N1 (N2 - k2)
    second_step<T, N1, N2>(t, 0, row);
    for (int k2 = 1; 2 * k2 < N2; ++k2) put_both(N1 * k2, row[k2], row[N2 - k2]);
    const Complex<T> first = row[0];
    if constexpr (N2 % 2 == 0) middle = row[N2 / 2];
    // N1 / 2 + N1 k2 and its mirror image N1 / 2 + N1 (N2 - 1 - k2)
    if constexpr (N1 % 2 == 0) {
        second_step<T, N1, N2>(t, N1 / 2, row);
        for (int k2 = 0; 2 * k2 < N2 - 1; ++k2) put_both(N1 / 2 + N1 * k2, row[k2], row[N2 - 1 - k2]);
        if constexpr (N2 % 2) middle = row[N2 / 2];
    }
    put<2>(Sequence<T>{columns, columns + L, 0}, 0, {first.re, middle.re});
    put<2>(Sequence<T>{columns + 2 * L, columns + 3 * L, 0}, 0, {first.im, middle.im});
    // k1 + N1 k2 and its mirror image N1 - k1 + N1 (N2 - 1 - k2)
    for (int k1 = 1; 2 * k1 < N1; ++k1) {
        second_step<T, N1, N2>(t, k1, row);
        second_step<T, N1, N2>(t, N1 - k1, mirror);
        for (int k2 = 0; k2 < N2; ++k2) {
            const int k = k1 + N1 * k2;
            const auto a = row[k2], b = mirror[N2 - 1 - k2];
            k < half ? put_both(k, a, b) : put_both(N - k, b, a);
        }
    }
}

// The inverse, from columns in the same order, with U[k] at `u` and V[k] at `v` elements behind the beginning of column k:
// rows[n] = sum_k U[k] exp(2 pi i n k / N), and behind it the same for V.
template <class T, int N1, int N2>
void inverse_of_rows(const T* columns, int64_t stride, int64_t u, int64_t v, T* rows) {
    constexpr int N = N1 * N2, half = N / 2, L = lanes<T>;
    Complex<T> t[N2][N1], row[N2];
    const auto get_at = [](const T* at) -> Complex<T> { return {load(at, Full<T>{}), load(at + L, Full<T>{})}; };
    // U[k] + i V[k], with real and imaginary part exchanged for the inverse transform
    const auto element = [&](int k) -> Complex<T> {
        const T* const column = columns + (k % half == 0 ? 0 : k < half ? k : N - k) * stride;
        const auto a = get_at(column + u), b = get_at(column + v);
        if (k == 0) return {b.re, a.re};
        if (k == half) return {b.im, a.im};
        if (k < half) return {a.im + b.re, a.re - b.im};
        return {b.re - a.im, a.re + b.im};
    };
    first_step<T, N1, N2>(element, t);
    for (int k1 = 0; k1 < N1; ++k1) {
        second_step<T, N1, N2>(t, k1, row);
        for (int k2 = 0; k2 < N2; ++k2)
            put<2>(Sequence<T>{rows, rows + L, 0}, (k1 + N1 * k2) * 2 * L, {row[k2].im, row[k2].re});
    }
}

template <class T>
using Fft = void (*)(Sequence<T>, Sequence<T>);

// The lengths there are, all even.
constexpr int fft_lengths[] = {6, 8, 10, 12, 16, 18, 20, 24, 30, 32, 36, 40, 60};
constexpr int longest_fft = 60;

// exp(2 pi i k / N)
template <class T, int N>
struct Roots {
    T cos[N], sin[N];
    constexpr Roots() : cos(), sin() {
        for (int k = 0; k < N; ++k) {
            cos[k] = T(cos_turn(k, N));
            sin[k] = T(sin_turn(k, N));
        }
    }
};
template <class T, int N>
constexpr Roots<T, N> roots;

template <class T>
struct Length {
    Fft<T> fft, fft_and_sums;  // to two parts and to three
    void (*fft_of_rows)(const T*, const T*, int64_t, int64_t, T*, int64_t);
    void (*inverse_of_rows)(const T*, int64_t, int64_t, int64_t, T*);
    const T *cos, *sin;  // of 2 pi k / length
};
template <class T, int N1, int N2>
constexpr Length<T> length_of{fft<T, N1, N2, 2>,          fft<T, N1, N2, 3>,     fft_of_rows<T, N1, N2>,
                              inverse_of_rows<T, N1, N2>, roots<T, N1 * N2>.cos, roots<T, N1 * N2>.sin};

template <class T>
inline Length<T> find_length(int64_t length) {
    switch (length) {
        case 6: return length_of<T, 2, 3>;
        case 8: return length_of<T, 2, 4>;
        case 10: return length_of<T, 2, 5>;
        case 12: return length_of<T, 3, 4>;
        case 16: return length_of<T, 4, 4>;
        case 18: return length_of<T, 3, 6>;
        case 20: return length_of<T, 4, 5>;
        case 24: return length_of<T, 4, 6>;
        case 30: return length_of<T, 5, 6>;
        case 32: return length_of<T, 4, 8>;
        case 36: return length_of<T, 6, 6>;
        case 40: return length_of<T, 5, 8>;
        default: return length_of<T, 6, 10>;  // 60
    }
}

// x may be X. The sum over k of X[k] exp(+2 pi i n k / N): no factor 1 / N.
template <class T>
inline void inverse(Fft<T> fft, Sequence<T> X, Sequence<T> x) {
    fft({X.im, X.re, X.stride}, {x.im, x.re, x.stride});
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
