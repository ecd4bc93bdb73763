// The logistic function of a vector.
#pragma once

#include "cpu/vector.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// exp(-x) = 2^(n / steps) exp(-r) with n = round(-x steps / ln 2), r = x + n ln(2) / steps. With j = n mod steps the first
// factor is 2^j/steps from a table, where a permutation of a register can look it up, times a power of two. |r| is at most
// ln(2) / 2 / steps, and Taylor's polynomial of the chosen degree is off by less than half a unit in the last place.
template <class T>
struct SigmoidConstants;
template <>
struct SigmoidConstants<float> {
#ifdef __AVX512F__
    static constexpr int steps = 16, degree = 3;
#else
    static constexpr int steps = 1, degree = 7;
#endif
    static constexpr float largest = 87.33654f, smallest = -88.72284f;  // exp(-x) is 2^-126 and infinite
    static constexpr float round = 12582912.f;                          // 1.5 * 2^23: adding it rounds to an integer
    static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    static constexpr int mantissa_bits = 23, exponent_bias = 127;
};
template <>
struct SigmoidConstants<double> {
    static constexpr int steps = 1, degree = 13;
    static constexpr double largest = 708.396418532264, smallest = -709.782712893384;
    static constexpr double round = 6755399441055744.;  // 1.5 * 2^52
    static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
    static constexpr int mantissa_bits = 52, exponent_bias = 1023;
};

// 2^(j / steps)
template <class T, int steps>
struct PowerTable {
    T power[steps];
    constexpr PowerTable() : power() {
        for (int j = 0; j < steps; ++j) {
            const double x = 0.69314718055994530942 * j / steps;
            double term = 1, sum = 1;
            for (int k = 1; k < 24; ++k) sum += term *= x / k;
            power[j] = T(sum);
        }
    }
};
template <class T, int steps>
constexpr PowerTable<T, steps> power_table;

template <class T>
constexpr T inverse_factorial(int k) {
    T product = 1;
    for (int i = 2; i <= k; ++i) product *= static_cast<T>(i);
    return 1 / product;
}

// Keeps a constant of a loop in a register, where there are enough: compilers would load it in every iteration.
template <class T>
inline vec<T> held(T value) {
    vec<T> constant = broadcast(value);
#ifdef __AVX512F__
    asm("" : "+v"(constant));
#endif
    return constant;
}

// 1 / (1 + exp(-x)). The object is made before a loop, so that its constants are in registers in the loop. NaN stays NaN.
// With AVX-512, subnormal results in float are 0.
template <class T>
class Sigmoid {
    using K = SigmoidConstants<T>;

   public:
    Sigmoid() {
        for (int k = 0; k <= K::degree; ++k) coefficient_[k] = held<T>((k % 2 ? -1 : 1) * inverse_factorial<T>(k));
#ifdef __AVX512F__
        if constexpr (K::steps > 1) {
            powers_ = load(power_table<T, K::steps>.power, Full<T>{});
            asm("" : "+v"(powers_));
        }
#endif
    }

    vec<T> operator()(vec<T> x) const {
        x = clamp_(x);
        const vec<T> shifted = x * to_steps_ + round_, n = shifted - round_;
        const vec<T> r = (x + n * ln2_high_) + n * ln2_low_;
        vec<T> sum = coefficient_[K::degree];
        for (int k = K::degree - 1; k >= 0; --k) sum = sum * r + coefficient_[k];
        return reciprocal_(power_(shifted) * sum + coefficient_[0]);
    }

   private:
    // An infinite x would make r NaN.
    vec<T> clamp_(vec<T> x) const {
#ifdef __AVX512F__
        if constexpr (std::is_same_v<T, float>)
            return _mm512_maskz_min_ps(0xffff, largest_, _mm512_maskz_max_ps(0xffff, smallest_, x));
#endif
        x = x < smallest_ ? smallest_ : x;
        return x > largest_ ? largest_ : x;
    }

    // 2^(n / steps): n stands in the low bits of `shifted`. Its whole part, moved up, is an exponent.
    vec<T> power_(vec<T> shifted) const {
        using Bits = vec<integer<T>>;
        const Bits n = bit_cast<Bits>(shifted);
#ifdef __AVX512F__
        if constexpr (K::steps == 16) {
            const Bits power = bit_cast<Bits>(_mm512_maskz_permutexvar_ps(0xffff, bit_cast<__m512i>(n), powers_));
            return bit_cast<vec<T>>(power + (n >> 4 << K::mantissa_bits));
        }
#endif
        return bit_cast<vec<T>>((n + K::exponent_bias) << K::mantissa_bits);
    }

    // 1 / x within a unit in the last place, for x >= 1.
    vec<T> reciprocal_(vec<T> x) const {
#ifdef __AVX512F__
        if constexpr (std::is_same_v<T, float>) {
            // A division takes as long as all the rest; 14 bits and one step of Newton's method a fifth of that.
            const vec<T> y = _mm512_maskz_rcp14_ps(0xffff, x);
            return x > 0x1p126f ? vec<T>{} : y + y * (coefficient_[0] - x * y);
        }
#endif
        return T(1) / x;
    }

    vec<T> smallest_ = held(K::smallest), largest_ = held(K::largest), round_ = held(K::round);
    vec<T> to_steps_ = held(static_cast<T>(-1.4426950408889634074 * K::steps));
    vec<T> ln2_high_ = held(K::ln2_high / K::steps), ln2_low_ = held(K::ln2_low / K::steps);
    vec<T> coefficient_[K::degree + 1], powers_{};
};

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
