// Channel gate: a perceptron over the channels of every position, the product with the input, the channel shuffle.
//
//   hidden = relu(w1 x + b1)          w1 (h, C), b1 (h)
//   a      = activation(w2 hidden + b2)   w2 (C, h), b2 (C); the activation is the sigmoid or nothing
//   out[j * groups + i] = (x * a)[i * (C / groups) + j]
//
// All tensors share the map's dtype; sums are float32 (float64 for float64). Pointers may be null where a size is 0.
#pragma once

#include "params/tensor.h"

namespace gcsa_ext {

struct ChannelGateForward {
    FeatureMap map;
    int64_t hidden;  // h
    int64_t groups;  // divides C
    bool sigmoid;
    const void* x;   // (N, C, H, W) in map.layout
    const void* w1;  // (h, C) contiguous
    const void* b1;  // (h)
    const void* w2;  // (C, h) contiguous
    const void* b2;  // (C)
    void* out;       // (N, C, H, W) in map.layout; no memory of x: the kernels use it as a workspace too
};

// The forward pass saves nothing: its intermediate values are computed again from x.
struct ChannelGateBackward {
    ChannelGateForward forward;  // forward.out is not read
    const void* grad_out;        // (N, C, H, W) in map.layout
    void* grad_x;                // (N, C, H, W) in map.layout, or null: not wanted
    void* grad_w1;               // (h, C), or null: none of the gradients of weights is wanted
    void* grad_b1;               // (h)
    void* grad_w2;               // (C, h)
    void* grad_b2;               // (C)
};

}  // namespace gcsa_ext
