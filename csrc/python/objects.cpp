#include "python/objects.h"

namespace py = pybind11;

namespace gcsa_ext {
namespace {

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

bool unchanged(const py::dict& own, const py::tuple& notes) {
    const auto part = [&](Py_ssize_t i) { return notes[i].cast<py::tuple>(); };
    const py::tuple kinds = part(0), entries = part(1), sequences = part(2), empty = part(3);
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

}  // namespace gcsa_ext
