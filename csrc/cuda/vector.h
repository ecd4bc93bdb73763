// Vectors of a value per channel or hidden unit.
#pragma once

namespace gcsa_ext::cuda {

enum class VectorElement : int { float32 = 0, bfloat16 = 1, float16 = 2, float64 = 3 };

// Of any floating type: weights come as the user keeps them.
struct Vector {
    void* data;  // or null
    VectorElement element;
};

}  // namespace gcsa_ext::cuda
