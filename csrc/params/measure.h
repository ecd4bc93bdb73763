// What benchmarks compare the kernels with.
#pragma once

#include <cstdint>

namespace gcsa_ext {

// The complex products of one convolution (convolution.h), again and again on numbers of no meaning.
struct ProductRate {
    int64_t batch, inputs, outputs, height, width, kernel;
    int threads;
    double seconds;  // how long to measure
};

}  // namespace gcsa_ext
