// Bands of frequency bins set to one value: plan and launch.
#pragma once

#include "params/frequency_mask.h"
#include "plan.h"

namespace gcsa_ext::cuda {

// `threads` is not used.
Plan plan_frequency_mask(const FrequencyMask& call, const Device& device);
void frequency_mask(const FrequencyMask& call, const Device& device, Stream stream);

}  // namespace gcsa_ext::cuda
