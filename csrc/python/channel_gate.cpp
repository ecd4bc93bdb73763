// The operator channel_gate: from tensors to one call of the kernel, forward and backward.

#include "params/channel_gate.h"

#include <array>

#include "cpu/dispatch.h"
#include "python/binding.h"
#include "python/tensors.h"

namespace py = pybind11;

namespace gcsa_ext {
namespace {

// x and the weights, dense in the dtype of x, and the call that they make.
struct Operands {
    Operands(
        const py::object& map, const py::object& first, const py::object& bias1, const py::object& second,
        const py::object& bias2, int64_t groups, bool sigmoid
    )
        : layout(layout_of(map)) {
        const py::object dtype = dtype_of(map);
        const Shape shape = shape_of(map), sizes = shape_of(first);
        require(shape.size() == 4 && sizes.size() == 2, "a map (N, C, H, W) and a weight (h, C)");
        const int64_t C = shape[1], h = sizes[0];
        require(h >= 1 && groups >= 1 && C % groups == 0, "hidden channels, and groups that divide the channels");
        x = dense(map, layout);
        weights = {
            dense(first, {h, C}, dtype), dense(bias1, {h}, dtype), dense(second, {C, h}, dtype), dense(bias2, {C}, dtype)
        };
        for (const py::object& weight : weights) require(!weight.is_none(), "all weights of the channel gate");
        is_empty = elements(shape) == 0;
        call = {feature_map(x, layout),
                h,
                groups,
                sigmoid,
                address(x),
                address(weights[0]),
                address(weights[1]),
                address(weights[2]),
                address(weights[3]),
                nullptr};
    }

    Layout layout;
    bool is_empty;
    py::object x;
    std::array<py::object, 4> weights;
    ChannelGateForward call;
};

// As gcsa_ext.reference.channel_gate; in the layout of x.
py::object forward(
    const py::object& x, const py::object& w1, const py::object& b1, const py::object& w2, const py::object& b2,
    int64_t groups, bool sigmoid
) {
    Operands operands(x, w1, b1, w2, b2, groups, sigmoid);
    py::object out = empty_like(x, operands.layout);
    if (operands.is_empty) return out;
    operands.call.out = address(out);
    const py::gil_scoped_release release;
    cpu::kernels().channel_gate_forward(operands.call);
    return out;
}

// The gradients of x and of the four weights, None where not needed.
py::tuple backward(
    const py::object& grad_out, const py::object& x, const py::object& w1, const py::object& b1, const py::object& w2,
    const py::object& b2, int64_t groups, bool sigmoid, bool need_x, bool need_weights
) {
    const Operands operands(x, w1, b1, w2, b2, groups, sigmoid);
    const py::object grad = dense(grad_out, shape_of(x), dtype_of(x), operands.layout);
    const py::object grad_x = empty_like(x, operands.layout, need_x);
    std::array<py::object, 4> grads;
    for (size_t i = 0; i < grads.size(); ++i) {
        grads[i] = empty_like(operands.weights[i], Layout::contiguous, need_weights);
        if (operands.is_empty && need_weights) grads[i].attr("zero_")();
    }
    if (!operands.is_empty) {
        const ChannelGateBackward call{operands.call,     address(grad),     address(grad_x),  address(grads[0]),
                                       address(grads[1]), address(grads[2]), address(grads[3])};
        const py::gil_scoped_release release;
        cpu::kernels().channel_gate_backward(call);
    }
    return py::make_tuple(grad_x, grads[0], grads[1], grads[2], grads[3]);
}

const Binding binding([](py::module_& module) {
    module.def("channel_gate", &forward);
    module.def("channel_gate_backward", &backward);
});

}  // namespace
}  // namespace gcsa_ext
