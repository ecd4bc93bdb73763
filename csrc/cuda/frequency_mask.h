// Bands of frequency bins set to one value: plan and launch. There is no kernel for bands of frames: time_bands is 0.
#pragma once

#include "params/spectrogram_mask.h"
#include "plan.h"

namespace gcsa_ext::cuda {

// `threads` is not used.
Plan plan_frequency_mask(const SpectrogramMask& call, const Device& device);
void frequency_mask(const SpectrogramMask& call, const Device& device, Stream stream);

}  // namespace gcsa_ext::cuda
