// The operator gcsa: from tensors to one call of the kernel, forward and backward.

#include "params/gcsa.h"

#include <array>
#include <cstring>
#include <iterator>
#include <utility>

#include "cpu/dispatch.h"
#include "python/binding.h"
#include "python/tensors.h"

namespace py = pybind11;

namespace gcsa_ext {
namespace {

// The fields of gcsa_ext.ops.gcsa.Arguments, in its order.
enum Field {
    X,
    W1,
    B1,
    W2,
    B2,
    CONV1_WEIGHT,
    CONV1_BIAS,
    CONV2_WEIGHT,
    CONV2_BIAS,
    NORM1_WEIGHT,
    NORM1_BIAS,
    NORM2_WEIGHT,
    NORM2_BIAS,
    MEAN1,
    VAR1,
    MEAN2,
    VAR2,
    EPS1,
    EPS2,
    GROUPS,
    SIGMOID,
    MIXED,
    GATE_GROUPS,
    GATE_SIGMOID,
    REPLICATE,
    FIELDS
};
constexpr int differentiable = NORM2_BIAS + 1;

py::object zeros(const Shape& shape, const py::object& dtype) {
    py::object tensor = empty(shape, dtype);
    std::memset(address(tensor), 0, elements(shape) * element_size(dtype));
    return tensor;
}

// The operands, each dense in the dtype that the kernels take, and the call that they make.
class Operands {
   public:
    Operands(const py::tuple& a, bool batch1, bool batch2) {
        require(a.size() == FIELDS, "the fields of gcsa_ext.ops.gcsa.Arguments");
        const Layout layout = layout_of(a[X]);
        call.gate.map = feature_map(a[X], layout);
        dtype = dtype_of(a[X]), sums = sum_dtype(dtype);
        shape = shape_of(a[X]);
        const Shape layer = shape_of(a[W1]), taps1 = shape_of(a[CONV1_WEIGHT]), taps2 = shape_of(a[CONV2_WEIGHT]);
        require(layer.size() == 2 && taps1.size() == 4 && taps2.size() == 4, "weights (h, C) and (outputs, inputs, k, k)");
        const int64_t C = shape[1], h = layer[0], m = taps1[0];
        hidden = m;
        require(elements(shape) > 0 && h >= 1 && m >= 1, "a map that is not empty, and hidden channels");
        call.gate.groups = py::cast<int64_t>(a[GROUPS]);
        call.gate_groups = py::cast<int64_t>(a[GATE_GROUPS]);
        for (const int64_t groups : {call.gate.groups, call.gate_groups})
            require(groups >= 1 && C % groups == 0, "groups that divide the channels");

        const Shape weight1 = weight_shape(taps1, C, m), weight2 = weight_shape(taps2, m, C);
        const Shape shapes[] = {shape, {h, C}, {h}, {C, h}, {C}, weight1, {m}, weight2, {C},
                                {m},   {m},    {C}, {C},    {m}, {m},     {C}, {C}};
        for (int i = 0; i <= VAR2; ++i) {
            const bool of_map = i <= B2;  // the channel gate's weights have the dtype of the map
            if (i == X || i == CONV1_WEIGHT || i == CONV2_WEIGHT) layouts_[i] = layout_of(a[i]);
            held_[i] = dense(a[i], shapes[i], of_map ? dtype : sums, layouts_[i]);
        }
        for (const int i : {W1, W2, CONV1_WEIGHT, CONV2_WEIGHT})
            require(!held_[i].is_none(), "all weights of the channel gate and of the convolutions");
        for (const int i : {B1, B2})
            if (held_[i].is_none()) held_[i] = zeros(shapes[i], dtype);
        call.gate.hidden = h;
        call.gate.sigmoid = py::cast<bool>(a[SIGMOID]);
        call.gate.x = at(X);
        call.gate.w1 = at(W1), call.gate.b1 = at(B1), call.gate.w2 = at(W2), call.gate.b2 = at(B2);
        call.height = shape[2], call.width = shape[3], call.hidden = m;
        call.conv1 = {at(CONV1_WEIGHT), at(CONV1_BIAS), layouts_[CONV1_WEIGHT], weight1[3], C / weight1[1]};
        call.conv2 = {at(CONV2_WEIGHT), at(CONV2_BIAS), layouts_[CONV2_WEIGHT], weight2[3], m / weight2[1]};
        call.gate_sigmoid = py::cast<bool>(a[GATE_SIGMOID]);
        call.replicate = py::cast<bool>(a[REPLICATE]);
        call.norm1 = {batch1, py::cast<double>(a[EPS1]), at(NORM1_WEIGHT), at(NORM1_BIAS), at(MEAN1), at(VAR1)};
        call.norm2 = {batch2, py::cast<double>(a[EPS2]), at(NORM2_WEIGHT), at(NORM2_BIAS), at(MEAN2), at(VAR2)};
        call.mixed = py::cast<bool>(a[MIXED]);
    }

    void* at(int field) const { return address(held_[field]); }
    const py::object& operand(int field) const { return held_[field]; }
    Layout layout(int field) const { return layouts_[field]; }
    // Of a convolution's output as it is saved: channels padded to the lanes of the widest vector.
    Shape saved_shape(int64_t channels) const {
        const int64_t lanes = 64 / element_size(sums);
        return {shape[0], (channels + lanes - 1) / lanes * lanes, shape[2], shape[3]};
    }

