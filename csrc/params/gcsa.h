// Global channel-spatial attention as a whole.
//
//   z   = channel_gate(x)                                       channel_gate.h
//   u1  = conv1(z) + bias, m channels       a1 = relu(norm1(u1))
//   u2  = conv2(a1) + bias, C channels      s = activation(norm2(u2))
//   out[j * gate_groups + i] = z[j * gate_groups + i] * s[i * (C / gate_groups) + j]
//
// The convolutions have 'same' padding, stride 1, odd kernels. norm is batch normalisation:
// (u - mean) / sqrt(var + eps) * weight + bias. The activation is the sigmoid or nothing.
#pragma once

#include "params/channel_gate.h"
#include "params/tensor.h"

namespace gcsa_ext {

struct BatchNorm {
    bool batch_statistics;  // true: mean and var (biased) are computed and written; false: they are read
    double eps;
    const void* weight;  // (channels) or null: 1
    const void* bias;    // (channels) or null: 0
    void* mean;          // (channels)
    void* var;           // (channels)
};

struct Convolution2d {
    const void* weight;  // (outputs, inputs / groups, kernel, kernel)
    const void* bias;    // (outputs) or null: 0
    Layout layout;       // of the weight and of its gradient
    int64_t kernel, groups;
};

// The vectors and the convolutions' weights are float32 (float64 for a float64 map), the rest has the map's dtype.
struct GcsaForward {
    ChannelGateForward gate;  // with the map, x, out and the channel gate's weights
    int64_t height, width;    // of the map
    int64_t hidden;           // m
    int64_t gate_groups;      // divides C
    bool gate_sigmoid;
    bool replicate;  // the convolutions pad with the values at the edge of the map instead of zeros
    Convolution2d conv1, conv2;
    BatchNorm norm1, norm2;
    bool mixed;  // layers of a float32 map may round their factors to bfloat16
    // Saved for the backward pass in a layout of the kernels: N * H * W times m or C elements, padded to a multiple of 64
    // bytes of float32 (float64 for a float64 map). Both are given, or both null: not wanted.
    void *u1, *u2;
};

struct GcsaBackward {
    GcsaForward forward;  // gate.out is not read; u1, u2, mean and var are the forward pass's
    const void* grad_out;
    void* grad_x;                                 // or null: not wanted
    void *grad_w1, *grad_b1, *grad_w2, *grad_b2;  // grad_w1 is null: none of these four is wanted
    void *grad_conv1, *grad_conv1_bias;           // each may be null
    void *grad_norm1_weight, *grad_norm1_bias;
    void *grad_conv2, *grad_conv2_bias;
    void *grad_norm2_weight, *grad_norm2_bias;
};

}  // namespace gcsa_ext
