// The bindings of the CUDA kernels: functions of the submodule gcsa_ext._C.cuda, or of the emulation's module.
#pragma once

#include <pybind11/pybind11.h>

namespace gcsa_ext::cuda {

void bind(pybind11::module_& module);

void bind_channel_gate(pybind11::module_& module);
void bind_small_gcsa(pybind11::module_& module);

}  // namespace gcsa_ext::cuda
