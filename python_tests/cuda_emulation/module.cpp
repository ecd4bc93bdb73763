// The Python module of the emulated kernels.
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "emulation.h"

PYBIND11_MODULE(gcsa_ext_emulation, module) {
    gcsa_ext::cuda::bind(module);
    module.def("shuffle_order", &gcsa_ext::cuda::emulation::shuffle_order);
}