    GcsaForward call{};
    py::object dtype, sums;  // of the map; of sums and statistics
    Shape shape;             // N, C, H, W
    int64_t hidden;

   private:
    // The shape of a convolution's weights: that of the given ones, if its groups and its kernel size fit.
    static Shape weight_shape(const Shape& taps, int64_t inputs, int64_t outputs) {
        const int64_t per_group = taps[1], k = taps[3];
        require(k >= 1 && k <= 11 && k % 2 == 1, "odd kernel sizes up to 11");
        require(
            per_group >= 1 && inputs % per_group == 0 && outputs % (inputs / per_group) == 0,
            "groups that divide the inputs and the outputs of a convolution"
        );
        return {outputs, per_group, k, k};
    }

    std::array<py::object, VAR2 + 1> held_;
    std::array<Layout, VAR2 + 1> layouts_{};
};

// The result; both convolutions' outputs in the kernels' own layout; mean and variance of both normalisations, those of the
// batch or copies of the given ones.
py::tuple forward(const py::tuple& a) {
    require(a.size() == FIELDS, "the fields of gcsa_ext.ops.gcsa.Arguments");
    Operands operands(a, a[MEAN1].is_none(), a[MEAN2].is_none());
    GcsaForward& call = operands.call;
    const py::object out = empty(operands.shape, operands.dtype, operands.layout(X));
    const py::object u1 = empty(operands.saved_shape(operands.hidden), operands.dtype);
    const py::object u2 = empty(operands.saved_shape(operands.shape[1]), operands.dtype);
    call.gate.out = address(out), call.u1 = address(u1), call.u2 = address(u2);
    void** const slots[] = {&call.norm1.mean, &call.norm1.var, &call.norm2.mean, &call.norm2.var};
    py::object used[std::size(slots)];
    for (size_t i = 0; i < std::size(slots); ++i) {
        const py::object& given = operands.operand(MEAN1 + static_cast<int>(i));
        const int64_t channels = i < 2 ? operands.hidden : operands.shape[1];
        used[i] = given.is_none() ? empty({channels}, operands.sums) : given.attr("clone")();
        *slots[i] = address(used[i]);
    }
    {
        const py::gil_scoped_release release;
        cpu::kernels().gcsa_forward(call);
    }
    return py::make_tuple(out, u1, u2, used[0], used[1], used[2], used[3]);
}

// The result alone; all statistics are given.
py::object inference(const py::tuple& a) {
    Operands operands(a, false, false);
    for (int i = MEAN1; i <= VAR2; ++i) require(!operands.operand(i).is_none(), "mean and var of both normalisations");
    py::object out = empty(operands.shape, operands.dtype, operands.layout(X));
    operands.call.gate.out = address(out);
    const py::gil_scoped_release release;
    cpu::kernels().gcsa_forward(operands.call);
    return out;
}

// The gradients of the differentiable operands, None where not needed. Mean and variance in the arguments, `u1` and `u2` are
// results of the forward pass.
py::tuple backward(
    const py::object& grad_out, const py::tuple& a, const py::object& u1, const py::object& u2,
    const std::pair<bool, bool>& batch, const py::sequence& need
) {
    Operands operands(a, batch.first, batch.second);
    GcsaForward& call = operands.call;
    require(need.size() == differentiable, "whether each differentiable operand needs a gradient");
    for (int i = MEAN1; i <= VAR2; ++i) require(!operands.operand(i).is_none(), "mean and var of the forward pass");
    const py::object kept1 = dense(u1, operands.saved_shape(operands.hidden), operands.dtype);
    const py::object kept2 = dense(u2, operands.saved_shape(operands.shape[1]), operands.dtype);
    const py::object grad = dense(grad_out, operands.shape, operands.dtype, operands.layout(X));
    call.u1 = address(kept1), call.u2 = address(kept2);

    bool wanted[differentiable];
    for (int i = 0; i < differentiable; ++i) wanted[i] = need[i].cast<bool>();
    const bool gate = wanted[W1] || wanted[B1] || wanted[W2] || wanted[B2];  // the kernel computes the four together
    py::object grads[differentiable];
    void* to[differentiable];
    for (int i = 0; i < differentiable; ++i) {
        const bool computed = i >= W1 && i <= B2 ? gate : wanted[i];
        grads[i] = empty_like(operands.operand(i), operands.layout(i), computed);
        to[i] = address(grads[i]);
    }
    const GcsaBackward arguments{call,           address(grad),    to[X],          to[W1],
                                 to[B1],         to[W2],           to[B2],         to[CONV1_WEIGHT],
                                 to[CONV1_BIAS], to[NORM1_WEIGHT], to[NORM1_BIAS], to[CONV2_WEIGHT],
                                 to[CONV2_BIAS], to[NORM2_WEIGHT], to[NORM2_BIAS]};
    {
        const py::gil_scoped_release release;
        cpu::kernels().gcsa_backward(arguments);
    }
    py::tuple result(differentiable);
    for (int i = 0; i < differentiable; ++i)
        result[i] = wanted[i] && !a[i].is_none() ? converted(grads[i], dtype_of(a[i])) : py::none();
    return result;
}

const Binding binding([](py::module_& module) {
    module.def("gcsa", &forward);
    module.def("gcsa_backward", &backward);
    module.def("gcsa_inference", &inference);
});

}  // namespace
}  // namespace gcsa_ext
