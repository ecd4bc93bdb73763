// Spectrogram mask: in every band of frequency bins or of frames, the positions start <= i < start + width are set to one
// value. All other elements are copied.
#pragma once

#include <cstdint>

namespace gcsa_ext {

struct SpectrogramMask {
    int64_t batch;
    int64_t bins;          // frequency bins
    int64_t frames;        // time
    int64_t bands;         // bands per sample
    int64_t time_bands;    // the first of the bands, which are bands of frames; the others are bands of bins
    const int64_t* start;  // (batch, bands), or (1, bands) when shared; may lie outside of the spectrogram
    const int64_t* width;  // like start; 0 or less masks nothing
    bool shared;           // one row of bands for the whole batch
    int element_size;      // 2, 4 or 8 bytes
    uint64_t value;        // the bits of the value, in the low element_size bytes
    const void* input;     // (batch, bins, frames) contiguous
    void* output;          // like input; the same pointer masks in place
    int threads;
};

}  // namespace gcsa_ext
