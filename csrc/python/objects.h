// Questions about Python objects that a module asks in every call. Asked in Python they take as long as a small map, since a
// large one has driven the interpreter's code and all objects on the way out of the caches.
#pragma once

#include <pybind11/pybind11.h>

namespace gcsa_ext {

// A name that attributes are looked up by, made once.
class Name {
   public:
    explicit Name(const char* text) : text_(PyUnicode_InternFromString(text)) {
        if (!text_) throw pybind11::error_already_set();
    }
    pybind11::object of(PyObject* object) const { return checked_(PyObject_GetAttr(object, text_)); }
    pybind11::object call(PyObject* object) const { return checked_(PyObject_CallMethodNoArgs(object, text_)); }

   private:
    static pybind11::object checked_(PyObject* result) {
        if (!result) throw pybind11::error_already_set();
        return pybind11::reinterpret_steal<pybind11::object>(result);
    }
    PyObject* text_;  // never given back: the interpreter may end before
};

inline Py_ssize_t size(const pybind11::tuple& tuple) { return PyTuple_GET_SIZE(tuple.ptr()); }
inline PyObject* item(const pybind11::tuple& tuple, Py_ssize_t i) { return PyTuple_GET_ITEM(tuple.ptr(), i); }

// Whether what somebody noted about objects still holds. Notes are four flat tuples:
//   kinds      object, its type, its __dict__
//   entries    dict, key, the value under it, or Ellipsis: none
//   sequences  dict, tuple of all its values in order
//   empty      dict without entries
// None in place of a dict is `own`. Values are compared by identity.
bool unchanged(const pybind11::dict& own, const pybind11::tuple& notes);

}  // namespace gcsa_ext
