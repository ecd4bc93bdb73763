// Measurements that benchmarks compare the kernels with. `seconds`: how long to measure.
#pragma once

#include <cstdint>

namespace gcsa_ext {

// Floating-point operations per second of products and sums in registers, which nothing exceeds.
struct FmaPeak {
    int threads;
    double seconds;
};

// Seconds that a cache line takes from one core to another and back; infinite with one thread.
struct CoreRoundTrip {
    double seconds;
};

// Floating-point operations per second of the products of spectra of one convolution (convolution.h).
struct ProductRate {
    int64_t batch, inputs, outputs, height, width, kernel;
    int threads;
    double seconds;
};

}  // namespace gcsa_ext
