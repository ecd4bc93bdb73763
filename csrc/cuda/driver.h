// What the CUDA runtime, which is linked into the extension, reports of the driver.
#pragma once

#include <string>

#include "plan.h"

namespace gcsa_ext::cuda {

// Why no kernel can be launched, or an empty string.
std::string driver_error();

// Throws std::runtime_error if there is no such device.
Device device_limits(int device);

}  // namespace gcsa_ext::cuda
