// The part of CUDA's header of this name that the kernels use: conversions that round to nearest even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct __half {
    uint16_t bits;
};

inline float __half2float(__half x) {
    const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
    float size = exponent == 0 ? std::ldexp(float(fraction), -24) : std::ldexp(float(1024 + fraction), exponent - 25);
    if (exponent == 31) size = fraction ? std::nanf("") : INFINITY;
    return x.bits >> 15 ? -size : size;
}

inline __half __float2half_rn(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (x != x) return {0x7fff};
    if (size >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // 65520 and more round to infinity
    if (size < 0x38800000) {                                   // below 2^-14 all steps are 2^-24; nearbyint rounds to even
        return {uint16_t(sign | uint32_t(std::nearbyint(std::ldexp(std::fabs(x), 24))))};
    }
    const uint32_t rounded = size - 0x38000000 + 0xfff + (size >> 13 & 1);
    return {uint16_t(sign | rounded >> 13)};
}
