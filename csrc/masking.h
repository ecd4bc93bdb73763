// Random frequency masks, from a Python tensor to the kernel in one call, for what is ordinary (attention.h); the rest is
// answered with None.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace gcsa_ext {

// The masked spectrogram (..., bins, frames), or with `inplace` itself. The bands are those of
// functional.random_frequency_mask, from uniform random numbers (bands, 2) or (bands, 2, ...) in float32; `value` are the
// bits of what masked bins become.
pybind11::object mask_randomly(
    const pybind11::object& spectrogram, const pybind11::object& draws, int64_t widest, uint64_t value, bool inplace
);

}  // namespace gcsa_ext
