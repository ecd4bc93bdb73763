// Tensors as Python objects: the questions asked in every call, and new ones. The core includes nothing of torch; what it
// needs of it, Python hands over once.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "params/tensor.h"

namespace gcsa_ext {

// Borrowed from the dictionary given to use_torch, which is kept for ever; each under its own name there.
struct Torch {
    PyObject *Tensor, *Parameter;
    PyObject *float32, *float64, *bfloat16, *float16, *int64, *channels_last, *contiguous_format;
    PyObject *empty, *from_dlpack;
    PyObject *threads, *increment_version;
    PyObject *is_grad_enabled, *autograd_excluded, *is_inference_mode_enabled, *is_autocast_enabled, *get_autocast_dtype,
        *get_default_dtype;
    PyObject* observers;    // a tuple of functions: all return something false when nobody wants to see a call
    PyObject* empty_names;  // of arguments; made here
};
void use_torch(const pybind11::dict& names);
const Torch& torch();

using Shape = std::vector<int64_t>;
Shape shape_of(PyObject* tensor);
int64_t stride(PyObject* tensor, int axis);
pybind11::object dtype_of(PyObject* tensor);
void* address(PyObject* tensor);    // std::invalid_argument where a tensor's memory was taken away
bool is_dense(PyObject* tensor);    // and contiguous
int element_size(PyObject* dtype);  // std::invalid_argument unless a floating one of 2, 4 or 8 bytes

pybind11::object call(PyObject* function);
bool is_true(const pybind11::object& value);
// Whether no compiler, transform, mode, trace or profiler wants to see a call.
bool unobserved();

// Whether it is a tensor or a parameter of torch's own type, on the CPU, and no negative view, zero tensor or, outside of
// inference mode, inference tensor.
bool is_ordinary(PyObject* tensor);
bool requires_gradient(PyObject* tensor);
// The same of all, passing over None, and whether nothing observes; with `without_gradient` none wants a gradient.
bool go_directly(const pybind11::tuple& tensors, bool without_gradient);

// An uninitialised tensor. One of `large` bytes lies in memory that is kept from call to call (scratch.h) and goes back
// there when the last tensor that uses it is gone.
pybind11::object empty(const Shape& shape, PyObject* dtype, bool channels_last = false, int64_t large = 1 << 20);
// The same for a masked spectrogram. What glibc has kept is used by everybody, so that it is likelier to be in the caches
// than memory of our own; but blocks from a size on it always gets from the system, and gives them back.
inline pybind11::object empty_spectrogram(const Shape& shape, PyObject* dtype) {
    return empty(shape, dtype, false, 32 << 20);
}

}  // namespace gcsa_ext
