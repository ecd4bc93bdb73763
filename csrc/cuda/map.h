// Feature maps as CUDA kernels take them.
#pragma once

#include <cstdint>

#include "params/tensor.h"

namespace gcsa_ext::cuda {

// A map (N, C, H, W); kernels see H and W as one axis of positions. Its tensors lie in one of two layouts:
//   contiguous:     element (n, c, p) at (n * C + c) * P + p
//   channels_last:  element (n, c, p) at (n * P + p) * C + c
struct Map {
    DType dtype;        // float32, bfloat16 or float16
    int64_t batch;      // N
    int64_t channels;   // C
    int64_t positions;  // P = H * W
};

constexpr int64_t element_size(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

}  // namespace gcsa_ext::cuda
