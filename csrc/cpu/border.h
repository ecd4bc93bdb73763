// What a convolution takes a map to be outside of its edges.
#pragma once

#include "cpu/vector.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

enum class Border {
    zeros,      // zeros outside, and a result at every point of the map
    replicate,  // the value of the nearest point of the map, and a result at every point of the map
    full,       // zeros outside, and a result up to k / 2 points outside too: the gradient of a map with replicated values
};

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
