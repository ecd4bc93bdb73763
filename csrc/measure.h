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

// What one convolution does between the transforms of its tiles, once: all its complex products.
struct Products {
    int64_t batch, inputs, outputs, height, width, kernel;
    const void* weight;  // (outputs, inputs, kernel, kernel), float32
    bool transforms;     // of the weights, as the convolution does them; otherwise numbers of no meaning are multiplied
    int threads;
};
struct ProductsTime {
    double seconds;
    int64_t spectra_bytes;  // of the weights' spectra, were they kept
};

}  // namespace gcsa_ext
