// Frequency mask on the CPU: rows outside of every band are copied in runs as long as possible, rows inside are written
// once.

#include "params/frequency_mask.h"

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/vector.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {
namespace {

bool masked(const FrequencyMask& p, int64_t sample, int64_t bin) {
    const int64_t first = p.shared ? 0 : sample * p.bands;
    for (int64_t band = first; band < first + p.bands; ++band) {
        const int64_t from_start = bin - p.start[band];  // start + width could overflow
        if (from_start >= 0 && from_start < p.width[band]) return true;
    }
    return false;
}

template <class Bits>
void copy_with_mask(const FrequencyMask& p) {
    const Bits value = static_cast<Bits>(p.value);
    const auto* input = static_cast<const Bits*>(p.input);
    auto* output = static_cast<Bits*>(p.output);
    // Waking a thread takes as long as copying about 64 KB.
    const int64_t bytes = p.batch * p.bins * p.frames * static_cast<int64_t>(sizeof(Bits));
    parallel_for(useful_threads(p.threads, bytes >> 16), p.batch * p.bins, [&](int, int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end;) {
            // The longest run of rows of one sample that are all masked or all not masked.
            const int64_t sample = row / p.bins, sample_end = (sample + 1) * p.bins < end ? (sample + 1) * p.bins : end;
            const bool inside = masked(p, sample, row - sample * p.bins);
            int64_t run_end = row + 1;
            while (run_end < sample_end && masked(p, sample, run_end - sample * p.bins) == inside) ++run_end;
            const int64_t at = row * p.frames, count = (run_end - row) * p.frames;
            if (inside)
                for (int64_t i = 0; i < count; ++i) output[at + i] = value;
            else if (output != input)
                // Not memcpy, which streams long runs past the caches: that is slower on fresh pages, and the next reader
                // of the result would miss the cache.
                load_row(input + at, count, output + at);
            row = run_end;
        }
    });
}

}  // namespace

template <>
void run(const FrequencyMask& p) {
    switch (p.element_size) {
        case 2: return copy_with_mask<uint16_t>(p);
        case 4: return copy_with_mask<uint32_t>(p);
        case 8: return copy_with_mask<uint64_t>(p);
    }
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
