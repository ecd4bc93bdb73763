// A whole GCSA, from the module to the kernel in one call: in Python, this and the way back take as long as a small map.
// For what is ordinary: tensors of torch's own types on the CPU, a dense map in one of the two layouts, weights of its dtype
// (under autocast, and those of the normalisations always, also of that of its sums), and nobody who wants to see the
// operator. All else is answered with None, and Python takes the long way.
//
// A plan is that of gcsa_ext/ops/gcsa.py. The backward pass needs, besides the inputs, what the operator returns behind its
// result: both convolutions' outputs in the kernels' own layout (gcsa.h), mean and variance of both normalisations.
#pragma once

#include <pybind11/pybind11.h>

namespace gcsa_ext {

// The result; if a gradient is wanted, a tuple of the result, what is kept, and whether the layers rounded what they
// multiply to bfloat16, as under autocast; or None. The notes are what the plan rests on (objects.h), `own` is the
// dictionary of the module.
pybind11::object attend(
    const pybind11::dict& own, const pybind11::object& x, const pybind11::tuple& notes, const pybind11::tuple& plan
);

// The gradients of x and of the plan's weights, None where not needed; or None. `saved`: x, the plan's weights, what was
// kept; `settings` and `batch` as in the plan.
pybind11::object differentiate(
    const pybind11::object& grad_out, const pybind11::tuple& saved, const pybind11::tuple& settings,
    const pybind11::tuple& batch, bool mixed, const pybind11::tuple& need
);

}  // namespace gcsa_ext
