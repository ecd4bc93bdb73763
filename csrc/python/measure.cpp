// What benchmarks ask about the machine.

#include "params/measure.h"

#include "cpu/dispatch.h"
#include "python/binding.h"
#include "python/tensors.h"

namespace py = pybind11;

namespace gcsa_ext {
namespace {

double core_round_trip(double seconds) {
    require(seconds > 0, "a time to measure for");
    const py::gil_scoped_release release;
    return cpu::kernels().core_round_trip({seconds});
}

const Binding binding([](py::module_& module) { module.def("core_round_trip", &core_round_trip); });

}  // namespace
}  // namespace gcsa_ext
