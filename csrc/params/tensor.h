// What every kernel needs to know of a tensor: element type, memory layout, and how many threads may work on it.
#pragma once

#include <cstdint>

namespace gcsa_ext {

// The kernels for the CPU take no float16, those for GPUs no maps of float64.
enum class DType : int { float32 = 0, float64 = 1, bfloat16 = 2, float16 = 3 };

enum class Layout : int {
    contiguous = 0,     // (N, C, H, W) with W fastest: element (n, c, p) at (n * C + c) * HW + p
    channels_last = 1,  // (N, C, H, W) with C fastest: element (n, c, p) at (n * HW + p) * C + c
};

// A feature map (N, C, H, W); the kernels see H and W as one axis of positions.
struct FeatureMap {
    DType dtype;
    Layout layout;
    int64_t batch;      // N
    int64_t channels;   // C
    int64_t positions;  // H * W
    int threads;        // at most this many threads
};

}  // namespace gcsa_ext
