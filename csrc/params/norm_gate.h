// Norm gate: batch normalisation of u, sigmoid, product with z.
//
//   v   = (u - mean) / sqrt(var + eps) * weight + bias     mean, var over N, H, W of each channel, var biased
//   out = z * sigmoid(v)
//
// u, z and out have the map's dtype; the per-channel vectors are float32 (float64 for a float64 map).
#pragma once

#include "params/tensor.h"

namespace gcsa_ext {

struct NormGateForward {
    FeatureMap map;
    bool batch_statistics;  // true: mean and var are computed from u and written; false: they are read
    double eps;
    const void* u;       // (N, C, H, W) in map.layout
    const void* z;       // (N, C, H, W) in map.layout
    const void* weight;  // (C) or null: 1
    const void* bias;    // (C) or null: 0
    void* mean;          // (C)
    void* var;           // (C)
    void* out;           // (N, C, H, W) in map.layout; not read or written in the backward pass
};

struct NormGateBackward {
    NormGateForward forward;
    const void* grad_out;  // (N, C, H, W) in map.layout
    void* grad_u;          // (N, C, H, W) in map.layout, or null: not wanted
    void* grad_z;          // (N, C, H, W) in map.layout, or null: not wanted
    void* grad_weight;     // (C) or null: not wanted
    void* grad_bias;       // (C) or null: not wanted
};

}  // namespace gcsa_ext
