// Kernels with the mistakes that the emulation must find.
#pragma once

#include <cstdint>
#include <string>

namespace gcsa_ext::cuda {

// Runs the kernel with this mistake. `out` has 64 elements.
void run_fault(const std::string& mistake, float* out);

}  // namespace gcsa_ext::cuda
