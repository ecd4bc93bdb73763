// The gradients of a channel gate's weights, from the results of the first kernel of the backward pass:
//
//   grad_w1 = g1 x',  grad_b1 = sum g1,  grad_w2 = g2 hidden',  grad_b2 = sum g2        summed over positions
//
// A block sums over the positions of one row of `partial`, for 64 channels and 64 units. Half of its warps sum g2 hidden',
// the others x g1', each for 16 channels. While a tile of 64 positions is worked on, the next one is copied.
#include "channel_gate_sums.h"

namespace gcsa_ext::cuda {

namespace {

constexpr int size = 64, sum_channels = 64, sum_units = 64, warps = 8;

// Elements of the tile of one of the four maps.
template <class Math>
constexpr int sums_tile_elements = size * (sum_channels + Math::pad);
static_assert(sum_channels == size && sum_units == size, "all tiles have the same stride");

struct SumsLaunch {
    ChannelGateSums sums;
    int buffers;
    int held;     // positions of a tile
    int x_image;  // elements of an image in a tile; 0: x is not accessed in whole images
    int x_access, g2_access;
    int64_t part;
    double images_per_position;
};

// What a block sums: some channels and units at positions [begin, end).
struct SumsBlock {
    int first_channel, first_unit, channels;
    int64_t begin, end;

