// The Python functions of the CUDA kernels: of the submodule gcsa_ext._C.cuda, or of a module of the emulation.
#pragma once

#include <pybind11/pybind11.h>

namespace gcsa_ext::cuda {

void bind(pybind11::module_& module);

void bind_channel_gate(pybind11::module_& module);
void bind_small_gcsa(pybind11::module_& module);

}  // namespace gcsa_ext::cuda
