// Two-dimensional convolution (cross-correlation, as everywhere in deep learning) with 'same' zero padding and stride 1:
//
//   out[n, o, p] = bias[o] + sum_{i, d} weight[o, i, d] x[n, i, p + d]      d from -kernel / 2 to kernel / 2 on both axes
//
// x and out have the map's dtype; weight, bias and their gradients are float32 (float64 for a float64 map).
#pragma once

#include "params/tensor.h"

namespace gcsa_ext {

struct ConvolutionForward {
    FeatureMap map;  // of x: its channels are the inputs
    int64_t height, width, outputs, kernel;
    const void* x;       // (N, inputs, H, W) in map.layout
    const void* weight;  // (outputs, inputs, kernel, kernel) contiguous
    const void* bias;    // (outputs) or null: 0
    void* out;           // (N, outputs, H, W) in map.layout
};

struct ConvolutionBackward {
    ConvolutionForward forward;  // bias and out are not read
    const void* grad_out;        // (N, outputs, H, W) in map.layout
    void* grad_x;                // or null: not wanted
    void* grad_weight;           // or null: not wanted
};

}  // namespace gcsa_ext
