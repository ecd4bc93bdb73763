// Spectrogram mask on the CPU: rows outside of every band of bins are copied, rows inside are written once. Bands of frames
// are written into a row right after its copy, while the row is in the L1 cache.

#include "params/spectrogram_mask.h"

#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/vector.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {
namespace {

bool in_frequency_band(const SpectrogramMask& p, int64_t sample, int64_t bin) {
    const int64_t first = p.shared ? 0 : sample * p.bands;
    for (int64_t band = first + p.time_bands; band < first + p.bands; ++band) {
        const int64_t from_start = bin - p.start[band];  // start + width could overflow
        if (from_start >= 0 && from_start < p.width[band]) return true;
    }
    return false;
}

template <class Bits>
void fill_time_bands(const SpectrogramMask& p, int64_t sample, Bits* row) {
    const int64_t first = p.shared ? 0 : sample * p.bands;
    for (int64_t band = first; band < first + p.time_bands; ++band) {
        const int64_t start = p.start[band], width = p.width[band];
        if (width <= 0 || start >= p.frames) continue;
        const int64_t begin = std::max<int64_t>(start, 0);
        // Only a negative start is added to the width: other sums could overflow.
        const int64_t end = begin + std::min(width + std::min<int64_t>(start, 0), p.frames - begin);
        for (int64_t i = begin; i < end; ++i) row[i] = static_cast<Bits>(p.value);
    }
}

template <class Bits>
void copy_with_mask(const SpectrogramMask& p) {
    const Bits value = static_cast<Bits>(p.value);
    const auto* input = static_cast<const Bits*>(p.input);
    auto* output = static_cast<Bits*>(p.output);
    // Waking a thread takes as long as copying about 64 KB.
    const int64_t bytes = p.batch * p.bins * p.frames * static_cast<int64_t>(sizeof(Bits));
    parallel_for(useful_threads(p.threads, bytes >> 16), p.batch * p.bins, [&](int, int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end;) {
            const int64_t sample = row / p.bins;
            const bool inside = in_frequency_band(p, sample, row - sample * p.bins);
            int64_t run_end = row + 1;
            if (p.time_bands == 0) {
                // The longest run of rows of one sample that are all masked or all not masked.
                const int64_t sample_end = std::min((sample + 1) * p.bins, end);
                while (run_end < sample_end && in_frequency_band(p, sample, run_end - sample * p.bins) == inside) ++run_end;
            }
            const int64_t at = row * p.frames, count = (run_end - row) * p.frames;
            if (inside) {
                for (int64_t i = 0; i < count; ++i) output[at + i] = value;
            } else {
                // Not memcpy, which streams long runs past the caches: that is slower on fresh pages, and the next reader
                // of the result would miss the cache.
                if (output != input) load_row(input + at, count, output + at);
                if (p.time_bands > 0) fill_time_bands(p, sample, output + at);
            }
            row = run_end;
        }
    });
}

}  // namespace

template <>
void run(const SpectrogramMask& p) {
    switch (p.element_size) {
        case 2: return copy_with_mask<uint16_t>(p);
        case 4: return copy_with_mask<uint32_t>(p);
        case 8: return copy_with_mask<uint64_t>(p);
    }
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
