// The operator conv2d_same: from tensors to one call of the kernel, forward and backward.

#include "params/convolution.h"

#include "cpu/dispatch.h"
#include "python/binding.h"
#include "python/tensors.h"

namespace py = pybind11;

namespace gcsa_ext {
namespace {

// x, dense; weight and bias, in the dtype of sums; and the call that they make.
struct Operands {
    Operands(const py::object& map, const py::object& taps, const py::object& offset) : layout(layout_of(map)) {
        const py::object sums = sum_dtype(dtype_of(map));
        const Shape shape = shape_of(map), sizes = shape_of(taps);
        require(shape.size() == 4 && sizes.size() == 4 && elements(shape) > 0, "a map (N, C, H, W) that is not empty");
        const int64_t O = sizes[0], k = sizes[3];
        require(O >= 1 && k >= 3 && k <= 11 && k % 2 == 1, "an odd kernel size from 3 to 11, and output channels");
        out_shape = {shape[0], O, shape[2], shape[3]};
        x = dense(map, layout);
        weight = dense(taps, {O, shape[1], k, k}, sums), bias = dense(offset, {O}, sums);
        call = {feature_map(x, layout), shape[2], shape[3], O, k, address(x), address(weight), address(bias), nullptr};
    }

    Layout layout;
    Shape out_shape;
    py::object x, weight, bias;
    ConvolutionForward call;
};

// As gcsa_ext.reference.conv2d_same; in the layout of x.
py::object forward(const py::object& x, const py::object& weight, const py::object& bias) {
    Operands operands(x, weight, bias);
    py::object out = empty(operands.out_shape, dtype_of(x), operands.layout);
    operands.call.out = address(out);
    const py::gil_scoped_release release;
    cpu::kernels().convolution_forward(operands.call);
    return out;
}

// The gradients of x and weight, None where not needed.
py::tuple backward(
    const py::object& grad_out, const py::object& x, const py::object& weight, bool need_x, bool need_weight
) {
    const Operands operands(x, weight, py::none());
    const py::object grad = dense(grad_out, operands.out_shape, dtype_of(x), operands.layout);
    const py::object grad_x = empty_like(x, operands.layout, need_x);
    const py::object grad_weight = empty_like(operands.weight, Layout::contiguous, need_weight);
    {
        const ConvolutionBackward call{operands.call, address(grad), address(grad_x), address(grad_weight)};
        const py::gil_scoped_release release;
        cpu::kernels().convolution_backward(call);
    }
    return py::make_tuple(grad_x, converted(grad_weight, dtype_of(weight)));
}

const Binding binding([](py::module_& module) {
    module.def("convolution", &forward);
    module.def("convolution_backward", &backward);
});

}  // namespace
}  // namespace gcsa_ext
