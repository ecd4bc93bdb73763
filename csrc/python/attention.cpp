#include "python/attention.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"
#include "params/gcsa.h"
#include "python/objects.h"
#include "python/running_statistics.h"
#include "python/tensors.h"

namespace py = pybind11;

namespace gcsa_ext {
namespace {

constexpr int weights = 12;  // of both linear layers, both convolutions, both normalisations: weight and bias
constexpr int gate_weights = 4, layer_weights = 8;
constexpr int statistics = 4;  // mean and variance of both normalisations

bool is_channels_last(PyObject* tensor) {
    return py::handle(tensor).attr("is_contiguous")(py::arg("memory_format") = py::handle(torch().channels_last)).ptr() ==
           Py_True;
}
py::object converted(const py::object& tensor, const py::object& dtype) {
    return dtype_of(tensor.ptr()).is(dtype) ? tensor : tensor.attr("to")(dtype);
}

struct Settings {  // as in a plan
    std::array<double, 2> eps;
    int64_t groups;
    bool sigmoid;

    explicit Settings(const py::tuple& t)
        : eps{t[0].cast<double>(), t[1].cast<double>()}, groups(t[2].cast<int64_t>()), sigmoid(t[3].cast<bool>()) {}
};

// A map and the weights of its attention, as the kernels take them.
class Operands {
   public:
    int64_t N, C, H, W, h, k;
    py::object dtype, sums;  // of the map; of sums and what the kernels take but the map and the channel gate's weights
    bool wants_gradient = false;
    GcsaForward call{};

    // Whether all are ordinary. `tensors` are the weights, from `first` on, with `any_dtype` also of the sums'.
    bool read(const py::object& x, const py::tuple& tensors, Py_ssize_t first, const Settings& settings, bool any_dtype) {
        const Torch& t = torch();
        if (!is_ordinary(x.ptr())) return false;
        const Shape shape = shape_of(x.ptr());
        dtype = dtype_of(x.ptr());
        const bool brain = dtype.ptr() == t.bfloat16;
        if (shape.size() != 4 || !(brain || dtype.ptr() == t.float32 || dtype.ptr() == t.float64)) return false;
        N = shape[0], C = shape[1], H = shape[2], W = shape[3];
        if (N * C * H * W == 0) return false;
        Layout layout = Layout::contiguous;
        if (!is_dense(x.ptr())) {
            if (!is_channels_last(x.ptr())) return false;
            layout = Layout::channels_last;
        }
        sums = brain ? py::reinterpret_borrow<py::object>(t.float32) : dtype;
        wants_gradient = requires_gradient(x.ptr());

        const auto weight = [&](int i) { return item(tensors, first + i); };
        const Shape hidden = shape_of(weight(0)), taps = shape_of(weight(4));
        if (hidden.size() != 2 || taps.size() != 4) return false;
        h = hidden[0], k = taps[3];
        if (h < 1 || k < 3 || k > 11 || k % 2 == 0 || settings.groups < 1 || C % settings.groups != 0) return false;
        const Shape shapes[weights] = {{h, C}, {h}, {C, h}, {C}, {h, C, k, k}, {h}, {C, h, k, k}, {C}, {h}, {h}, {C}, {C}};
        for (int i = 0; i < weights; ++i) {
            PyObject* const tensor = weight(i);
            if (tensor == Py_None && i > gate_weights && i != 6) {
                at_[i] = nullptr;
                continue;
            }
            if (tensor == Py_None || !is_ordinary(tensor) || shape_of(tensor) != shapes[i]) return false;
            channels_last_[i] = !is_dense(tensor);
            named_channels_last_[i] =
                channels_last_[i] || (shapes[i].size() == 4 && shapes[i][1] == 1 && stride(tensor, 1) == 1);
            if (channels_last_[i] && (shapes[i].size() != 4 || !is_channels_last(tensor))) return false;
            const py::object given = dtype_of(tensor);
            // Without autocast other dtypes are a mistake, and the layers say so; those of a normalisation are not.
            const bool fits = given.is(dtype) || (given.is(sums) && (any_dtype || i >= layer_weights));
            if (!fits) return false;
            wants_gradient = wants_gradient || requires_gradient(tensor);
            const py::object& taken = i < gate_weights ? dtype : sums;
            held_[i] = converted(py::reinterpret_borrow<py::object>(tensor), taken);
            at_[i] = address(held_[i].ptr());
        }
        const FeatureMap map{
            brain                      ? DType::bfloat16
            : dtype.ptr() == t.float64 ? DType::float64
                                       : DType::float32,
            layout,
            N,
            C,
            H * W,
            gcsa_ext::call(t.threads).cast<int>()
        };
        call.gate = {map, h, settings.groups, settings.sigmoid, address(x.ptr()), at_[0], at_[1], at_[2], at_[3], nullptr};
        call.height = H, call.width = W, call.kernel = k;
        call.conv1 = {at_[4], at_[5], layout_of(4)};
        call.conv2 = {at_[6], at_[7], layout_of(6)};
        call.norm1 = {false, settings.eps[0], at_[8], at_[9], nullptr, nullptr};
        call.norm2 = {false, settings.eps[1], at_[10], at_[11], nullptr, nullptr};
        return true;
    }

