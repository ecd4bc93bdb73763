// Torch's tensors as Python objects: read into what the kernels take, and made for results. The extension includes no header
// of torch and links nothing of it, so that one build runs beside every torch.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "params/tensor.h"

namespace gcsa_ext {

// What the extension uses of torch, each under its name in the dictionary that `use_torch` is given.
struct Torch {
    pybind11::object float32, float64, bfloat16, float16, int64;
    pybind11::object channels_last, contiguous_format;
    pybind11::object empty, from_dlpack;
    pybind11::object threads;  // a function: how many threads a kernel may use
};
void use_torch(const pybind11::dict& names);
const Torch& torch();

using Shape = std::vector<int64_t>;

// std::invalid_argument with this expectation unless the condition holds. Arguments come checked (gcsa_ext/ops): this
// protects the memory where they do not.
void require(bool condition, const char* expectation);

Shape shape_of(pybind11::handle tensor);
pybind11::object dtype_of(pybind11::handle tensor);
DType dtype_code(pybind11::handle dtype);            // std::invalid_argument unless it is one of DType
int element_size(pybind11::handle dtype);            // std::invalid_argument unless a floating one of 2, 4 or 8 bytes
pybind11::object sum_dtype(pybind11::handle dtype);  // of sums over values of that dtype: float64 or float32
// Null for None and for a tensor without elements; std::invalid_argument for one whose memory was freed.
void* address(pybind11::handle tensor);

// The layout in which a kernel reads a tensor and writes results of its kind: channels_last if it is only that, else
// contiguous.
Layout layout_of(pybind11::handle tensor);

// The tensor itself if it lies in that layout without gaps, else a copy that does.
pybind11::object dense(pybind11::handle tensor, Layout layout = Layout::contiguous);
// The same of a tensor of that shape in that dtype. None stays None.
pybind11::object dense(
    pybind11::handle tensor, const Shape& shape, pybind11::handle dtype, Layout layout = Layout::contiguous
);
// The tensor itself if it has that dtype, else a copy. None stays None.
pybind11::object converted(pybind11::handle tensor, pybind11::handle dtype);

// A feature map (N, C, H, W) in that layout.
FeatureMap feature_map(pybind11::handle x, Layout layout);

// An uninitialised tensor. From `recycled_bytes` on its memory is kept from call to call (memory/scratch.h) and goes back
// there with the last tensor that uses it.
constexpr int64_t recycled_bytes = 1 << 20;
pybind11::object empty(
    const Shape& shape, pybind11::handle dtype, Layout layout = Layout::contiguous, int64_t recycled_from = recycled_bytes
);
// A tensor like the given one, or without memory if it is not wanted: None.
pybind11::object empty_like(pybind11::handle tensor, Layout layout, bool wanted = true);

int64_t elements(const Shape& shape);

}  // namespace gcsa_ext
