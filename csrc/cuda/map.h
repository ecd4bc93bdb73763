// Feature maps as CUDA kernels take them.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace gcsa_ext::cuda {

enum class Element : int { float32 = 0, bfloat16 = 1, float16 = 2 };

// A map (N, C, H, W); kernels see H and W as one axis of positions. Its tensors lie in one of two layouts:
//   contiguous:     element (n, c, p) at (n * C + c) * P + p
//   channels_last:  element (n, c, p) at (n * P + p) * C + c
struct Map {
    Element element;
    int64_t batch;      // N
    int64_t channels;   // C
    int64_t positions;  // P = H * W
};

constexpr int64_t element_size(Element element) { return element == Element::float32 ? 4 : 2; }

}  // namespace gcsa_ext::cuda