    // Whether a vector of h or C channels is an ordinary one without a gradient, of the sums' dtype or at least the map's.
    bool is_vector(PyObject* tensor, int64_t channels, bool any_dtype) const {
        return is_ordinary(tensor) && (dtype_of(tensor).is(sums) || (any_dtype && dtype_of(tensor).is(dtype))) &&
               is_dense(tensor) && shape_of(tensor) == Shape{channels} && !requires_gradient(tensor);
    }
    // Whether what a forward pass keeps of a convolution's output is what it was.
    bool is_kept(PyObject* tensor, int64_t channels) const {
        return is_ordinary(tensor) && dtype_of(tensor).is(dtype) && is_dense(tensor) &&
               shape_of(tensor) == kept_shape(channels);
    }

    Layout layout_of(int weight) const { return channels_last_[weight] ? Layout::channels_last : Layout::contiguous; }
    // Of a weight with one input both layouts are the same in memory, but not in their strides.
    bool named_channels_last(int weight) const { return named_channels_last_[weight]; }
    Shape shape() const { return {N, C, H, W}; }
    bool channels_last() const { return call.gate.map.layout == Layout::channels_last; }
    // Channels padded to the lanes of the widest vector.
    Shape kept_shape(int64_t channels) const {
        const int64_t padding = 64 / element_size(sums.ptr());
        return {N, (channels + padding - 1) / padding * padding, H, W};
    }
    struct Statistic {
        void** at;
        int64_t channels;
    };
    std::array<Statistic, statistics> used() {
        return {{{&call.norm1.mean, h}, {&call.norm1.var, h}, {&call.norm2.mean, C}, {&call.norm2.var, C}}};
    }

   private:
    bool channels_last_[weights] = {}, named_channels_last_[weights] = {};
    void* at_[weights];
    py::object held_[weights];
};

// Running statistics that move towards those of a batch.
struct Running {
    void *mean, *var;
    int64_t *batches, channels;
    std::optional<double> momentum;
    int of;  // which normalisation
};

// One call that is ready to run.
class Attention {
   public:
    Operands operands;

    bool read(const py::object& x, const py::tuple& plan) {
        const py::tuple tensors = plan[0], given = plan[1], batch = plan[3];
        const bool autocast = is_true(py::handle(torch().is_autocast_enabled)(cpu_()));
        if (!operands.read(x, tensors, 0, Settings(plan[2]), autocast)) return false;
        const auto used = operands.used();
        for (int i = 0; i < statistics; ++i) {
            const bool of_batch = item(batch, i / 2) == Py_True;
            if (of_batch != (item(given, i) == Py_None)) return false;
            if (of_batch) continue;
            if (!operands.is_vector(item(given, i), used[i].channels, true)) return false;
            given_[i] = converted(py::reinterpret_borrow<py::object>(item(given, i)), operands.sums);
        }
        operands.call.norm1.batch_statistics = item(batch, 0) == Py_True;
        operands.call.norm2.batch_statistics = item(batch, 1) == Py_True;
        // One value per channel has no variance, which batch normalisation says well.
        values_ = operands.N * operands.H * operands.W;
        if ((item(batch, 0) == Py_True || item(batch, 1) == Py_True) && values_ < 2) return false;
        for (const py::handle entry : py::tuple(plan[4]))
            if (!read_running_(py::reinterpret_borrow<py::tuple>(entry))) return false;
        operands.call.mixed = autocast && py::handle(torch().get_autocast_dtype)(cpu_()).ptr() == torch().bfloat16;
        return true;
    }

