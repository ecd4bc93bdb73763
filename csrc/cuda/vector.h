// Vectors of a value per channel or hidden unit.
#pragma once

#include "params/tensor.h"

namespace gcsa_ext::cuda {

// Of any dtype: weights keep the dtype that the user gave them.
struct Vector {
    void* data;  // or null
    DType dtype;
};

}  // namespace gcsa_ext::cuda
