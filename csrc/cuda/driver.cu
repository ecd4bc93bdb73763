#include "driver.h"

#include "platform.h"

namespace gcsa_ext::cuda {

std::string driver_error() { return platform_error(); }

}  // namespace gcsa_ext::cuda
