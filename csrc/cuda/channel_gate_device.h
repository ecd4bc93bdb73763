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

// A call and what its plan decided; sizes in elements.
struct GateLaunch {
    ChannelGate call;
    int padded_channels, padded_units;  // multiples of those in a piece of the weights
    int warps;                          // of a block, each with 16 positions
    int held;                           // positions of a tile: all of the warps' or, of whole images, as many as fit
    int tile_buffers;
    bool resident;  // all weights stay in shared memory
    int tile_stride, tile_image, tile_elements;
    int x_access, out_access;  // bytes
    bool out_images;
    bool w1_aligned, w2_aligned;
    double images_per_position;
};

// The two matrices are cut into pieces of `channels` channels times `units` units; the rows of w1's are units, those of w2's
// channels. Few units make small pieces, so that little is computed for units that do not exist.
template <int units_, int channels_, int pad>
struct PieceSizes {
    static constexpr int channels = channels_, units = units_;
    static constexpr int stride1 = channels + pad, stride2 = units + pad;
    static constexpr int elements = units * stride1 > channels* stride2 ? units * stride1 : channels * stride2;
};
constexpr int few_units = 16, many_units = 64, largest_hidden_of_few_units = 32;

// The pieces of both matrices in shared memory: all of them, or two buffers that they go through, again for every tile. They
// are numbered: first those of w1, along channels, then those of w2, along units. `Order` is the order of their use.
template <class Math, class Sizes, class Order>
struct Pieces {
    using T = typename Math::Element;

    Matrix<T> w1, w2;
    T* shared;
    int channel_blocks, unit_blocks;
    bool resident;
    int taken = 0;  // not resident: pieces that the block has used

    __device__ int count() const { return 2 * channel_blocks * unit_blocks; }
    __device__ int shared_elements() const { return (resident ? count() : 2) * Sizes::elements; }

    __device__ void load(int number, T* to) const {
        const int half = channel_blocks * unit_blocks;
        const bool first = number < half;
        if (!first) number -= half;
        const int unit = (first ? number / channel_blocks : number % unit_blocks) * Sizes::units;
        const int channel = (first ? number % channel_blocks : number / unit_blocks) * Sizes::channels;
        // Field by field: choosing one of two structs would put both into memory.
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
        const int first = resident ? 0 : Order::piece(0, channel_blocks, unit_blocks);
#pragma unroll 1
        for (int i = 0; i < (resident ? count() : 1); ++i) load(first + i, shared + i * Sizes::elements);
        commit_copies();
    }

    // The next piece: turn 0, 1, ... of each tile. All threads call it, and no longer use the piece before.
    __device__ const T* take(int turn, bool another_tile) {
        if (resident) return shared + Order::piece(turn, channel_blocks, unit_blocks) * Sizes::elements;
        const T* const found = shared + taken++ % 2 * Sizes::elements;
        wait_for_copies<0>();
        __syncthreads();
        const bool last = turn + 1 == Order::turns(channel_blocks, unit_blocks);
        if (!last || another_tile) {
            load(Order::piece(last ? 0 : turn + 1, channel_blocks, unit_blocks), shared + taken % 2 * Sizes::elements);
        }
        commit_copies();
        return found;
    }
};

// relu that keeps NaN.
__device__ inline float relu_of(float x) { return x < 0.0f ? 0.0f : x; }

// Writes the hidden units of a warp's 16 positions to rows of shared memory: relu(w1 x + b1), and 0 at positions from
// `count` on and for units that do not exist, which an infinite x would make NaN.
template <class Math, class Sizes, class Order>
__device__ inline void compute_hidden(
    typename Math::Element* hidden_rows, int stride, const typename Math::Element* x_tile, const TilePlace& place, int row,
    Pieces<Math, Sizes, Order>& pieces, int& turn, bool another_tile, const float* bias, int hidden
) {
    for (int block = 0; block < pieces.unit_blocks; ++block) {
        Result sums[Sizes::units / step];
#pragma unroll
        for (auto& sum : sums) clear(sum);
        for (int i = 0; i < pieces.channel_blocks; ++i) {
            const auto* const w1 = pieces.take(turn++, another_tile);
            const auto left = [&](int k) { return left_of_tile<Math>(x_tile, place, row, i * Sizes::channels + k); };
            accumulate<Math, Sizes::channels, false>(sums, left, w1, Sizes::stride1);
        }
#pragma unroll
        for (int n = 0; n < Sizes::units / step; ++n) {
            const int first = block * Sizes::units + n * step;
            for_lane_elements([&](int index, int m, int column) {
                float& value = sums[n].at[index];
                value = row + m < place.count && first + column < hidden ? relu_of(value + bias[first + column]) : 0.0f;
            });
            store_result(hidden_rows + first, stride, sums[n]);
        }
    }
    __syncwarp();
}

