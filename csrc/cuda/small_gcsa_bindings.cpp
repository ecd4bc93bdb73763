#include <array>

#include "binding.h"
#include "bindings.h"
#include "small_gcsa.h"

namespace gcsa_ext::cuda {

namespace {

using Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t>;  // batch, channels, height, width
using Settings = std::tuple<int64_t, int64_t, int64_t, bool>;  // hidden, groups, kernel_size, sigmoid
using Tf32 = std::pair<bool, bool>;                            // in the gate, in the convolutions
// weight; offset, norm_weight, norm_bias, mean, var; eps; used_mean, used_var
using Convolution = std::tuple<Address, std::array<TypedAddress, 5>, double, Address, Address>;

SmallConvolution convolution(const Convolution& found) {
    const auto& [weight, vectors, eps, used_mean, used_var] = found;
    require_addresses(weight, vectors[3].first, vectors[4].first, used_mean, used_var);
    return {pointer(weight),    vector(vectors[0]), vector(vectors[1]),        vector(vectors[2]),      vector(vectors[3]),
            vector(vectors[4]), float(eps),         pointer<float>(used_mean), pointer<float>(used_var)};
}

// The sizes and settings of a call, without its tensors.
SmallGcsa sized(int dtype, const Sizes& sizes, const Settings& settings, const Tf32& tf32, bool last) {
    const auto [batch, channels, height, width] = sizes;
    const auto [hidden, groups, kernel_size, sigmoid] = settings;
    require(height >= 1 && width >= 1, "a height and a width of at least 1");
    require(hidden >= 1 && groups >= 1 && channels % groups == 0, "hidden units, and groups that divide the channels");
    require(kernel_size >= 1 && kernel_size % 2 == 1, "an odd kernel size");
    SmallGcsa call{};
    call.gate.map = map(dtype, batch, channels, height * width);
    call.gate.hidden = hidden;
    call.gate.groups = groups;
    call.gate.sigmoid = sigmoid;
    call.gate.tf32 = tf32.first;
    call.gate.x_last = call.gate.out_last = last;
    call.height = height;
    call.width = width;
    call.kernel_size = kernel_size;
    call.convolution_tf32 = tf32.second;
    return call;
}

}  // namespace

void bind_small_gcsa(pybind11::module_& module) {
    // Returns the elements of the workspaces z and hidden (of the map's dtype) and partial (float32), and the plan.
    module.def(
        "plan_small_gcsa",
        [](const Target& target, int dtype, const Sizes& sizes, const Settings& settings, const Tf32& tf32, bool last) {
            const auto plan = plan_small_gcsa(sized(dtype, sizes, settings, tf32, last), device(target));
            return std::tuple(plan.z_elements, plan.hidden_elements, plan.partial_elements, to_dict(plan.kernel));
        }
    );
    module.def(
        "small_gcsa", [](const Target& target, int dtype, const Sizes& sizes, const Settings& settings, const Tf32& tf32,
                         bool last, Address x, const std::array<Address, 4>& gate, const Convolution& first,
                         const Convolution& second, Address out, const std::array<Address, 3>& workspace) {
            auto call = sized(dtype, sizes, settings, tf32, last);
            require_addresses(x, gate[0], gate[1], gate[2], gate[3], out, workspace[0], workspace[1], workspace[2]);
            call.gate.x = pointer(x);
            call.gate.w1 = pointer(gate[0]);
            call.gate.b1 = pointer(gate[1]);
            call.gate.w2 = pointer(gate[2]);
            call.gate.b2 = pointer(gate[3]);
            call.gate.out = pointer(out);
            call.convolutions[0] = convolution(first);
            call.convolutions[1] = convolution(second);
            call.z = pointer(workspace[0]);
            call.hidden = pointer(workspace[1]);
            call.partial = pointer<float>(workspace[2]);
            with_sizes(describe(call.gate.map), [&] { small_gcsa(call, device(target), stream(target)); });
        }
    );
}

}  // namespace gcsa_ext::cuda
