// The Python module of the emulated kernels, with functions that test the emulation itself.
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "element.h"
#include "emulation.h"
#include "faults.h"

namespace {

template <class T>
void bind_conversions(pybind11::module_& module, const char* to_name, const char* from_name) {
    module.def(to_name, [](uint16_t bits) { return gcsa_ext::cuda::to_float(T{bits}); });
    module.def(from_name, [](float x) { return gcsa_ext::cuda::from_float<T>(x).bits; });
}

}  // namespace

PYBIND11_MODULE(gcsa_ext_emulation, module) {
    gcsa_ext::cuda::bind(module);
    module.def("shuffle_order", &gcsa_ext::cuda::emulation::shuffle_order);
    module.def("run_fault", [](const std::string& mistake, uintptr_t out) {
        gcsa_ext::cuda::run_fault(mistake, reinterpret_cast<float*>(out));
    });
    bind_conversions<gcsa_ext::cuda::bfloat16>(module, "bfloat16_to_float", "float_to_bfloat16");
    bind_conversions<gcsa_ext::cuda::float16>(module, "float16_to_float", "float_to_float16");
}
