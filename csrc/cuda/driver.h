// Whether the driver and the runtime that the kernels were linked with go together.
#pragma once

#include <string>

namespace gcsa_ext::cuda {

// Why nothing can be launched, or an empty string.
std::string driver_error();

}  // namespace gcsa_ext::cuda
