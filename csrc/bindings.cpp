// Python module gcsa_ext._C: kernels over addresses and sizes. It knows nothing of torch; gcsa_ext/backends takes tensors
// apart.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/dispatch.h"

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

// Start and width, both (batch, bands), from uniform random numbers (bands, 2, batch): the first of the two times `widest`
// is the width, the second times what the width leaves of the bins is the start; both truncated.
struct RandomBands {
    std::vector<int64_t> start, width;

    RandomBands(int64_t batch, int64_t bands, int64_t bins, int64_t widest, const float* draws)
        : start(batch * bands), width(batch * bands) {
        for (int64_t band = 0; band < bands; ++band) {
            const float *for_width = draws + band * 2 * batch, *for_start = for_width + batch;
            for (int64_t sample = 0; sample < batch; ++sample) {
                // The bits of float32 arithmetic, whatever the compiler fuses: in double these products are exact.
                const auto wide = static_cast<float>(static_cast<double>(for_width[sample]) * widest);
                const auto room = static_cast<float>(static_cast<double>(bins) - wide);
                const auto from = static_cast<float>(static_cast<double>(for_start[sample]) * room);
                width[sample * bands + band] = static_cast<int64_t>(wide);
                start[sample * bands + band] = static_cast<int64_t>(from);
            }
        }
    }
};

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
        return info;
    });
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
        "random_frequency_mask",
        [](int64_t batch, int64_t bins, int64_t frames, int threads, int64_t bands, bool shared, int element_size,
           uint64_t value, int64_t widest, Address draws, Address input, Address output) {
            require(batch >= 1 && bands >= 1, "a batch and bands of at least 1");
            require_addresses(draws);
            const RandomBands random(shared ? 1 : batch, bands, bins, widest, static_cast<const float*>(pointer(draws)));
            const auto call = frequency_mask(
                batch, bins, frames, threads, bands, shared, element_size, value, random.start.data(), random.width.data(),
                input, output
            );
            const py::gil_scoped_release release;
            kernels().frequency_mask(call);
        }
    );
}
