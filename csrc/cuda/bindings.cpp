#include "bindings.h"

#include <array>

#include "binding.h"
#include "driver.h"
#include "frequency_mask.h"
#include "norm.h"
#include "sum_rows.h"

namespace gcsa_ext::cuda {

namespace {

SpectrogramMask frequency_mask_call(
    int64_t batch, int64_t bins, int64_t frames, int64_t bands, bool shared, int64_t element_size, Address start,
    Address width, uint64_t value, Address input, Address output
) {
    require(batch >= 1 && bins >= 1 && frames >= 1 && bands >= 1, "a batch, bins, frames and bands of at least 1");
    require(element_size == 2 || element_size == 4 || element_size == 8, "elements of 2, 4 or 8 bytes");
    require_addresses(start, width, input, output);
    return {
        batch,
        bins,
        frames,
        bands,
        0,  // bands of frames
        pointer<const int64_t>(start),
        pointer<const int64_t>(width),
        shared,
        static_cast<int>(element_size),
        value,
        pointer(input),
        pointer(output),
        1
    };
}

void bind_frequency_mask(pybind11::module_& module) {
    module.def(
        "frequency_mask",
        [](const Target& target, int64_t batch, int64_t bins, int64_t frames, int64_t bands, bool shared,
           int64_t element_size, Address start, Address width, uint64_t value, Address input, Address output) {
            const auto call =
                frequency_mask_call(batch, bins, frames, bands, shared, element_size, start, width, value, input, output);
            const auto number = [](int64_t n) { return std::to_string(n); };
            const auto sizes =
                "a batch of " + number(batch) + " x " + number(bins) + " bins x " + number(frames) + " frames";
            with_sizes(sizes, [&] { frequency_mask(call, device(target), stream(target)); });
        }
    );
    module.def(
        "plan_frequency_mask",
        [](const Target& target, int64_t batch, int64_t bins, int64_t frames, int64_t bands, bool shared,
           int64_t element_size, Address start, Address width, uint64_t value, Address input, Address output) {
            const auto call =
                frequency_mask_call(batch, bins, frames, bands, shared, element_size, start, width, value, input, output);
            return to_dict(plan_frequency_mask(call, device(target)));
        }
    );
}

pybind11::dict to_dict(const Plan& plan, const Share& share) {
    auto result = to_dict(plan);
    result["width"] = share.width;
    result["ragged"] = share.ragged;
    result["whole_images"] = share.whole_images;
    result["channel_lanes"] = share.channel_lanes;
    return result;
}

NormStatistics statistics_call(
    int dtype, bool last, int64_t batch, int64_t channels, int64_t positions, Address u, const TypedAddress& offset,
    Address mean, Address var, Address partial
) {
    require_addresses(u, mean, var, partial);
    return {
        map(dtype, batch, channels, positions),
        last,
        pointer(u),
        vector(offset),
        pointer<float>(mean),
        pointer<float>(var),
        pointer<float>(partial)
    };
}

using Layouts = std::array<bool, 3>;  // of u, z and the result: whether it is channels_last

NormForward forward_call(
    int dtype, const Layouts& last, bool add, int64_t batch, int64_t channels, int64_t positions, float eps, Address u,
    Address z, const TypedAddress& weight, const TypedAddress& bias, const TypedAddress& offset, Address mean, Address var,
    Address out
) {
    const auto [u_last, z_last, out_last] = last;
    const bool mixed = u_last != z_last || u_last != out_last;
    require(u_last || !mixed, "u that is channels_last where another map is");
    require(z_last || out_last || !mixed, "z or out in the layout of u");
    require(!mixed || dtype != 0, "one layout of all maps of float32");
    require(!add || out_last == u_last, "out in the layout of u where that is added to it");
    require_addresses(u, mean, var);
    return {
        map(dtype, batch, channels, positions),
        u_last,
        z_last,
        out_last,
        add,
        eps,
        pointer(u),
        pointer(z),
        vector(weight),
        vector(bias),
        vector(offset),
        pointer<float>(mean),
        pointer<float>(var),
        pointer(out)
    };
}

NormBackward backward_call(
    const NormForward& forward, Address grad, Address grad_u, Address grad_z, Address sums, Address partial
) {
    require_addresses(grad);
    require(sums == 0 || partial == 0, "sums that are known or wanted, not both");
    require(grad_z == 0 || forward.z != nullptr, "z for its gradient");
    return {forward, pointer(grad), pointer(grad_u), pointer(grad_z), pointer<float>(sums), pointer<float>(partial)};
}

void bind_norm(pybind11::module_& module) {
    module.def("norm_parts", [](int dtype, bool last, bool mixed, int64_t batch, int64_t channels, int64_t positions) {
        return norm_parts(map(dtype, batch, channels, positions), last, mixed);
    });
    module.def(
        "norm_statistics", [](const Target& target, int dtype, bool last, int64_t batch, int64_t channels, int64_t positions,
                              Address u, const TypedAddress& offset, Address mean, Address var, Address partial) {
            const auto call = statistics_call(dtype, last, batch, channels, positions, u, offset, mean, var, partial);
            with_sizes(describe(call.map), [&] { norm_statistics(call, stream(target)); });
        }
    );
    module.def(
        "plan_norm_statistics", [](int dtype, bool last, int64_t batch, int64_t channels, int64_t positions, Address u) {
            Share share;
            const auto plan =
                plan_norm_statistics(statistics_call(dtype, last, batch, channels, positions, u, {0, 0}, 16, 16, 16), share);
            return to_dict(plan, share);
        }
    );
    module.def(
        "norm_forward", [](const Target& target, int dtype, const Layouts& last, bool add, int64_t batch, int64_t channels,
                           int64_t positions, float eps, Address u, Address z, const TypedAddress& weight,
                           const TypedAddress& bias, const TypedAddress& offset, Address mean, Address var, Address out) {
            require_addresses(out);
            const auto call =
                forward_call(dtype, last, add, batch, channels, positions, eps, u, z, weight, bias, offset, mean, var, out);
            with_sizes(describe(call.map), [&] { norm_forward(call, stream(target)); });
        }
    );
    module.def(
        "plan_norm_forward", [](int dtype, const Layouts& last, bool add, int64_t batch, int64_t channels, int64_t positions,
                                Address u, Address out) {
            Share share;
            const auto plan = plan_norm_forward(
                forward_call(dtype, last, add, batch, channels, positions, 0.0f, u, 16, {0, 0}, {0, 0}, {0, 0}, 16, 16, out),
                share
            );
            return to_dict(plan, share);
        }
    );
    module.def(
        "norm_backward",
        [](const Target& target, int dtype, bool last, bool grad_last, int64_t batch, int64_t channels, int64_t positions,
           float eps, Address u, Address z, const TypedAddress& weight, const TypedAddress& bias, const TypedAddress& offset,
           Address mean, Address var, Address grad, Address grad_u, Address grad_z, Address sums, Address partial) {
            const auto forward = forward_call(
                dtype, {last, last, grad_last}, false, batch, channels, positions, eps, u, z, weight, bias, offset, mean,
                var, 0
            );
            const auto call = backward_call(forward, grad, grad_u, grad_z, sums, partial);
            with_sizes(describe(forward.map), [&] { norm_backward(call, stream(target)); });
        }
    );
    module.def(
        "plan_norm_backward", [](int dtype, bool last, bool grad_last, int64_t batch, int64_t channels, int64_t positions,
                                 Address u, Address grad, Address partial) {
            const auto forward = forward_call(
                dtype, {last, last, grad_last}, false, batch, channels, positions, 0.0f, u, 16, {0, 0}, {0, 0}, {0, 0}, 16,
                16, 0
            );
            Share share;
            const auto plan = plan_norm_backward(backward_call(forward, grad, 16, 16, 0, partial), share);
            return to_dict(plan, share);
        }
    );
    module.def(
        "norm_sums", [](const Target& target, int64_t parts, int64_t channels, Address partial, Address sums,
                        const TypedAddress& grad_weight, const TypedAddress& grad_bias) {
            require(parts >= 1 && channels >= 1, "parts and channels of at least 1");
            require_addresses(partial, sums);
            SumRows call{};
            call.rows = parts;
            call.width = 2 * channels;
            call.partial = pointer<float>(partial);
            call.sums = pointer<float>(sums);
            call.pieces[0] = {channels, vector(grad_weight)};
            call.pieces[1] = {2 * channels, vector(grad_bias)};
            with_sizes(std::to_string(channels) + " channels", [&] { sum_rows(call, stream(target)); });
        }
    );
}

}  // namespace

void bind(pybind11::module_& module) {
    module.def("driver_error", &driver_error);
    module.def("device_limits", [](int number) {
        const auto limits = device_limits(number);
        return std::pair(limits.multiprocessors, limits.shared_bytes);
    });
    bind_frequency_mask(module);
    bind_norm(module);
    bind_channel_gate(module);
    bind_small_gcsa(module);
}

}  // namespace gcsa_ext::cuda
