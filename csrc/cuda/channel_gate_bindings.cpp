#include "binding.h"
#include "bindings.h"
#include "channel_gate.h"

namespace gcsa_ext::cuda {

namespace {

using Sizes = std::tuple<int64_t, int64_t, int64_t>;             // batch, channels, positions
using Gate = std::tuple<int64_t, int64_t, bool, bool>;           // hidden, groups, sigmoid, tf32
using Weights = std::tuple<Address, Address, Address, Address>;  // w1, b1, w2, b2
using Maps = std::array<Address, 3>;                             // x, grad, grad_x
using Vectors = std::array<TypedAddress, 4>;

// out may be null: then out_last is not used.
ChannelGate channel_gate_call(
    int dtype, const Sizes& sizes, const Gate& gate, bool x_last, bool out_last, Address x, const Weights& weights,
    Address out
) {
    const auto [batch, channels, positions] = sizes;
    const auto [hidden, groups, sigmoid, tf32] = gate;
    const auto [w1, b1, w2, b2] = weights;
    const auto sized = map(dtype, batch, channels, positions);
    require(hidden >= 1 && hidden <= largest_gate_hidden, "no more hidden units than largest_gate_hidden");
    require(groups >= 1 && channels % groups == 0, "groups that divide the channels");
    require_addresses(x, w1, b1, w2, b2);
    return {sized,      hidden,      groups,      sigmoid,     tf32,        x_last,      out_last,
            pointer(x), pointer(w1), pointer(b1), pointer(w2), pointer(b2), pointer(out)};
}

// The part of a call that its plan depends on: the addresses of maps too, since they decide how maps are accessed.
ChannelGateBackward backward_sizes(
    int dtype, const Sizes& sizes, const Gate& gate, bool x_last, bool grad_last, bool weights, const Maps& maps
) {
    const Weights some{16, 16, 16, 16};
    ChannelGateBackward call{};
    call.gate = channel_gate_call(dtype, sizes, gate, x_last, false, maps[0], some, 0);
    call.grad = pointer(maps[1]);
    call.grad_x = pointer(maps[2]);
    call.grad_last = grad_last;
    call.weights = weights;
    return call;
}

}  // namespace

void bind_channel_gate(pybind11::module_& module) {
    module.attr("largest_gate_hidden") = largest_gate_hidden;
    module.def(
        "channel_gate", [](const Target& target, int dtype, const Sizes& sizes, const Gate& gate, bool x_last, bool out_last,
                           Address x, const Weights& weights, Address out) {
            require_addresses(out);
            const auto call = channel_gate_call(dtype, sizes, gate, x_last, out_last, x, weights, out);
            with_sizes(describe(call.map), [&] { channel_gate(call, device(target), stream(target)); });
        }
    );
    module.def(
        "plan_channel_gate",
        [](const Target& target, int dtype, const Sizes& sizes, const Gate& gate, bool x_last, bool out_last) {
            const Weights some{16, 16, 16, 16};
            const auto plan =
                plan_channel_gate(channel_gate_call(dtype, sizes, gate, x_last, out_last, 16, some, 16), device(target));
            auto result = to_dict(plan.kernel);
            result["x_bytes"] = plan.x_bytes;
            result["out_bytes"] = plan.out_bytes;
            return result;
        }
    );
    // Returns the rows of partial sums, and the columns of the workspaces hidden_out and g1_out, 0 where these are not
    // needed.
    module.def(
        "channel_gate_backward_workspace", [](const Target& target, int dtype, const Sizes& sizes, const Gate& gate,
                                              bool x_last, bool grad_last, bool weights, const Maps& maps) {
            const auto plan = plan_channel_gate_backward(
                backward_sizes(dtype, sizes, gate, x_last, grad_last, weights, maps), device(target)
            );
            return std::pair(plan.rows, plan.units);
        }
    );
    module.def(
        "plan_channel_gate_backward", [](const Target& target, int dtype, const Sizes& sizes, const Gate& gate, bool x_last,
                                         bool grad_last, bool weights, const Maps& maps) {
            const auto plan = plan_channel_gate_backward(
                backward_sizes(dtype, sizes, gate, x_last, grad_last, weights, maps), device(target)
            );
            pybind11::list kernels;
            for (const auto& kernel : {plan.main, plan.sums, plan.add}) {
                if (kernel.threads) kernels.append(to_dict(kernel));
            }
            kernels[0]["x_bytes"] = plan.x_bytes;
            kernels[0]["grad_bytes"] = plan.grad_bytes;
            kernels[0]["grad_x_bytes"] = plan.grad_x_bytes;
            return kernels;
        }
    );
    module.def(
        "channel_gate_backward",
        [](const Target& target, int dtype, const Sizes& sizes, const Gate& gate, bool x_last, bool grad_last,
           const Maps& maps, const Weights& weights, const std::array<Address, 4>& workspace,
           std::pair<int64_t, int64_t> rows_and_units, const Vectors& gradients) {
            const auto [x, grad, grad_x] = maps;
            require_addresses(grad);
            ChannelGateBackward call{};
            call.gate = channel_gate_call(dtype, sizes, gate, x_last, false, x, weights, 0);
            call.grad_last = grad_last;
            call.grad = pointer(grad);
            call.grad_x = pointer(grad_x);
            call.partial = pointer<float>(workspace[0]);
            call.hidden_out = pointer(workspace[1]);
            call.g1_out = pointer(workspace[2]);
            call.g2_out = pointer(workspace[3]);
            std::tie(call.rows, call.units) = rows_and_units;
            call.weights = call.partial != nullptr;
            for (size_t i = 0; i < gradients.size(); ++i) {
                call.gradients[i] = vector(gradients[i]);
            }
            with_sizes(describe(call.gate.map), [&] { channel_gate_backward(call, device(target), stream(target)); });
        }
    );
}

}  // namespace gcsa_ext::cuda
