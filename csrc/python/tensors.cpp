#include "python/tensors.h"

#include <memory>
#include <stdexcept>
#include <utility>

#include "python/dlpack.h"
#include "python/objects.h"

namespace py = pybind11;

namespace gcsa_ext {
namespace {

Torch& instance() {
    static Torch torch{};
    return torch;
}

py::object checked(PyObject* result) {
    if (!result) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
}

// Its code and bits in DLPack.
DLDataType element_type(PyObject* dtype) {
    const Torch& t = torch();
    constexpr uint8_t real = 2, brain = 4;
    if (dtype == t.float32) return {real, 32, 1};
    if (dtype == t.float64) return {real, 64, 1};
    if (dtype == t.bfloat16) return {brain, 16, 1};
    if (dtype == t.float16) return {real, 16, 1};
    throw std::invalid_argument("gcsa_ext._C: expected float32, float64, bfloat16 or float16");
}

Shape dense_strides(const Shape& shape, bool channels_last) {
    Shape strides(shape.size());
    int64_t step = 1;
    if (channels_last && shape.size() == 4) {
        for (const int axis : {1, 3, 2, 0}) strides[axis] = std::exchange(step, step * shape[axis]);
    } else {
        for (size_t axis = shape.size(); axis-- > 0;) strides[axis] = std::exchange(step, step * shape[axis]);
    }
    return strides;
}

py::capsule recycled(DLDataType type, Shape shape, Shape strides) {
    auto tensor = std::make_unique<RecycledTensor>(type, std::move(shape), std::move(strides));
    // Who takes the tensor over gives the capsule another name.
    py::capsule capsule(tensor->managed(), "dltensor", [](PyObject* object) {
        if (!PyCapsule_IsValid(object, "dltensor")) return;
        auto* const managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(object, "dltensor"));
        managed->deleter(managed);
    });
    tensor.release();
    return capsule;
}

}  // namespace

void use_torch(const py::dict& names) {
    static py::dict* const kept = new py::dict;  // never given back: the interpreter may end before
    *kept = names;
    Torch& t = instance();
    t.empty_names = checked(Py_BuildValue("(ss)", "dtype", "memory_format")).release().ptr();
    const std::pair<PyObject**, const char*> all[] = {
        {&t.Tensor, "Tensor"},
        {&t.Parameter, "Parameter"},
        {&t.float32, "float32"},
        {&t.float64, "float64"},
        {&t.bfloat16, "bfloat16"},
        {&t.float16, "float16"},
        {&t.int64, "int64"},
        {&t.channels_last, "channels_last"},
        {&t.contiguous_format, "contiguous_format"},
        {&t.empty, "empty"},
        {&t.from_dlpack, "from_dlpack"},
        {&t.threads, "threads"},
        {&t.increment_version, "increment_version"},
        {&t.is_grad_enabled, "is_grad_enabled"},
        {&t.autograd_excluded, "autograd_excluded"},
        {&t.is_inference_mode_enabled, "is_inference_mode_enabled"},
        {&t.is_autocast_enabled, "is_autocast_enabled"},
        {&t.get_autocast_dtype, "get_autocast_dtype"},
        {&t.get_default_dtype, "get_default_dtype"},
        {&t.observers, "observers"},
    };
    for (const auto& [to, name] : all) *to = py::object((*kept)[name]).ptr();
}
const Torch& torch() { return instance(); }

Shape shape_of(PyObject* tensor) {
    static const Name name("shape");
    const py::object sizes = name.of(tensor);
    Shape shape;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(sizes.ptr()); ++i) {
        shape.push_back(PyLong_AsLongLong(PyTuple_GET_ITEM(sizes.ptr(), i)));
        if (shape.back() < 0) throw py::error_already_set();
    }
    return shape;
}
int64_t stride(PyObject* tensor, int axis) { return py::handle(tensor).attr("stride")(axis).cast<int64_t>(); }
py::object dtype_of(PyObject* tensor) {
    static const Name name("dtype");
    return name.of(tensor);
}
void* address(PyObject* tensor) {
    static const Name name("data_ptr");
    void* const at = PyLong_AsVoidPtr(name.call(tensor).ptr());
    if (!at) throw std::invalid_argument("gcsa_ext._C: expected no null address for a tensor that is needed");
    return at;
}
int element_size(PyObject* dtype) { return element_type(dtype).bits / 8; }
bool is_dense(PyObject* tensor) {
    static const Name name("is_contiguous");
    return name.call(tensor).ptr() == Py_True;
}

py::object call(PyObject* function) { return checked(PyObject_CallNoArgs(function)); }
bool is_true(const py::object& value) {
    const int truth = PyObject_IsTrue(value.ptr());
    if (truth < 0) throw py::error_already_set();
    return truth != 0;
}
bool unobserved() {
    PyObject* const observers = torch().observers;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(observers); ++i)
        if (is_true(call(PyTuple_GET_ITEM(observers, i)))) return false;
    return true;
}

bool is_ordinary(PyObject* tensor) {
    static const Name is_cpu("is_cpu"), is_neg("is_neg"), is_inference("is_inference"), is_zero("_is_zerotensor");
    const auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(tensor));
    return (type == torch().Tensor || type == torch().Parameter) && is_cpu.of(tensor).ptr() == Py_True &&
           is_neg.call(tensor).ptr() == Py_False && is_zero.call(tensor).ptr() == Py_False &&
           (is_inference.call(tensor).ptr() == Py_False || is_true(call(torch().is_inference_mode_enabled)));
}
bool requires_gradient(PyObject* tensor) {
    static const Name requires_grad("requires_grad");
    return requires_grad.of(tensor).ptr() != Py_False;
}
bool go_directly(const py::tuple& tensors, bool without_gradient) {
    if (!unobserved()) return false;
    for (Py_ssize_t i = 0; i < size(tensors); ++i) {
        PyObject* const tensor = item(tensors, i);
        if (tensor != Py_None && (!is_ordinary(tensor) || (without_gradient && requires_gradient(tensor)))) return false;
    }
    return true;
}

py::object empty(const Shape& shape, PyObject* dtype, bool channels_last, int64_t large) {
    const DLDataType type = element_type(dtype);
    int64_t bytes = type.bits / 8;
    for (const int64_t length : shape) bytes *= length;
    if (bytes >= large) {
        const py::capsule capsule = recycled(type, shape, dense_strides(shape, channels_last));
        return checked(PyObject_CallOneArg(torch().from_dlpack, capsule.ptr()));
    }
    py::tuple sizes(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) sizes[i] = shape[i];
    PyObject* const arguments[] = {sizes.ptr(), dtype, channels_last ? torch().channels_last : torch().contiguous_format};
    return checked(PyObject_Vectorcall(torch().empty, arguments, 1, torch().empty_names));
}

}  // namespace gcsa_ext
