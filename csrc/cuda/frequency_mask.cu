// Bands of frequency bins set to one value, on the bits of the elements: exact in every dtype.
//
//   output[b, f, t] = value where start[b, i] <= f < start[b, i] + width[b, i] for some band i, else input[b, f, t]
//
// Out of place, every block copies one tile of the whole tensor, wherever rows begin and end, and reads nothing of masked
// rows. In place, only the bands are written: the bins of a band are one contiguous piece of a sample.
#include <algorithm>

#include "element.h"
#include "frequency_mask.h"

namespace gcsa_ext::cuda {

namespace {

constexpr int threads = 256, accesses_per_thread = 4, accesses_per_tile = threads * accesses_per_thread;

__device__ bool is_masked(const SpectrogramMask& call, int64_t row) {
    const int64_t sample = row / call.bins, bin = row - sample * call.bins;
    const int64_t first = call.shared ? 0 : sample * call.bands;
    bool masked = false;
    for (int64_t band = first; band < first + call.bands; ++band) {
        // The unsigned distance from the start is compared, since start + width could overflow.
        const int64_t start = call.start[band], width = call.width[band];
        masked |= bin >= start && uint64_t(bin) - uint64_t(start) < uint64_t(width > 0 ? width : 0);
    }
    return masked;
}

template <class T, int count>
__global__ void __launch_bounds__(threads) copy_with_mask(const SpectrogramMask call) {
    constexpr int tile = accesses_per_tile * count;
    auto* const row_is_masked = shared_memory();
    const auto value = static_cast<T>(call.value);
    const int64_t first = int64_t(blockIdx.x) * tile, left_over = call.batch * call.bins * call.frames - first;
    const int size = left_over < tile ? int(left_over) : tile;

    // Rows are counted from the one that the tile begins in, of which the first `begun` elements of the tile are a part.
    const int64_t first_row = first / call.frames, until_next = (first_row + 1) * call.frames - first;
    const unsigned begun = until_next < tile ? unsigned(until_next) : tile;
    const unsigned frames = call.frames < tile ? unsigned(call.frames) : tile;
    const auto row_of = [&](unsigned offset) { return offset < begun ? 0 : 1 + (offset - begun) / frames; };
    const int rows = int(row_of(size - 1)) + 1;
    for (int row = int(threadIdx.x); row < rows; row += threads) row_is_masked[row] = is_masked(call, first_row + row);
    __syncthreads();

    const T* const input = static_cast<const T*>(call.input) + first;
    T* const output = static_cast<T*>(call.output) + first;
    Pack<T, count> packs[accesses_per_thread];
#pragma unroll
    for (int i = 0; i < accesses_per_thread; ++i) {
        const int offset = (i * threads + int(threadIdx.x)) * count;
        if (offset + count > size) continue;
        const unsigned row = row_of(offset);
        const bool masked = row_is_masked[row];
        if (row == row_of(offset + count - 1) || count == 1) {
            if (masked) {
                for (int e = 0; e < count; ++e) packs[i].at[e] = value;
            } else {
                packs[i] = load_pack<T, count>(input + offset);
            }
        } else {
            for (int e = 0; e < count; ++e) {
                packs[i].at[e] = row_is_masked[row_of(offset + e)] ? value : input[offset + e];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < accesses_per_thread; ++i) {
        const int offset = (i * threads + int(threadIdx.x)) * count;
        if (offset + count <= size) {
            store_pack(output + offset, packs[i]);
        } else {
            for (int e = offset; e < size; ++e) output[e] = row_is_masked[row_of(e)] ? value : input[e];
        }
    }
}

// Blocks along y share the bands of the samples, which are counted along x.
template <class T>
__global__ void __launch_bounds__(threads) fill_bands(const SpectrogramMask call) {
    constexpr int count = elements_per_access<T>;
    const auto value = static_cast<T>(call.value);
    Pack<T, count> pack;
    for (int e = 0; e < count; ++e) pack.at[e] = value;
    for (int64_t i = blockIdx.x; i < call.batch * call.bands; i += gridDim.x) {
        const int64_t sample = i / call.bands, band = call.shared ? i - sample * call.bands : i;
        const int64_t start = call.start[band], width = call.width[band];
        const int64_t from = start > 0 ? start : 0;
        // The part of the width from `from` on, computed without overflow, and the part of that in the spectrogram.
        const int64_t behind = start >= 0 ? width : width > 0 ? width + start : 0;
        const int64_t bins = behind < call.bins - from ? behind : call.bins - from;
        if (bins <= 0) continue;
        T* const piece = static_cast<T*>(call.output) + (sample * call.bins + from) * call.frames;
        const int64_t size = bins * call.frames;

        const int64_t misaligned = int64_t(reinterpret_cast<uintptr_t>(piece) % 16 / sizeof(T));
        const int64_t to_alignment = misaligned ? count - misaligned : 0;
        const int64_t head = to_alignment < size ? to_alignment : size;
        const int64_t packs = (size - head) / count, tail = head + packs * count;
        const int64_t thread = int64_t(blockIdx.y) * threads + threadIdx.x, all = int64_t(gridDim.y) * threads;
        for (int64_t j = thread; j < packs; j += all) store_pack(piece + head + j * count, pack);
        if (thread < head) piece[thread] = value;
        if (thread < size - tail) piece[tail + thread] = value;
    }
}

// How many elements an access has: 16 bytes, or one element where a tensor does not begin on a multiple of 16 bytes.
int64_t elements_at_a_time(const SpectrogramMask& call) {
    const auto in = reinterpret_cast<uintptr_t>(call.input), out = reinterpret_cast<uintptr_t>(call.output);
    return in % 16 == 0 && out % 16 == 0 ? 16 / call.element_size : 1;
}

template <class Function>
void with_bits(int64_t element_size, const Function& function) {
    switch (element_size) {
        case 2: return function(uint16_t());
        case 4: return function(uint32_t());
        case 8: return function(uint64_t());
    }
}

}  // namespace

Plan plan_frequency_mask(const SpectrogramMask& call, const Device& device) {
    if (call.output == call.input) {
        const int64_t pieces = call.batch * call.bands;
        const int64_t tiles = ceil_div(call.bins * call.frames, accesses_per_tile * 16 / call.element_size);
        const int64_t wanted = ceil_div(8 * device.multiprocessors, pieces);
        return {"frequency_mask, in place",
                std::min(pieces, largest_grid_x),
                std::min({tiles, wanted, largest_grid_yz}),
                1,
                threads,
                0};
    }
    const int64_t tile = accesses_per_tile * elements_at_a_time(call);
    const int64_t rows = std::min(tile, tile / call.frames + 2);
    return {"frequency_mask", ceil_div(call.batch * call.bins * call.frames, tile), 1, 1, threads, rows};
}

void frequency_mask(const SpectrogramMask& call, const Device& device, Stream stream) {
    const auto plan = plan_frequency_mask(call, device);
    const bool wide = elements_at_a_time(call) > 1;
    with_bits(call.element_size, [&](auto bits) {
        using T = decltype(bits);
        if (call.output == call.input) return launch(fill_bands<T>, plan, stream, call);
        launch(wide ? copy_with_mask<T, elements_per_access<T>> : copy_with_mask<T, 1>, plan, stream, call);
    });
}

}  // namespace gcsa_ext::cuda