    // The result, and if something is to be kept, a tuple of it and that.
    py::object run(bool keep) {
        GcsaForward& call = operands.call;
        py::object out = empty(operands.shape(), operands.dtype.ptr(), operands.channels_last());
        call.gate.out = address(out.ptr());
        py::object kept[2], used[statistics];
        if (keep) {
            kept[0] = empty(operands.kept_shape(operands.h), operands.dtype.ptr());
            kept[1] = empty(operands.kept_shape(operands.C), operands.dtype.ptr());
            call.u1 = address(kept[0].ptr()), call.u2 = address(kept[1].ptr());
        }
        const auto slots = operands.used();
        for (int i = 0; i < statistics; ++i) {
            const auto [at, channels] = slots[i];
            used[i] = given_[i] && !keep ? given_[i] : empty({channels}, operands.sums.ptr());
            *at = address(used[i].ptr());
            // What is kept must not change with the running statistics.
            if (given_[i] && keep) std::memcpy(*at, address(given_[i].ptr()), channels * element_size(operands.sums.ptr()));
        }
        {
            const py::gil_scoped_release release;
            cpu::kernels().gcsa_forward(call);
            for (const Running& running : running_) move_(running);
        }
        if (!running_.empty()) py::handle(torch().increment_version)(changed_);
        if (!keep) return out;
        return py::make_tuple(out, kept[0], kept[1], used[0], used[1], used[2], used[3], call.mixed);
    }

   private:
    bool read_running_(const py::tuple& entry) {
        static const Name momentum("momentum");
        Running r{};
        r.of = entry[0].cast<int>() / 2;
        r.channels = r.of == 0 ? operands.h : operands.C;
        const py::object share = momentum.of(item(entry, 1));
        if (!share.is_none() && !py::isinstance<py::float_>(share)) return false;
        if (!share.is_none()) r.momentum = share.cast<double>();
        PyObject *const mean = item(entry, 2), *const var = item(entry, 3), *const batches = item(entry, 4);
        if (mean == Py_None || var == Py_None || batches == Py_None || !operands.is_vector(mean, r.channels, false) ||
            !operands.is_vector(var, r.channels, false) || !is_ordinary(batches) ||
            dtype_of(batches).ptr() != torch().int64 || !shape_of(batches).empty())
            return false;
        r.mean = address(mean), r.var = address(var);
        r.batches = static_cast<int64_t*>(address(batches));
        for (int i = 2; i < 5; ++i) changed_.append(entry[i]);
        running_.push_back(r);
        return true;
    }
    void move_(const Running& r) const {
        const BatchNorm& norm = r.of == 0 ? operands.call.norm1 : operands.call.norm2;
        const int64_t seen = ++*r.batches;
        const double share = r.momentum ? *r.momentum : 1 / static_cast<double>(seen);
        const auto update = [&](auto type) {
            using T = decltype(type);
            update_running_statistics(
                static_cast<T*>(r.mean), static_cast<T*>(r.var), static_cast<const T*>(norm.mean),
                static_cast<const T*>(norm.var), r.channels, values_, share
            );
        };
        operands.call.gate.map.dtype == DType::float64 ? update(double{}) : update(float{});
    }
    static py::handle cpu_() {
        static PyObject* const name = PyUnicode_InternFromString("cpu");
        return name;
    }

