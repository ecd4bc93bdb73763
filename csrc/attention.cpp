#include "attention.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"
#include "gcsa.h"
#include "objects.h"
#include "running_statistics.h"
#include "tensors.h"

namespace py = pybind11;

namespace gcsa_ext {
namespace {

constexpr int weights = 12;  // of both linear layers, both convolutions, both normalisations: weight and bias
constexpr int gate_weights = 4, layer_weights = 8;

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
        call.conv1 = {at_[4], at_[5], layout_of(4)}, call.conv2 = {at_[6], at_[7], layout_of(6)};
        call.norm1 = {false, settings.eps[0], at_[8], at_[9], nullptr, nullptr};
        call.norm2 = {false, settings.eps[1], at_[10], at_[11], nullptr, nullptr};
        return true;
    }

    // Mean or variance of h or C channels that somebody gives.
    bool read_statistics(PyObject* tensor, int64_t channels, void*& to) const {
        if (!is_ordinary(tensor) || dtype_of(tensor).ptr() != sums.ptr() || !is_dense(tensor) ||
            shape_of(tensor) != Shape{channels})
            return false;
        to = address(tensor);
        return true;
    }

    Layout layout_of(int weight) const { return channels_last_[weight] ? Layout::channels_last : Layout::contiguous; }
    Shape shape() const { return {N, C, H, W}; }
    bool channels_last() const { return call.gate.map.layout == Layout::channels_last; }
    int64_t bytes_per_element() const {
        const DType type = call.gate.map.dtype;
        return type == DType::float64 ? 8 : type == DType::float32 ? 4 : 2;
    }
    int64_t bytes_per_sum() const { return call.gate.map.dtype == DType::float64 ? 8 : 4; }

    // What is kept, in elements of the map.
    int64_t u_size(int64_t channels) const {
        const int64_t lanes = 64 / bytes_per_sum();
        return N * ((channels + lanes - 1) / lanes * lanes) * H * W;
    }
    int64_t statistics_bytes() const { return 2 * (h + C) * bytes_per_sum(); }
    int64_t kept_size() const { return u_size(h) + u_size(C) + statistics_bytes() / bytes_per_element(); }
    void use_kept(void* kept) {
        char* const at = static_cast<char*>(kept);
        call.u1 = at;
        call.u2 = at + u_size(h) * bytes_per_element();
        use_statistics(at + (u_size(h) + u_size(C)) * bytes_per_element());
    }
    void use_statistics(char* at) {
        for (auto [to, channels] : statistics_()) {
            *to = at;
            at += channels * bytes_per_sum();
        }
    }
    std::array<std::pair<void**, int64_t>, 4> statistics_() {
        return {{{&call.norm1.mean, h}, {&call.norm1.var, h}, {&call.norm2.mean, C}, {&call.norm2.var, C}}};
    }

