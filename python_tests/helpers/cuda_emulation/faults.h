// Kernels with the mistakes that the emulation must find.
#pragma once

#include <cstdint>
#include <string>

namespace gcsa_ext::cuda {

// Runs the kernel with that mistake, which writes 64 numbers.
void run_fault(const std::string& mistake, float* out);

}  // namespace gcsa_ext::cuda
