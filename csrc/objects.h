// Questions about Python objects that GCSA asks in every call. Asked in Python they take as long as a small map, since a
// large one has driven the interpreter's code and all objects on the way out of the caches.
#pragma once

#include <pybind11/pybind11.h>

namespace gcsa_ext {

// Whether what somebody noted about objects still holds. Each tuple is flat:
//   kinds      object, its type, its __dict__
//   entries    dict, key, the value under it, or Ellipsis: none
//   sequences  dict, tuple of all its values in order
//   empty      dict without entries
// None in place of a dict is `own`. Values are compared by identity.
bool unchanged(
    const pybind11::dict& own, const pybind11::tuple& kinds, const pybind11::tuple& entries,
    const pybind11::tuple& sequences, const pybind11::tuple& empty
);

// Whether all are tensors of exactly one of these types, on the CPU, no negative view, inference or zero tensor and, with
// `without_gradient`, none wants a gradient. None is passed over.
bool ordinary_tensors(const pybind11::tuple& tensors, const pybind11::tuple& types, bool without_gradient);

// Whether all are of a floating dtype, on this device and of their shape. None is passed over.
bool have_shapes(const pybind11::tuple& tensors, const pybind11::tuple& shapes, const pybind11::object& device);

// The addresses of tensors if all are contiguous and have this dtype, else None. The address of None is 0.
pybind11::object plain_addresses(const pybind11::tuple& tensors, const pybind11::object& dtype);

}  // namespace gcsa_ext