    __device__ explicit SumsBlock(const SumsLaunch& launch) {
        const Map& map = launch.sums.call.gate.map;
        const int64_t positions = map.batch * map.positions;
        first_channel = int(blockIdx.y) * sum_channels;
        first_unit = int(blockIdx.z) * sum_units;
        channels = at_most(map.channels - first_channel, sum_channels);
        begin = int64_t(blockIdx.x) * launch.part;
        end = begin + launch.part < positions ? begin + launch.part : positions;
    }
};

// The tile of a map from position `first` on. Number 0 is g2, 1 is x, 2 is hidden, 3 is g1.
template <class Math>
__device__ inline TilePlace sums_place(const SumsLaunch& launch, const SumsBlock& block, int number, int64_t first) {
    const auto& call = launch.sums.call;
    const bool is_map = number < 2, in_images = number == 1 && launch.x_image;
    TilePlace place{};
    place.first = first;
    place.size = size;
    place.stride = in_images ? int(call.gate.map.positions) : sum_channels + Math::pad;
    place.last = number != 1 || call.gate.x_last;
    place.image = in_images ? launch.x_image : 0;
    place.images_per_position = launch.images_per_position;
    place.first_channel = is_map ? block.first_channel : block.first_unit;
    place.channels = is_map ? block.channels : sum_units;
    place.count = at_most(block.end - first, launch.held);
    return place;
}

// Copies the tiles of all four maps from position `first` on, one behind the other.
template <class Math>
__device__ inline void load_sums_tiles(
    const SumsLaunch& launch, const SumsBlock& block, int64_t first, typename Math::Element* to
) {
    using T = typename Math::Element;
    const auto& call = launch.sums.call;
#pragma unroll 1
    for (int number = 0; number < 4; ++number) {
        Map sizes = call.gate.map;
        if (number >= 2) sizes.channels = launch.sums.units;
        const void* const from = number == 0   ? call.g2_out
                                 : number == 1 ? call.gate.x
                                 : number == 2 ? call.hidden_out
                                               : call.g1_out;
        const int access = number == 0 ? launch.g2_access : number == 1 ? launch.x_access : 16;
        load_tile(
            to + number * sums_tile_elements<Math>, static_cast<const T*>(from), sizes,
            sums_place<Math>(launch, block, number, first), access
        );
    }
}

template <class Math>
__global__ void __launch_bounds__(32 * warps, 1) channel_gate_sum(const SumsLaunch launch) {
    using T = typename Math::Element;
    constexpr int stride = sum_channels + Math::pad, tile_elements = sums_tile_elements<Math>;
    constexpr int buffer_elements = 4 * tile_elements;
    const auto& call = launch.sums.call;
    const int thread = int(threadIdx.x), warp = thread / 32;
    T* const buffers = reinterpret_cast<T*>(shared_memory());
    const SumsBlock block(launch);
    const bool is_w1 = warp >= warps / 2;
    const int c = warp % (warps / 2) * step;

    for (int buffer = 0; buffer < launch.buffers; ++buffer) {
        T* const g2 = buffers + buffer * buffer_elements;
        clear_channels_behind(g2, sums_place<Math>(launch, block, 0, block.begin), sum_channels);
        clear_channels_behind(g2 + tile_elements, sums_place<Math>(launch, block, 1, block.begin), sum_channels);
    }

    Result sums[sum_units / step];
#pragma unroll
    for (auto& sum : sums) clear(sum);
    float sum_bias = 0.0f;
    const bool ahead = launch.buffers == 2;
    for (int64_t turn = ahead ? -1 : 0; block.begin + turn * launch.held < block.end; ++turn) {
        const int64_t next = block.begin + (ahead ? turn + 1 : turn) * launch.held;
        wait_for_copies<0>();
        __syncthreads();  // all threads have read the buffer of the next tile
        if (next < block.end) {
            load_sums_tiles<Math>(launch, block, next, buffers + (ahead && turn % 2 == 0 ? buffer_elements : 0));
        }
        commit_copies();
        if (!ahead) {
            wait_for_copies<0>();
            __syncthreads();
        }
        if (turn < 0) continue;

        const T* const g2 = buffers + (ahead && turn % 2 ? buffer_elements : 0);
        const T* const x = g2 + tile_elements;
        const T* const hidden = x + tile_elements;
        const T* const g1 = hidden + tile_elements;
        const TilePlace x_place = sums_place<Math>(launch, block, 1, block.begin + turn * launch.held);
#pragma unroll 1
        for (int k = 0; k < size; k += step) {
            const auto left =
                is_w1 ? left_of_channels<Math>(x, x_place, c, k) : Math::left_transposed(g2 + k * stride + c, stride);
            const T* const rows = (is_w1 ? g1 : hidden) + k * stride;
#pragma unroll
            for (int u = 0; u < sum_units; u += step) {
                Math::multiply_add(sums[u / step], left, Math::right_transposed(rows + u, stride));
            }
        }
        if (thread < sum_channels + sum_units) {
            const T* const column = thread < sum_channels ? g2 + thread : g1 + thread - sum_channels;
            for (int p = 0; p < x_place.count; ++p) sum_bias += to_float(column[p * stride]);
        }
    }

    const GateRow to = gate_row(call, int64_t(blockIdx.x));
    const int unit = block.first_unit + thread - sum_channels;
    if (thread < block.channels && blockIdx.z == 0) to.b2[block.first_channel + thread] = sum_bias;
    if (unit >= block.first_unit && unit < block.first_unit + sum_units && unit < int(call.gate.hidden) && blockIdx.y == 0) {
        to.b1[unit] = sum_bias;
    }
#pragma unroll
    for (int u = 0; u < sum_units; u += step) {
        store_sums(to, call, block.first_channel + c, block.first_unit + u, is_w1, sums[u / step]);
    }
}

template <class Math>
SumsLaunch sums_launch(const ChannelGateSums& call, const Device& device, Plan& plan) {
    const auto& gate = call.call.gate;
    constexpr int64_t buffer = 4 * size * (size + Math::pad) * sizeof(typename Math::Element);
    const int64_t of_images = in_images(gate.x, gate.map, gate.x_last) ? positions_of_images(gate.map, size) : 0;
    SumsLaunch launch{};
    launch.sums = call;
    launch.buffers = 2 * buffer <= device.shared_bytes ? 2 : 1;
    launch.held = int(of_images ? of_images : size);
    launch.x_image = of_images ? int(sum_channels * gate.map.positions) : 0;
    launch.x_access = map_access(gate.x, gate.map, gate.x_last);
    launch.g2_access = map_access(nullptr, gate.map, true);
    launch.part = positions_of_part(gate.map, gate.hidden, launch.held);
    launch.images_per_position = 1.0 / double(gate.map.positions);
    plan = {
        "channel_gate_sums",
        ceil_div(gate.map.batch * gate.map.positions, launch.part),
        ceil_div(gate.map.channels, sum_channels),
        call.units / sum_units,
        32 * warps,
        launch.buffers * buffer
    };
    return launch;
}

}  // namespace

Plan plan_channel_gate_sums(const ChannelGateSums& call, const Device& device) {
    Plan plan{};
    with_units(call.call.gate.map.dtype, call.call.gate.tf32, [&](auto math) {
        sums_launch<decltype(math)>(call, device, plan);
    });
    return plan;
}

void channel_gate_sums(const ChannelGateSums& call, const Device& device, Stream stream) {
    with_units(call.call.gate.map.dtype, call.call.gate.tf32, [&](auto math) {
        using Math = decltype(math);
        Plan plan{};
        const auto parameters = sums_launch<Math>(call, device, plan);
        launch(channel_gate_sum<Math>, plan, stream, parameters);
    });
}

}  // namespace gcsa_ext::cuda
