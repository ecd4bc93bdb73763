// The operator norm_gate: from tensors to one call of the kernel, forward and backward.

#include "params/norm_gate.h"

#include "cpu/dispatch.h"
#include "python/binding.h"
#include "python/tensors.h"

namespace py = pybind11;

namespace gcsa_ext {
namespace {

// u and z, dense in the layout of z; the vectors, in the dtype of sums; and the call that they make.
struct Operands {
    Operands(
        const py::object& normalised, const py::object& gated, const py::object& scale, const py::object& shift,
        const py::object& given_mean, const py::object& given_var, double eps, bool batch_statistics
    )
        : layout(layout_of(gated)), sums(sum_dtype(dtype_of(normalised))) {
        const Shape shape = shape_of(gated);
        require(shape.size() == 4 && shape_of(normalised) == shape, "u and z of one shape (N, C, H, W)");
        require(dtype_of(normalised).is(dtype_of(gated)), "u and z of one dtype");
        channels = {shape[1]};
        is_empty = elements(shape) == 0;
        u = dense(normalised, layout), z = dense(gated, layout);
        weight = dense(scale, channels, sums), bias = dense(shift, channels, sums);
        mean = dense(given_mean, channels, sums), var = dense(given_var, channels, sums);
        call = {feature_map(u, layout), batch_statistics, eps,           address(u),   address(z),
                address(weight),        address(bias),    address(mean), address(var), nullptr};
    }

    Layout layout;
    py::object sums;
    Shape channels;
    bool is_empty;
    py::object u, z, weight, bias, mean, var;
    NormGateForward call;
};

// As gcsa_ext.reference.norm_gate, in the layout of z; also copies of the statistics that it used (biased variance).
py::tuple forward(
    const py::object& u, const py::object& z, const py::object& weight, const py::object& bias, const py::object& mean,
    const py::object& var, double eps
) {
    const bool batch_statistics = mean.is_none() || var.is_none();
    Operands operands(u, z, weight, bias, mean, var, eps, batch_statistics);
    const auto used = [&](const py::object& given) {
        if (!batch_statistics) return given.attr("clone")();
        const py::object made = empty(operands.channels, operands.sums);
        return operands.is_empty ? made.attr("zero_")() : made;
    };
    const py::object out = empty_like(z, operands.layout), used_mean = used(operands.mean), used_var = used(operands.var);
    if (!operands.is_empty) {
        operands.call.mean = address(used_mean), operands.call.var = address(used_var);
        operands.call.out = address(out);
        const py::gil_scoped_release release;
        cpu::kernels().norm_gate_forward(operands.call);
    }
    return py::make_tuple(out, used_mean, used_var);
}

// The gradients of u, z, weight and bias, None where not needed; mean and var are those of the forward pass.
py::tuple backward(
    const py::object& grad_out, const py::object& u, const py::object& z, const py::object& weight, const py::object& bias,
    const py::object& mean, const py::object& var, double eps, bool batch_statistics, bool need_u, bool need_z,
    bool need_weight, bool need_bias
) {
    const Operands operands(u, z, weight, bias, mean, var, eps, batch_statistics);
    require(!mean.is_none() && !var.is_none(), "mean and var of the forward pass");
    const py::object grad = dense(grad_out, shape_of(z), dtype_of(z), operands.layout);
    const py::object grad_u = empty_like(u, operands.layout, need_u), grad_z = empty_like(z, operands.layout, need_z);
    const auto vector = [&](bool needed) -> py::object {
        if (!needed) return py::none();
        const py::object made = empty(operands.channels, operands.sums);
        return operands.is_empty ? made.attr("zero_")() : made;
    };
    const py::object grad_weight = vector(need_weight), grad_bias = vector(need_bias);
    if (!operands.is_empty) {
        const NormGateBackward call{operands.call,   address(grad),        address(grad_u),
                                    address(grad_z), address(grad_weight), address(grad_bias)};
        const py::gil_scoped_release release;
        cpu::kernels().norm_gate_backward(call);
    }
    const auto like = [](const py::object& gradient, const py::object& parameter) {
        return parameter.is_none() ? gradient : converted(gradient, dtype_of(parameter));
    };
    return py::make_tuple(grad_u, grad_z, like(grad_weight, weight), like(grad_bias, bias));
}

const Binding binding([](py::module_& module) {
    module.def("norm_gate", &forward);
    module.def("norm_gate_backward", &backward);
});

}  // namespace
}  // namespace gcsa_ext
