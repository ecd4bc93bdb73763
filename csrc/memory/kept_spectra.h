// Spectra of weights that are kept from call to call, for as long as the weights stay as they were.
//
// Nothing tells that weights have changed but themselves: who writes to `weight.data` or to its memory leaves no other
// trace. So a copy of them is kept as well, and every call compares all of it. What is kept is never changed, only replaced,
// so that any number of threads may use it at the same time.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "memory/scratch.h"

namespace gcsa_ext {

// Where the weights of a convolution are and what is made of them.
struct WeightsKey {
    const void* source;  // of the weights, at the same address in the next call: see gcsa.h
    int64_t element_bytes, tap_stride, outputs, inputs, kernel, tile_height, tile_width;

    bool operator==(const WeightsKey& other) const {
        return source == other.source && element_bytes == other.element_bytes && tap_stride == other.tap_stride &&
               outputs == other.outputs && inputs == other.inputs && kernel == other.kernel &&
               tile_height == other.tile_height && tile_width == other.tile_width;
    }
};

struct KeptSpectra {
    WeightsKey key;
    std::vector<char> weights;               // as a call found them
    std::shared_ptr<const Scratch> spectra;  // of exactly these, or null until a second call finds the same
};

// What was kept of these weights last, or null.
std::shared_ptr<const KeptSpectra> find_spectra(const WeightsKey& key);
// In place of what was kept of the same weights. What was used last stays, 256 MiB at most. Where there is no memory for
// it, nothing is kept.
void keep_spectra(
    const WeightsKey& key, const void* weights, int64_t bytes, std::shared_ptr<const Scratch> spectra
) noexcept;
// Forgets all; returns how many bytes that were. What calls are using goes when they end.
int64_t release_spectra();

// Whether keeping is faster than transforming: of few weights, whose spectra stay in a cache.
bool worth_keeping(int64_t weights_bytes, int64_t spectra_bytes);
// For benchmarks/kept_spectra.py: from now on for up to so many bytes of weights, and spectra of any size if that is more
// than the usual; returns what it was.
int64_t keep_weights_up_to(int64_t bytes);

}  // namespace gcsa_ext