    py::object given_[statistics];
    int64_t values_;
    std::vector<Running> running_;
    py::list changed_;
};

}  // namespace

py::object attend(const py::dict& own, const py::object& x, const py::tuple& notes, const py::tuple& plan) {
    if (size(notes) != 4 || size(plan) != 5) throw std::invalid_argument("gcsa_ext._C: expected notes and a plan");
    Attention attention;
    // A map on a GPU should not wait for the rest.
    if (!is_ordinary(x.ptr()) || !unobserved() || !unchanged(own, notes) || !attention.read(x, plan)) return py::none();
    // Within inference mode, and below the dispatcher's autograd, nothing is recorded even where gradients are enabled.
    const bool keep = attention.operands.wants_gradient && is_true(call(torch().is_grad_enabled)) &&
                      !is_true(call(torch().autograd_excluded));
    return attention.run(keep);
}

py::object differentiate(
    const py::object& grad_out, const py::tuple& saved, const py::tuple& settings, const py::tuple& batch, bool mixed,
    const py::tuple& need
) {
    constexpr int kept = 1 + weights, used = kept + 2;
    if (size(saved) != used + statistics || size(settings) != 4 || size(batch) != 2 || size(need) != 1 + weights)
        throw std::invalid_argument("gcsa_ext._C: expected what `attend` was given and has kept");
    Operands operands;
    if (is_true(call(torch().is_grad_enabled)) || !unobserved() ||
        !operands.read(saved[0], saved, 1, Settings(settings), true))
        return py::none();
    if (!is_ordinary(grad_out.ptr()) || !dtype_of(grad_out.ptr()).is(operands.dtype) ||
        shape_of(grad_out.ptr()) != operands.shape() || !operands.is_kept(item(saved, kept), operands.h) ||
        !operands.is_kept(item(saved, kept + 1), operands.C))
        return py::none();
    const auto slots = operands.used();
    for (int i = 0; i < statistics; ++i) {
        if (!operands.is_vector(item(saved, used + i), slots[i].channels, false)) return py::none();
        *slots[i].at = address(item(saved, used + i));
    }
    operands.call.u1 = address(item(saved, kept)), operands.call.u2 = address(item(saved, kept + 1));
    operands.call.mixed = mixed;
    operands.call.norm1.batch_statistics = batch[0].cast<bool>();
    operands.call.norm2.batch_statistics = batch[1].cast<bool>();
    const Torch& t = torch();
    const auto layout = py::handle(operands.channels_last() ? t.channels_last : t.contiguous_format);
    const py::object dense = grad_out.attr("contiguous")(py::arg("memory_format") = layout);

    const auto needed = [&](int i) { return item(need, i) == Py_True; };
    bool gate = false;  // its four gradients come together
    for (int i = 1; i <= gate_weights; ++i) gate = gate || needed(i);
    py::object grads[1 + weights];
    void* at[1 + weights];
    for (int i = 0; i <= weights; ++i) {
        PyObject* const input = item(saved, i);
        const bool of_gate = i >= 1 && i <= gate_weights;
        const bool computed = input != Py_None && (of_gate ? gate : needed(i));
        if (computed)
            grads[i] = empty(
                shape_of(input), (i <= gate_weights ? operands.dtype : operands.sums).ptr(),
                i == 0 ? operands.channels_last() : operands.named_channels_last(i - 1)
            );
        at[i] = computed ? address(grads[i].ptr()) : nullptr;
    }
    {
        const GcsaBackward backward{operands.call, address(dense.ptr()),
                                    at[0],         at[1],
                                    at[2],         at[3],
                                    at[4],         at[5],
                                    at[6],         at[9],
                                    at[10],        at[7],
                                    at[8],         at[11],
                                    at[12]};
        const py::gil_scoped_release release;
        cpu::kernels().gcsa_backward(backward);
    }
    py::tuple result(1 + weights);
    for (int i = 0; i <= weights; ++i) {
        const bool wanted = grads[i] && needed(i);
        result[i] = wanted ? converted(grads[i], dtype_of(item(saved, i))) : py::none();
    }
    return std::move(result);
}

}  // namespace gcsa_ext
