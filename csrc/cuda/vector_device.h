// Values of vectors of any dtype.
#pragma once

#include "element.h"
#include "vector.h"

namespace gcsa_ext::cuda {

__device__ inline float load(const Vector& vector, int64_t i, float otherwise) {
    if (!vector.data) return otherwise;
    switch (vector.dtype) {
        case DType::float32: return static_cast<const float*>(vector.data)[i];
        case DType::bfloat16: return to_float(static_cast<const bfloat16*>(vector.data)[i]);
        case DType::float16: return to_float(static_cast<const float16*>(vector.data)[i]);
        default: return float(static_cast<const double*>(vector.data)[i]);
    }
}

__device__ inline void store(const Vector& vector, int64_t i, float value) {
    if (!vector.data) return;
    switch (vector.dtype) {
        case DType::float32: static_cast<float*>(vector.data)[i] = value; break;
        case DType::bfloat16: static_cast<bfloat16*>(vector.data)[i] = from_float<bfloat16>(value); break;
        case DType::float16: static_cast<float16*>(vector.data)[i] = from_float<float16>(value); break;
        default: static_cast<double*>(vector.data)[i] = value;
    }
}

}  // namespace gcsa_ext::cuda
