// The rates of the processor that benchmarks compare the kernels with.

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
double fma_peak(int threads, double seconds) {
    require(threads >= 1, "at least 1 thread");
    const py::gil_scoped_release release;
    return cpu::kernels().fma_peak({threads, seconds});
}
double convolution_product_rate(
    int64_t batch, int64_t inputs, int64_t outputs, int64_t height, int64_t width, int64_t kernel, int threads,
    double seconds
) {
    require(batch >= 1 && inputs >= 1 && outputs >= 1 && threads >= 1, "a batch, channels and threads of at least 1");
    require(height >= 1 && width >= 1, "a height and width of at least 1");
    require(kernel >= 3 && kernel <= 11 && kernel % 2 == 1, "an odd kernel size from 3 to 11");
    const py::gil_scoped_release release;
    return cpu::kernels().product_rate({batch, inputs, outputs, height, width, kernel, threads, seconds});
}

const Binding binding([](py::module_& module) {
    module.def("core_round_trip", &core_round_trip);
    module.def("fma_peak", &fma_peak);
    module.def("convolution_product_rate", &convolution_product_rate);
});

}  // namespace
}  // namespace gcsa_ext
