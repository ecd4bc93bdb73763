// Python module gcsa_ext._C: kernels over addresses and sizes, for which gcsa_ext/backends takes tensors apart, and the
// native calls that take tensors as Python's objects (tensors.h).

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"
#include "memory/scratch.h"
#include "python/attention.h"
#include "python/masking.h"
#include "python/objects.h"
#include "python/tensors.h"
#ifndef GCSA_EXT_CUDA_MISSING
#include "cuda/bindings.h"
#endif

namespace py = pybind11;

namespace {

using gcsa_ext::DType;
using gcsa_ext::FeatureMap;
using gcsa_ext::Layout;
using Address = uintptr_t;

void require(bool condition, const char* expectation) {
    if (!condition) throw std::invalid_argument(std::string("gcsa_ext._C: expected ") + expectation);
}

template <class... Addresses>
void require_addresses(Addresses... addresses) {
    require(((addresses != 0) && ...), "no null address for a tensor that is needed");
}

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

FeatureMap feature_map(int dtype, bool channels_last, int64_t batch, int64_t channels, int64_t positions, int threads) {
    require(dtype >= 0 && dtype <= 2, "a dtype code of 0 (float32), 1 (float64) or 2 (bfloat16)");
    require(batch >= 1 && channels >= 1 && positions >= 1, "a batch, channels and positions of at least 1");
    require(threads >= 1, "at least 1 thread");
    return {static_cast<DType>(dtype),
            channels_last ? Layout::channels_last : Layout::contiguous,
            batch,
            channels,
            positions,
            threads};
}

gcsa_ext::ChannelGateForward channel_gate(
    const FeatureMap& map, int64_t hidden, int64_t groups, bool sigmoid, Address x, Address w1, Address b1, Address w2,
    Address b2, Address out
) {
    require(hidden >= 1, "at least 1 hidden channel");
    require(groups >= 1 && map.channels % groups == 0, "groups that divide the channels");
    require_addresses(x, w1, b1, w2, b2);
    return {map, hidden, groups, sigmoid, pointer(x), pointer(w1), pointer(b1), pointer(w2), pointer(b2), pointer(out)};
}

gcsa_ext::NormGateForward norm_gate(
    const FeatureMap& map, bool batch_statistics, double eps, Address u, Address z, Address weight, Address bias,
    Address mean, Address var, Address out
) {
    require_addresses(u, z, mean, var);
    return {map,           batch_statistics, eps,          pointer(u),  pointer(z), pointer(weight),
            pointer(bias), pointer(mean),    pointer(var), pointer(out)};
}

gcsa_ext::ConvolutionForward convolution(
    int dtype, bool channels_last, int64_t batch, int64_t channels, int64_t height, int64_t width, int threads,
    int64_t outputs, int64_t kernel, Address x, Address weight, Address bias, Address out
) {
    require(height >= 1 && width >= 1, "a height and width of at least 1");
    require(outputs >= 1, "at least 1 output channel");
    require(kernel >= 3 && kernel <= 11 && kernel % 2 == 1, "an odd kernel size from 3 to 11");
    require_addresses(weight);
    return {
        feature_map(dtype, channels_last, batch, channels, height * width, threads),
        height,
        width,
        outputs,
        kernel,
        pointer(x),
        pointer(weight),
        pointer(bias),
        pointer(out)
    };
}

// Addresses: x, w1, b1, w2, b2; of each convolution its weight and bias; of each normalisation its weight, bias, mean and
// var; out, u1, u2.
gcsa_ext::GcsaForward gcsa(
    int dtype, bool channels_last, int64_t batch, int64_t channels, int64_t height, int64_t width, int threads,
    int64_t hidden, int64_t groups, bool sigmoid, bool mixed, int64_t kernel, std::array<bool, 2> batch_statistics,
    std::array<double, 2> eps, const std::array<Address, 20>& a
) {
    require(height >= 1 && width >= 1, "a height and width of at least 1");
    require(kernel >= 3 && kernel <= 11 && kernel % 2 == 1, "an odd kernel size from 3 to 11");
    const auto map = feature_map(dtype, channels_last, batch, channels, height * width, threads);
    require_addresses(a[5], a[7], a[11], a[12], a[15], a[16]);
    require((a[18] == 0) == (a[19] == 0), "addresses of both u1 and u2, or of neither");
    return {
        channel_gate(map, hidden, groups, sigmoid, a[0], a[1], a[2], a[3], a[4], a[17]),
        height,
        width,
        kernel,
        {pointer(a[5]), pointer(a[6])},
        {pointer(a[7]), pointer(a[8])},
        {batch_statistics[0], eps[0], pointer(a[9]), pointer(a[10]), pointer(a[11]), pointer(a[12])},
        {batch_statistics[1], eps[1], pointer(a[13]), pointer(a[14]), pointer(a[15]), pointer(a[16])},
        mixed,
        pointer(a[18]),
        pointer(a[19])
    };
}

gcsa_ext::FrequencyMask frequency_mask(
    int64_t batch, int64_t bins, int64_t frames, int threads, int64_t bands, bool shared, int element_size, uint64_t value,
    const int64_t* start, const int64_t* width, Address input, Address output
) {
    require(batch >= 1 && bins >= 1 && frames >= 1 && bands >= 1, "a batch, bins, frames and bands of at least 1");
    require(threads >= 1, "at least 1 thread");
    require(element_size == 2 || element_size == 4 || element_size == 8, "elements of 2, 4 or 8 bytes");
    require_addresses(input, output);
    return {batch, bins, frames, bands, start, width, shared, element_size, value, pointer(input), pointer(output), threads};
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    using gcsa_ext::cpu::kernels;

    module.def("build_info", [] {
        py::dict info;
        info["compiler"] = GCSA_EXT_COMPILER;
        info["isas"] = gcsa_ext::cpu::built_isas();
#ifdef _OPENMP
        info["openmp"] = true;
#else
        info["openmp"] = false;
#endif
#ifdef GCSA_EXT_CUDA_MISSING
        info["cuda"] = py::none();
        info["cuda_missing"] = GCSA_EXT_CUDA_MISSING;
#else
        info["cuda"] = GCSA_EXT_CUDA_COMPILER " for " GCSA_EXT_CUDA_ARCHITECTURES;
        info["cuda_missing"] = py::none();
#endif
        return info;
    });
#ifndef GCSA_EXT_CUDA_MISSING
    auto cuda = module.def_submodule("cuda");
    gcsa_ext::cuda::bind(cuda);
#endif
    module.def("cpu_isa", [] { return kernels().isa; });

    module.def(
        "channel_gate_forward",
        [](int dtype, bool channels_last, int64_t batch, int64_t channels, int64_t positions, int threads, int64_t hidden,
           int64_t groups, bool sigmoid, Address x, Address w1, Address b1, Address w2, Address b2, Address out) {
            const auto map = feature_map(dtype, channels_last, batch, channels, positions, threads);
            const auto call = channel_gate(map, hidden, groups, sigmoid, x, w1, b1, w2, b2, out);
            require_addresses(out);
            const py::gil_scoped_release release;
            kernels().channel_gate_forward(call);
        }
    );
    module.def(
        "channel_gate_backward",
        [](int dtype, bool channels_last, int64_t batch, int64_t channels, int64_t positions, int threads, int64_t hidden,
           int64_t groups, bool sigmoid, Address x, Address w1, Address b1, Address w2, Address b2, Address grad_out,
           Address grad_x, Address grad_w1, Address grad_b1, Address grad_w2, Address grad_b2) {
            const auto map = feature_map(dtype, channels_last, batch, channels, positions, threads);
            const auto call = channel_gate(map, hidden, groups, sigmoid, x, w1, b1, w2, b2, 0);
            require_addresses(grad_out);
            if (grad_w1) require_addresses(grad_b1, grad_w2, grad_b2);
            const py::gil_scoped_release release;
            kernels().channel_gate_backward(
                {call, pointer(grad_out), pointer(grad_x), pointer(grad_w1), pointer(grad_b1), pointer(grad_w2),
                 pointer(grad_b2)}
            );
        }
    );
    module.def(
        "norm_gate_forward", [](int dtype, bool channels_last, int64_t batch, int64_t channels, int64_t positions,
                                int threads, bool batch_statistics, double eps, Address u, Address z, Address weight,
                                Address bias, Address mean, Address var, Address out) {
            const auto map = feature_map(dtype, channels_last, batch, channels, positions, threads);
            const auto call = norm_gate(map, batch_statistics, eps, u, z, weight, bias, mean, var, out);
            require_addresses(out);
            const py::gil_scoped_release release;
            kernels().norm_gate_forward(call);
        }
    );
    module.def(
        "norm_gate_backward",
        [](int dtype, bool channels_last, int64_t batch, int64_t channels, int64_t positions, int threads,
           bool batch_statistics, double eps, Address u, Address z, Address weight, Address bias, Address mean, Address var,
           Address grad_out, Address grad_u, Address grad_z, Address grad_weight, Address grad_bias) {
            const auto map = feature_map(dtype, channels_last, batch, channels, positions, threads);
            const auto call = norm_gate(map, batch_statistics, eps, u, z, weight, bias, mean, var, 0);
            require_addresses(grad_out);
            const py::gil_scoped_release release;
            kernels().norm_gate_backward(
                {call, pointer(grad_out), pointer(grad_u), pointer(grad_z), pointer(grad_weight), pointer(grad_bias)}
            );
        }
    );
    module.def(
        "frequency_mask", [](int64_t batch, int64_t bins, int64_t frames, int threads, int64_t bands, bool shared,
                             int element_size, uint64_t value, Address start, Address width, Address input, Address output) {
            require_addresses(start, width);
            const auto call = frequency_mask(
                batch, bins, frames, threads, bands, shared, element_size, value,
                static_cast<const int64_t*>(pointer(start)), static_cast<const int64_t*>(pointer(width)), input, output
            );
            const py::gil_scoped_release release;
            kernels().frequency_mask(call);
        }
    );

    module.def(
        "convolution_forward",
        [](int dtype, bool channels_last, int64_t batch, int64_t channels, int64_t height, int64_t width, int threads,
           int64_t outputs, int64_t kernel, Address x, Address weight, Address bias, Address out) {
            const auto call = convolution(
                dtype, channels_last, batch, channels, height, width, threads, outputs, kernel, x, weight, bias, out
            );
            require_addresses(x, out);
            const py::gil_scoped_release release;
            kernels().convolution_forward(call);
        }
    );
    module.def(
        "convolution_backward", [](int dtype, bool channels_last, int64_t batch, int64_t channels, int64_t height,
                                   int64_t width, int threads, int64_t outputs, int64_t kernel, Address x, Address weight,
                                   Address grad_out, Address grad_x, Address grad_weight) {
            const auto call =
                convolution(dtype, channels_last, batch, channels, height, width, threads, outputs, kernel, x, weight, 0, 0);
            require_addresses(grad_out);
            require(x != 0 || grad_weight == 0, "x for the gradient of the weight");
            const py::gil_scoped_release release;
            kernels().convolution_backward({call, pointer(grad_out), pointer(grad_x), pointer(grad_weight)});
        }
    );
    module.def(
        "gcsa_forward",
        [](int dtype, bool channels_last, int64_t batch, int64_t channels, int64_t height, int64_t width, int threads,
           int64_t hidden, int64_t groups, bool sigmoid, bool mixed, int64_t kernel, std::array<bool, 2> batch_statistics,
           std::array<double, 2> eps, const std::array<Address, 20>& addresses, const std::array<Address, 2>&) {
            const auto call = gcsa(
                dtype, channels_last, batch, channels, height, width, threads, hidden, groups, sigmoid, mixed, kernel,
                batch_statistics, eps, addresses
            );
            require_addresses(addresses[17]);
            const py::gil_scoped_release release;
            kernels().gcsa_forward(call);
        }
    );
    module.def(
        "gcsa_backward",
        [](int dtype, bool channels_last, int64_t batch, int64_t channels, int64_t height, int64_t width, int threads,
           int64_t hidden, int64_t groups, bool sigmoid, bool mixed, int64_t kernel, std::array<bool, 2> batch_statistics,
           std::array<double, 2> eps, const std::array<Address, 20>& addresses, Address grad_out,
           const std::array<Address, 13>& grads) {
            const auto call = gcsa(
                dtype, channels_last, batch, channels, height, width, threads, hidden, groups, sigmoid, mixed, kernel,
                batch_statistics, eps, addresses
            );
            require_addresses(addresses[18], grad_out);
            if (grads[1]) require_addresses(grads[2], grads[3], grads[4]);
            const auto at = [&](int i) { return pointer(grads[i]); };
            const py::gil_scoped_release release;
            kernels().gcsa_backward(
                {call, pointer(grad_out), at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9), at(10),
                 at(11), at(12)}
            );
        }
    );
    module.def("core_round_trip", [](double seconds) {
        require(seconds > 0, "a time to measure for");
        const py::gil_scoped_release release;
        return kernels().core_round_trip({seconds});
    });
    module.def("fma_peak", [](int threads, double seconds) {
        require(threads >= 1, "at least 1 thread");
        const py::gil_scoped_release release;
        return kernels().fma_peak({threads, seconds});
    });
    module.def(
        "convolution_product_rate", [](int64_t batch, int64_t inputs, int64_t outputs, int64_t height, int64_t width,
                                       int64_t kernel, int threads, double seconds) {
            require(batch >= 1 && threads >= 1, "a batch and threads of at least 1");
            convolution(0, false, batch, inputs, height, width, threads, outputs, kernel, 1, 1, 0, 1);  // checks them
            const py::gil_scoped_release release;
            return kernels().product_rate({batch, inputs, outputs, height, width, kernel, threads, seconds});
        }
    );
    module.def("use_torch", &gcsa_ext::use_torch);
    module.def("empty", [](const std::vector<int64_t>& shape, const py::object& dtype, bool channels_last) {
        return gcsa_ext::empty(shape, dtype.ptr(), channels_last);
    });
    module.def("empty_spectrogram", [](const std::vector<int64_t>& shape, const py::object& dtype) {
        return gcsa_ext::empty_spectrogram(shape, dtype.ptr());
    });
    module.def("go_directly", &gcsa_ext::go_directly);
    module.def("mask_randomly", &gcsa_ext::mask_randomly);
    module.def("unchanged", &gcsa_ext::unchanged);
    module.def("attend", &gcsa_ext::attend);
    module.def("differentiate", &gcsa_ext::differentiate);
    module.def("release_scratch", [] {
        const py::gil_scoped_release release;
        return gcsa_ext::release_scratch();
    });
}
