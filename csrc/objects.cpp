#include "objects.h"

#include <stdexcept>
#include <utility>

namespace py = pybind11;

namespace gcsa_ext {
namespace {

// A name that attributes are looked up by, made once.
class Name {
   public:
    explicit Name(const char* text) : text_(PyUnicode_InternFromString(text)) {
        if (!text_) throw py::error_already_set();
    }
    py::object of(PyObject* object) const { return checked_(PyObject_GetAttr(object, text_)); }
    py::object call(PyObject* object) const { return checked_(PyObject_CallMethodNoArgs(object, text_)); }

   private:
    static py::object checked_(PyObject* result) {
        if (!result) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(result);
    }
    PyObject* text_;  // never given back: the interpreter may end before
};

Py_ssize_t size(const py::tuple& tuple) { return PyTuple_GET_SIZE(tuple.ptr()); }
PyObject* item(const py::tuple& tuple, Py_ssize_t i) { return PyTuple_GET_ITEM(tuple.ptr(), i); }

bool holds(PyObject* dict, PyObject* key, PyObject* value) {
    PyObject* const found = PyDict_Check(dict) ? PyDict_GetItemWithError(dict, key) : nullptr;
    if (!found && PyErr_Occurred()) throw py::error_already_set();
    return value == Py_Ellipsis ? !found : found == value;
}
bool has_kind(PyObject* object, PyObject* type, PyObject* dict) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(object)) != type) return false;
    PyObject* const own = PyObject_GenericGetDict(object, nullptr);
    if (!own) throw py::error_already_set();
    Py_DECREF(own);  // the object keeps it
    return own == dict;
}
bool has_values(PyObject* dict, PyObject* values) {
    if (!PyDict_Check(dict) || !PyTuple_Check(values) || PyDict_GET_SIZE(dict) != PyTuple_GET_SIZE(values)) return false;
    PyObject* value = nullptr;
    for (Py_ssize_t at = 0, i = 0; PyDict_Next(dict, &at, nullptr, &value); ++i)
        if (value != PyTuple_GET_ITEM(values, i)) return false;
    return true;
}

}  // namespace

bool unchanged(
    const py::dict& own, const py::tuple& kinds, const py::tuple& entries, const py::tuple& sequences, const py::tuple& empty
) {
    for (Py_ssize_t i = 0; i + 2 < size(kinds); i += 3)
        if (!has_kind(item(kinds, i), item(kinds, i + 1), item(kinds, i + 2))) return false;
    for (Py_ssize_t i = 0; i + 2 < size(entries); i += 3)
        if (!holds(item(entries, i) == Py_None ? own.ptr() : item(entries, i), item(entries, i + 1), item(entries, i + 2)))
            return false;
    for (Py_ssize_t i = 0; i + 1 < size(sequences); i += 2)
        if (!has_values(item(sequences, i), item(sequences, i + 1))) return false;
    for (Py_ssize_t i = 0; i < size(empty); ++i)
        if (!PyDict_Check(item(empty, i)) || PyDict_GET_SIZE(item(empty, i)) != 0) return false;
    return true;
}

bool ordinary_tensors(const py::tuple& tensors, const py::tuple& types, bool without_gradient) {
    static const Name is_cpu("is_cpu"), requires_grad("requires_grad"), is_neg("is_neg"), is_inference("is_inference"),
        is_zero("_is_zerotensor");
    for (Py_ssize_t i = 0; i < size(tensors); ++i) {
        PyObject* const tensor = item(tensors, i);
        if (tensor == Py_None) continue;
        bool known = false;
        for (Py_ssize_t j = 0; j < size(types); ++j)
            known = known || reinterpret_cast<PyObject*>(Py_TYPE(tensor)) == item(types, j);
        if (!known || is_cpu.of(tensor).ptr() != Py_True || is_neg.call(tensor).ptr() != Py_False ||
            is_inference.call(tensor).ptr() != Py_False || is_zero.call(tensor).ptr() != Py_False ||
            (without_gradient && requires_grad.of(tensor).ptr() != Py_False))
            return false;
    }
    return true;
}

bool have_shapes(const py::tuple& tensors, const py::tuple& shapes, const py::object& device) {
    static const Name shape("shape"), device_of("device"), is_floating_point("is_floating_point");
    if (size(tensors) != size(shapes)) throw std::invalid_argument("gcsa_ext._C: expected a shape for every tensor");
    const auto equal = [](const py::object& a, PyObject* b) {
        const int same = PyObject_RichCompareBool(a.ptr(), b, Py_EQ);
        if (same < 0) throw py::error_already_set();
        return same != 0;
    };
    for (Py_ssize_t i = 0; i < size(tensors); ++i) {
        PyObject* const tensor = item(tensors, i);
        if (tensor != Py_None && (!equal(shape.of(tensor), item(shapes, i)) || !equal(device_of.of(tensor), device.ptr()) ||
                                  is_floating_point.call(tensor).ptr() != Py_True))
            return false;
    }
    return true;
}

py::object plain_addresses(const py::tuple& tensors, const py::object& dtype) {
    static const Name dtype_of("dtype"), is_contiguous("is_contiguous"), data_ptr("data_ptr");
    py::list addresses(size(tensors));
    for (Py_ssize_t i = 0; i < size(tensors); ++i) {
        PyObject* const tensor = item(tensors, i);
        if (tensor == Py_None) {
            addresses[i] = 0;
            continue;
        }
        if (dtype_of.of(tensor).ptr() != dtype.ptr() || is_contiguous.call(tensor).ptr() != Py_True) return py::none();
        addresses[i] = data_ptr.call(tensor);
    }
    return std::move(addresses);
}

}  // namespace gcsa_ext
