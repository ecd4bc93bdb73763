#include "driver.h"
#include "platform.h"

namespace gcsa_ext::cuda {

std::string driver_error() { return platform_error(); }

Device device_limits(int device) { return platform_limits(device); }

}  // namespace gcsa_ext::cuda
