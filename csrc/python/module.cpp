// Python module gcsa_ext._C: the kernels for torch's tensors, and what was compiled.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/dispatch.h"
#include "memory/scratch.h"
#include "python/binding.h"
#include "python/tensors.h"
#ifndef GCSA_EXT_CUDA_MISSING
#include "cuda/bindings.h"
#endif

namespace py = pybind11;

namespace {

py::dict build_info() {
    py::dict info;
    info["compiler"] = GCSA_EXT_COMPILER;
    info["isas"] = gcsa_ext::cpu::built_isas();
#ifdef _OPENMP
    info["openmp"] = true;
#else
    info["openmp"] = false;
#endif
#ifdef GCSA_EXT_CUDA_MISSING
    info["cuda"] = py::none();
    info["cuda_missing"] = GCSA_EXT_CUDA_MISSING;
#else
    info["cuda"] = GCSA_EXT_CUDA_COMPILER " for " GCSA_EXT_CUDA_ARCHITECTURES;
    info["cuda_missing"] = py::none();
#endif
    return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.def("use_torch", &gcsa_ext::use_torch);
    module.def("build_info", &build_info);
    module.def("cpu_isa", [] { return gcsa_ext::cpu::kernels().isa; });
    module.def("release_scratch", &gcsa_ext::release_scratch, py::call_guard<py::gil_scoped_release>());
#ifndef GCSA_EXT_CUDA_MISSING
    auto cuda = module.def_submodule("cuda");
    gcsa_ext::cuda::bind(cuda);
#endif
    for (const auto add : gcsa_ext::Binding::all()) add(module);
}
