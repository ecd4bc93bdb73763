// The choice of the instruction set, made at the first call of `kernels`.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace gcsa_ext::cpu {

// The kernels for the best instruction set that this build has and this machine runs, or for the one that the environment
// variable GCSA_EXT_CPU_ISA names; std::runtime_error where that one is unknown, not built or not runnable here.
const Kernels& kernels();

// The instruction sets of this build, from the plainest to the best.
std::vector<std::string> built_isas();

}  // namespace gcsa_ext::cpu