// Copies a vector as float32, with zeros behind its end.
template <class T>
__device__ inline void load_vector(float* to, const void* from, int size, int padded) {
    for (int i = int(threadIdx.x); i < padded; i += int(blockDim.x)) {
        to[i] = i < size ? to_float(static_cast<const T*>(from)[i]) : 0.0f;
    }
}

inline int alignment(const void* address) {
    const auto bits = reinterpret_cast<uintptr_t>(address) | 16;
    return int(bits & -bits);
}

// The most bytes, up to 16, that an access to rows of `row` elements may have; the first row begins at `address`.
inline int row_access(const void* address, int64_t row, DType dtype) {
    return std::min(alignment(address), alignment(reinterpret_cast<const void*>(row * element_size(dtype))));
}
inline int map_access(const void* address, const Map& map, bool last) {
    return row_access(address, last ? map.channels : map.positions, map.dtype);
}

// True for a map that is accessed in whole images, 16 bytes at a time, since its rows do not begin on multiples of 16 bytes.
inline bool in_images(const void* address, const Map& map, bool last) {
    return !last && map_access(address, map, last) < 16 &&
           row_access(address, map.channels * map.positions, map.dtype) == 16;
}

// The positions of a tile of whole images in a block with room for `size` positions; 0 where whole images would leave too
// much room unused: then rows are accessed in fewer bytes.
inline int64_t positions_of_images(const Map& map, int64_t size) {
    const int64_t held = size / map.positions * map.positions;
    return 4 * held >= 3 * size ? held : 0;
}

// How a map's tiles lie in shared memory, in elements.
struct TileSizes {
    int stride, image, elements;
};

inline TileSizes tile_sizes(const Map& map, bool last, bool images, int64_t size, int64_t held, int64_t channels, int pad) {
    if (images) {
        const int64_t image = channels * map.positions;
        return {int(map.positions), int(image), int(held / map.positions * image)};
    }
    const int64_t stride = (last ? channels : size) + pad;
    return {int(stride), 0, int(stride * (last ? size : channels))};
}

// One way to run a kernel: whether weights stay in shared memory, and how many blocks a multiprocessor has.
struct GateWay {
    bool resident;
    int tile_buffers, warps, blocks;
};

// True if so many blocks with so many bytes, and registers of each thread, fit on a multiprocessor. The system takes 1 KB of
// shared memory per block, and a multiprocessor has 1 KB more than a block may have. One block always fits its registers.
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

// Fills a launch. In the backward pass `out` is grad_x and `other` is grad.
inline GateLaunch gate_launch(
    const ChannelGate& call, const GateWay& way, const void* out, bool out_last, bool other_in_images,
    int64_t padded_channels, int64_t padded_units, int pad
) {
    const Map& map = call.map;
    const int64_t size = way.warps * step, of_images = positions_of_images(map, size);
    const bool x_images = of_images && in_images(call.x, map, call.x_last);
    GateLaunch launch{};
    launch.call = call;
    launch.padded_channels = int(padded_channels);
    launch.padded_units = int(padded_units);
    launch.warps = way.warps;
    launch.out_images = of_images && in_images(out, map, out_last);
    launch.held = int(x_images || launch.out_images || (of_images && other_in_images) ? of_images : size);
    launch.tile_buffers = way.tile_buffers;
    launch.resident = way.resident;
    const auto tile = tile_sizes(map, call.x_last, x_images, size, launch.held, padded_channels, pad);
    launch.tile_stride = tile.stride;
    launch.tile_image = tile.image;
    launch.tile_elements = tile.elements;
    launch.x_access = x_images ? 16 : map_access(call.x, map, call.x_last);
    launch.out_access = launch.out_images ? 16 : map_access(out, map, out_last);
    launch.w1_aligned = row_access(call.w1, map.channels, map.dtype) == 16;
    launch.w2_aligned = row_access(call.w2, call.hidden, map.dtype) == 16;
    launch.images_per_position = 1.0 / double(map.positions);
    return launch;
}

// The tile that begins at a position, without `count`.
__device__ inline TilePlace tile_place(const GateLaunch& launch, int64_t first) {
    return {
        first,
        launch.warps * step,
        launch.tile_stride,
        launch.call.x_last,
        launch.tile_image,
        launch.images_per_position,
        0,
        int(launch.call.map.channels),
        0
    };
}

__device__ inline int at_most(int64_t n, int most) { return n < most ? int(n) : most; }

}  // namespace gcsa_ext::cuda
