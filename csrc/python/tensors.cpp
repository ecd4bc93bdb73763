#include "python/tensors.h"

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "python/dlpack.h"

namespace py = pybind11;

namespace gcsa_ext {
namespace {

// Never destroyed: the interpreter may end before static objects do.
Torch& instance() {
    static Torch* const torch = new Torch;
    return *torch;
}

py::object checked(PyObject* result) {
    if (!result) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
}

// A name that attributes are looked up by, interned once.
class Name {
   public:
    explicit Name(const char* text) : text_(checked(PyUnicode_InternFromString(text)).release().ptr()) {}
    py::object of(py::handle object) const { return checked(PyObject_GetAttr(object.ptr(), text_)); }
    py::object call(py::handle object) const { return checked(PyObject_CallMethodNoArgs(object.ptr(), text_)); }

   private:
    PyObject* text_;
};

bool is_contiguous(py::handle tensor) {
    static const Name name("is_contiguous");
    return name.call(tensor).ptr() == Py_True;
}
bool is_channels_last(py::handle tensor) {
    return tensor.attr("is_contiguous")(py::arg("memory_format") = torch().channels_last).ptr() == Py_True;
}

// The code and the bits of a dtype in DLPack.
DLDataType element_type(py::handle dtype) {
    const Torch& t = torch();
    constexpr uint8_t real = 2, brain = 4;
    if (dtype.is(t.float32)) return {real, 32, 1};
    if (dtype.is(t.float64)) return {real, 64, 1};
    if (dtype.is(t.bfloat16)) return {brain, 16, 1};
    if (dtype.is(t.float16)) return {real, 16, 1};
    throw std::invalid_argument("gcsa_ext._C: expected float32, float64, bfloat16 or float16");
}

Shape dense_strides(const Shape& shape, Layout layout) {
    Shape strides(shape.size());
    int64_t step = 1;
    if (layout == Layout::channels_last) {
        for (const int axis : {1, 3, 2, 0}) strides[axis] = std::exchange(step, step * shape[axis]);
    } else {
        for (size_t axis = shape.size(); axis-- > 0;) strides[axis] = std::exchange(step, step * shape[axis]);
    }
    return strides;
}

py::capsule recycled(DLDataType type, Shape shape, Shape strides) {
    auto tensor = std::make_unique<RecycledTensor>(type, std::move(shape), std::move(strides));
    // The consumer of a capsule renames it and then calls the deleter itself.
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
    Torch& t = instance();
    const std::pair<py::object*, const char*> all[] = {
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
    };
    for (const auto& [to, name] : all) *to = names[name];
}
const Torch& torch() { return instance(); }

void require(bool condition, const char* expectation) {
    if (!condition) throw std::invalid_argument(std::string("gcsa_ext._C: expected ") + expectation);
}

Shape shape_of(py::handle tensor) {
    static const Name name("shape");
    const py::object sizes = name.of(tensor);
    require(PyTuple_Check(sizes.ptr()), "a tensor");
    Shape shape;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(sizes.ptr()); ++i) {
        shape.push_back(PyLong_AsLongLong(PyTuple_GET_ITEM(sizes.ptr(), i)));
        if (shape.back() < 0) throw py::error_already_set();
    }
    return shape;
}
py::object dtype_of(py::handle tensor) {
    static const Name name("dtype");
    return name.of(tensor);
}
DType dtype_code(py::handle dtype) {
    const Torch& t = torch();
    if (dtype.is(t.float32)) return DType::float32;
    if (dtype.is(t.float64)) return DType::float64;
    if (dtype.is(t.bfloat16)) return DType::bfloat16;
    throw std::invalid_argument("gcsa_ext._C: expected float32, float64 or bfloat16");
}
int element_size(py::handle dtype) { return element_type(dtype).bits / 8; }
py::object sum_dtype(py::handle dtype) { return dtype.is(torch().float64) ? torch().float64 : torch().float32; }
void* address(py::handle tensor) {
    static const Name name("data_ptr");
    if (!tensor || tensor.is_none()) return nullptr;
    void* const data = PyLong_AsVoidPtr(name.call(tensor).ptr());
    if (!data) {
        if (PyErr_Occurred()) throw py::error_already_set();
        require(elements(shape_of(tensor)) == 0, "no null address of a tensor that has elements");
    }
    return data;
}

Layout layout_of(py::handle tensor) {
    return is_contiguous(tensor) || !is_channels_last(tensor) ? Layout::contiguous : Layout::channels_last;
}
py::object dense(py::handle tensor, Layout layout) {
    if (layout == Layout::channels_last) {
        if (is_channels_last(tensor)) return py::reinterpret_borrow<py::object>(tensor);
        return tensor.attr("contiguous")(py::arg("memory_format") = torch().channels_last);
    }
    return is_contiguous(tensor) ? py::reinterpret_borrow<py::object>(tensor) : tensor.attr("contiguous")();
}
py::object dense(py::handle tensor, const Shape& shape, py::handle dtype, Layout layout) {
    if (tensor.is_none()) return py::none();
    require(shape_of(tensor) == shape, "operands of the shapes that gcsa_ext.ops checks");
    return dense(converted(tensor, dtype), layout);
}
py::object converted(py::handle tensor, py::handle dtype) {
    if (tensor.is_none() || dtype_of(tensor).is(dtype)) return py::reinterpret_borrow<py::object>(tensor);
    return tensor.attr("to")(dtype);
}

FeatureMap feature_map(py::handle x, Layout layout) {
    const Shape shape = shape_of(x);
    require(shape.size() == 4, "a map (N, C, H, W)");
    const int threads = torch().threads().cast<int>();
    return {dtype_code(dtype_of(x)), layout, shape[0], shape[1], shape[2] * shape[3], threads};
}

py::object empty(const Shape& shape, py::handle dtype, Layout layout, int64_t recycled_from) {
    const DLDataType type = element_type(dtype);
    if (elements(shape) * (type.bits / 8) >= recycled_from)
        return torch().from_dlpack(recycled(type, shape, dense_strides(shape, layout)));
    py::tuple sizes(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) sizes[i] = shape[i];
    // A vector call: the keywords of `torch().empty(...)` would be gathered in a dictionary every time.
    static PyObject* const keywords = Py_BuildValue("(ss)", "dtype", "memory_format");
    const Torch& t = torch();
    const py::handle format = layout == Layout::channels_last ? t.channels_last : t.contiguous_format;
    PyObject* const arguments[] = {sizes.ptr(), dtype.ptr(), format.ptr()};
    return checked(PyObject_Vectorcall(t.empty.ptr(), arguments, 1, keywords));
}
py::object empty_like(py::handle tensor, Layout layout, bool wanted) {
    if (!wanted || tensor.is_none()) return py::none();
    return empty(shape_of(tensor), dtype_of(tensor), layout);
}

int64_t elements(const Shape& shape) {
    int64_t count = 1;
    for (const int64_t length : shape) count *= length;
    return count;
}

}  // namespace gcsa_ext
