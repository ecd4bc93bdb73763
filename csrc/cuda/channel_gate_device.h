// What the kernels of the channel gate share: the weights in shared memory, the gate's functions, how a call is planned.
#pragma once

#include <algorithm>
#include <type_traits>

#include "channel_gate.h"
#include "element.h"
#include "product.h"
#include "tile.h"

namespace gcsa_ext::cuda {

constexpr int largest_gate_warps = 8;

// A call with what its plan decided; sizes in elements.
struct GateLaunch {
    ChannelGate call;
    int padded_channels;  // a multiple of the channels in a piece of the weights
    int warps;            // of a block, each with 16 positions
    int tile_buffers;
    bool resident;  // all weights stay in shared memory
    int tile_stride, tile_elements;
    int x_access, out_access;
    bool w1_aligned, w2_aligned;
    double images_per_position;
};

// The two matrices are cut into pieces of `channels` channels times up to 64 units; the rows of w1's are units, those of
// w2's channels.
template <int units_, int channels_, int pad>
struct PieceSizes {
    static constexpr int channels = channels_, units = units_ < 64 ? units_ : 64, unit_blocks = units_ / units;
    static constexpr int stride1 = channels + pad, stride2 = units + pad;
    static constexpr int elements = units * stride1 > channels* stride2 ? units * stride1 : channels * stride2;
};

// The pieces come in the order that Order tells: those of w1 are numbered along channels first, then those of w2 along
// units. Either all of them are in shared memory, or they come through two buffers, again for every tile.
template <class Math, class Sizes, class Order>
struct Pieces {
    using T = typename Math::Element;

    Matrix<T> w1, w2;
    T* shared;
    int channel_blocks;
    bool resident;
    int taken = 0;  // not resident: how many pieces the block has gone through

    __device__ int count() const { return 2 * channel_blocks * Sizes::unit_blocks; }
    __device__ int shared_elements() const { return (resident ? count() : 2) * Sizes::elements; }

    __device__ void load(int number, T* to) const {
        const int half = channel_blocks * Sizes::unit_blocks;
        const bool first = number < half;
        if (!first) number -= half;
        const int unit_block = first ? number / channel_blocks : number % Sizes::unit_blocks;
        const int unit = unit_block * Sizes::units;
        const int channel = (first ? number % channel_blocks : number / Sizes::unit_blocks) * Sizes::channels;
        // Field by field: a choice between the two would be one of addresses in memory.
        const Matrix<T> matrix{
            first ? w1.data : w2.data, first ? w1.rows : w2.rows, first ? w1.columns : w2.columns,
            first ? w1.aligned : w2.aligned
        };
        load_piece(
            to, first ? Sizes::stride1 : Sizes::stride2, matrix, first ? unit : channel, first ? channel : unit,
            first ? Sizes::units : Sizes::channels, first ? Sizes::channels : Sizes::units
        );
    }

    __device__ void begin() {
        const int first = resident ? 0 : Order::piece(0, channel_blocks, Sizes::unit_blocks);
#pragma unroll 1
        for (int i = 0; i < (resident ? count() : 1); ++i) load(first + i, shared + i * Sizes::elements);
        commit_copies();
    }

    // The next piece: of turn 0, 1, ... for each tile, for all threads. What was taken before may no longer be used.
    __device__ const T* take(int turn, bool another_tile) {
        if (resident) return shared + Order::piece(turn, channel_blocks, Sizes::unit_blocks) * Sizes::elements;
        const T* const found = shared + taken++ % 2 * Sizes::elements;
        wait_for_copies<0>();
        __syncthreads();
        const bool last = turn + 1 == Order::turns(channel_blocks, Sizes::unit_blocks);
        if (!last || another_tile) {
            load(
                Order::piece(last ? 0 : turn + 1, channel_blocks, Sizes::unit_blocks), shared + taken % 2 * Sizes::elements
            );
        }
        commit_copies();
        return found;
    }
};

// relu that keeps NaN.
__device__ inline float relu_of(float x) { return x < 0.0f ? 0.0f : x; }

// float32 values of a vector, and 0 behind its end.
template <class T>
__device__ inline void load_vector(float* to, const void* from, int size, int padded) {
    for (int i = int(threadIdx.x); i < padded; i += int(blockDim.x)) {
        to[i] = i < size ? to_float(static_cast<const T*>(from)[i]) : 0.0f;
    }
}

// Calls function(units) with a constant number of hidden units that there is a kernel for, from `least` on; fewer are padded
// with zeros. float32 has fewer kernels: it is not memory that bounds their time.
template <class Math, int least, class Function>
void with_padded_units(int64_t hidden, const Function& function) {
    constexpr bool narrow = sizeof(typename Math::Element) == 2;
    if constexpr (least <= 16) {
        if (hidden <= 16) return function(std::integral_constant<int, 16>());
    }
    if constexpr (least <= 32 && narrow) {
        if (hidden <= 32) return function(std::integral_constant<int, 32>());
    }
    if constexpr (narrow) {
        if (hidden > 64) return function(std::integral_constant<int, 128>());
    }
    function(std::integral_constant<int, 64>());
}

inline int alignment(const void* address) {
    const auto bits = reinterpret_cast<uintptr_t>(address) | 16;
    return int(bits & -bits);
}

// How many bytes an access to rows of `row` elements may have that begin at an address.
inline int row_access(const void* address, int64_t row, Element element) {
    return std::min(alignment(address), alignment(reinterpret_cast<const void*>(row * element_size(element))));
}
inline int map_access(const void* address, const Map& map, bool last) {
    return row_access(address, last ? map.channels : map.positions, map.element);
}

// One way to run a kernel: weights stay in shared memory or not, and with so many blocks to a multiprocessor.
struct GateWay {
    bool resident;
    int tile_buffers, warps, blocks;
};

// Whether blocks of so many bytes, and of threads with so many registers, fit: every block takes 1 KB for itself, and a
// multiprocessor has 1 KB more than a block may ask for. One block always has the registers it needs.
inline bool fits(int64_t bytes, int64_t registers, const GateWay& way, const Device& device) {
    constexpr int64_t all_registers = 65536;
    return (bytes + 1024) * way.blocks <= device.shared_bytes + 1024 &&
           (way.blocks == 1 || registers * 32 * way.warps * way.blocks <= all_registers);
}

[[noreturn]] inline void refuse_channels(const ChannelGate& call, const Device& device) {
    throw std::invalid_argument(
        "gcsa_ext: channel_gate: 16 positions of " + std::to_string(call.map.channels) +
        " channels do not fit in the shared memory of a block, " + std::to_string(device.shared_bytes) + " bytes"
    );
}

inline GateLaunch gate_launch(const ChannelGate& call, const GateWay& way, int64_t padded_channels) {
    GateLaunch launch{};
    launch.call = call;
    launch.padded_channels = int(padded_channels);
    launch.warps = way.warps;
    launch.tile_buffers = way.tile_buffers;
    launch.resident = way.resident;
    launch.x_access = map_access(call.x, call.map, call.x_last);
    launch.out_access = map_access(call.out, call.map, call.out_last);
    launch.w1_aligned = row_access(call.w1, call.map.channels, call.map.element) == 16;
    launch.w2_aligned = row_access(call.w2, call.hidden, call.map.element) == 16;
    launch.images_per_position = 1.0 / double(call.map.positions);
    return launch;
}

}  // namespace gcsa_ext::cuda
