// Random frequency masks, from a Python tensor to the kernel in one call, for what is ordinary (attention.h); the rest is
// answered with None.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace gcsa_ext {

// The masked spectrogram (..., bins, frames), or with `inplace` itself; the arguments are those of
// functional.random_frequency_mask, but that `value` are the bits of what masked bins become. Nothing is drawn where the
// answer is None.
pybind11::object mask_randomly(
    const pybind11::object& spectrogram, int64_t widest, int64_t bands, bool iid, uint64_t value, bool inplace
);

}  // namespace gcsa_ext
