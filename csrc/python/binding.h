// The functions of the module gcsa_ext._C, which each file of this folder adds for itself:
//
//   const Binding binding([](py::module_& module) { module.def("name", &function); });
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

namespace gcsa_ext {

class Binding {
   public:
    using Add = void (*)(pybind11::module_&);
    explicit Binding(Add add) { all().push_back(add); }

    static std::vector<Add>& all() {
        static std::vector<Add> functions;
        return functions;
    }
};

}  // namespace gcsa_ext