   private:
    bool channels_last_[weights] = {};
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
        const py::tuple tensors = plan[0], given = plan[1];
        const bool autocast = is_true(py::handle(torch().is_autocast_enabled)(cpu_()));
        if (!operands.read(x, tensors, 0, Settings(plan[2]), autocast)) return false;
        const int64_t h = operands.h, C = operands.C;
        const int64_t channels[] = {h, h, C, C};
        for (int i = 0; i < 4; ++i) {
            given_[i] = nullptr;
            if (item(given, i) != Py_None && !operands.read_statistics(item(given, i), channels[i], given_[i])) return false;
        }
        // Both of mean and variance or neither.
        if (!given_[0] != !given_[1] || !given_[2] != !given_[3]) return false;
        operands.call.norm1.batch_statistics = !given_[0];
        operands.call.norm2.batch_statistics = !given_[2];
        // One value per channel has no variance, which batch normalisation says well.
        values_ = operands.N * operands.H * operands.W;
        if ((!given_[0] || !given_[2]) && values_ < 2) return false;
        for (const py::handle entry : py::tuple(plan[4]))
            if (!read_running_(py::reinterpret_borrow<py::tuple>(entry))) return false;
        operands.call.mixed = autocast && py::handle(torch().get_autocast_dtype)(cpu_()).ptr() == torch().bfloat16;
        return true;
    }

    // The result; what is kept goes to `kept`, if that is wanted.
    py::object run(py::object* kept) {
        GcsaForward& call = operands.call;
        const py::object out = empty(operands.shape(), operands.dtype.ptr(), operands.channels_last());
        call.gate.out = address(out.ptr());
        std::vector<char> statistics;
        if (kept) {
            *kept = empty({operands.kept_size()}, operands.dtype.ptr());
            operands.use_kept(address(kept->ptr()));
        } else {
            statistics.resize(operands.statistics_bytes());
            operands.use_statistics(statistics.data());
        }
        auto slots = operands.statistics_();
        for (int i = 0; i < 4; ++i)
            if (given_[i]) std::memcpy(*slots[i].first, given_[i], slots[i].second * operands.bytes_per_sum());
        {
            const py::gil_scoped_release release;
            cpu::kernels().gcsa_forward(call);
            for (const Running& running : running_) move_(running);
        }
        if (!running_.empty()) {
            const py::object result = py::handle(torch().increment_version)(changed_);
        }
        return out;
    }

   private:
    bool read_running_(const py::tuple& entry) {
        static const Name momentum("momentum");
        static const Name dtype("dtype");
        Running r{};
        r.of = entry[0].cast<int>() / 2;
        r.channels = r.of == 0 ? operands.h : operands.C;
        const py::object share = momentum.of(item(entry, 1));
        if (!share.is_none() && !py::isinstance<py::float_>(share)) return false;
        if (!share.is_none()) r.momentum = share.cast<double>();
        PyObject* const batches = item(entry, 4);
        if (item(entry, 2) == Py_None || item(entry, 3) == Py_None || batches == Py_None) return false;
        if (!operands.read_statistics(item(entry, 2), r.channels, r.mean) ||
            !operands.read_statistics(item(entry, 3), r.channels, r.var) || !is_ordinary(batches) ||
            dtype_of(batches).ptr() != torch().int64 || !shape_of(batches).empty())
            return false;
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
        operands.bytes_per_sum() == 4 ? update(float{}) : update(double{});
    }
    static py::handle cpu_() {
        static PyObject* const name = PyUnicode_InternFromString("cpu");
        return name;
    }

    void* given_[4];
    int64_t values_;
    std::vector<Running> running_;
    py::list changed_;
};

}  // namespace

py::object attend(const py::dict& own, const py::object& x, const py::tuple& notes, const py::tuple& plan) {
    Attention attention;
    // A map on a GPU should not wait for the rest.
    if (!is_ordinary(x.ptr()) || !unobserved() || !unchanged(own, notes) || !attention.read(x, plan)) return py::none();
    if (!attention.operands.wants_gradient || !is_true(call(torch().is_grad_enabled))) return attention.run(nullptr);
    py::object kept;
    const py::object out = attention.run(&kept);
    return py::make_tuple(out, kept, attention.operands.call.mixed);
}

py::object differentiate(
    const py::object& grad_out, const py::tuple& saved, const py::tuple& settings, const py::tuple& batch, bool mixed,
    const py::tuple& need
) {
    Operands operands;
    if (is_true(call(torch().is_grad_enabled)) || !unobserved() ||
        !operands.read(saved[0], saved, 1, Settings(settings), true))
        return py::none();
    PyObject* const kept = item(saved, 1 + weights);
    if (!is_ordinary(grad_out.ptr()) || dtype_of(grad_out.ptr()).ptr() != operands.dtype.ptr() ||
        shape_of(grad_out.ptr()) != operands.shape() || !is_ordinary(kept) || dtype_of(kept).ptr() != operands.dtype.ptr() ||
        !is_dense(kept) || shape_of(kept) != Shape{operands.kept_size()})
        return py::none();
    const Torch& t = torch();
    const auto layout = py::handle(operands.channels_last() ? t.channels_last : t.contiguous_format);
    const py::object dense = grad_out.attr("contiguous")(py::arg("memory_format") = layout);
    operands.use_kept(address(kept));
    operands.call.mixed = mixed;
    operands.call.norm1.batch_statistics = batch[0].cast<bool>();
    operands.call.norm2.batch_statistics = batch[1].cast<bool>();

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
                i == 0 ? operands.channels_last() : operands.layout_of(i - 1) == Layout::channels_last
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
