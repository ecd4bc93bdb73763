// What the bindings of all CUDA operators share.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "map.h"
#include "plan.h"
#include "vector.h"

namespace gcsa_ext::cuda {

using Address = uintptr_t;

// Device number, address of its stream (cudaStream_t), multiprocessors, bytes of shared memory that a block may have.
using Target = std::tuple<int, Address, int64_t, int64_t>;

inline Device device(const Target& target) { return {std::get<2>(target), std::get<3>(target)}; }
inline Stream stream(const Target& target) { return {std::get<0>(target), reinterpret_cast<void*>(std::get<1>(target))}; }

inline void require(bool condition, const char* expectation) {
    if (!condition) throw std::invalid_argument(std::string("gcsa_ext._C.cuda: expected ") + expectation);
}

template <class... Addresses>
void require_addresses(Addresses... addresses) {
    require(((addresses != 0) && ...), "no null address for a tensor that is needed");
}

template <class T = void>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

// The code of a dtype is its number in params/tensor.h.
inline DType dtype_of(int code) {
    require(code >= 0 && code <= static_cast<int>(DType::float16), "the code of a dtype, from 0 to 3");
    return static_cast<DType>(code);
}

using TypedAddress = std::pair<Address, int>;  // with the code of a dtype

inline Vector vector(const TypedAddress& typed) { return {pointer(typed.first), dtype_of(typed.second)}; }

inline Map map(int dtype, int64_t batch, int64_t channels, int64_t positions) {
    require(dtype_of(dtype) != DType::float64, "a map of float32, bfloat16 or float16");
    require(batch >= 1 && channels >= 1 && positions >= 1, "a batch, channels and positions of at least 1");
    return {dtype_of(dtype), batch, channels, positions};
}

// A plan as a Python object.
inline pybind11::dict to_dict(const Plan& plan) {
    pybind11::dict result;
    result["kernel"] = plan.kernel;
    result["grid"] = std::tuple(plan.grid_x, plan.grid_y, plan.grid_z);
    result["threads"] = plan.threads;
    result["shared_bytes"] = plan.shared_bytes;
    result["cooperative"] = plan.cooperative;
    return result;
}

// Runs `call` without the GIL and adds the operands' sizes to the message of a failed launch.
template <class Call>
auto with_sizes(const std::string& sizes, const Call& call) {
    try {
        const pybind11::gil_scoped_release release;
        return call();
    } catch (const std::runtime_error& error) {
        throw std::runtime_error(error.what() + (" (" + sizes + ")"));
    }
}

inline std::string describe(const Map& map) {
    return "a map of " + std::to_string(map.batch) + " x " + std::to_string(map.channels) + " channels x " +
           std::to_string(map.positions) + " positions";
}

}  // namespace gcsa_ext::cuda
