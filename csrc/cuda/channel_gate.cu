// The channel gate of a map x (C, positions), with w1 (h, C), w2 (C, h), G groups of C / G channels:
//
//   hidden = relu(w1 x + b1),   a = sigmoid(w2 hidden + b2),   out[j * G + i] = (x * a)[i * (C / G) + j]
//
// A block goes through tiles of positions. A warp has 16 positions of a tile, the rows of its products, and all channels. x
// is read once, into shared memory, where x * a replaces it, and out is written once, from there. While a tile is worked on,
// the next one is copied.
//
// If there is room, the weights stay in shared memory. Otherwise they go through two buffers for every tile, and the L2
// cache that they come from bounds the time, not x and out.
#include "channel_gate.h"
#include "channel_gate_device.h"

namespace gcsa_ext::cuda {

namespace {

// The pieces of w1 for each block of units, then those of w2 for each block of channels.
struct ForwardOrder {
    __device__ static int turns(int channel_blocks, int unit_blocks) { return 2 * channel_blocks * unit_blocks; }
    __device__ static int piece(int turn, int, int) { return turn; }
};

template <class Math, int units>
using ForwardSizes = PieceSizes<units, 64, Math::pad>;

// Two blocks per multiprocessor leave 128 registers per thread; products without tensor cores take more.
template <class Math>
constexpr int blocks_at_least = std::is_same_v<Math, Fma> ? 1 : 2;

// The second layer and the gate for a warp's 16 positions, from `row` of the tile on: x * a takes the place of x.
template <class Math, class Sizes>
__device__ inline void gate_rows(
    const GateLaunch& launch, typename Math::Element* tile, const TilePlace& place, int row,
    const typename Math::Element* hidden_rows, Pieces<Math, Sizes, ForwardOrder>& pieces, int& turn, bool another,
    const float* bias
) {
    using T = typename Math::Element;
    const int channels = int(launch.call.map.channels), hidden_stride = launch.padded_units + Math::pad;
    const int lane_row = row + lane_number() / 4, at[2] = {place.at(lane_row), place.at(lane_row + 8)};
    for (int channel = 0; channel < launch.padded_channels; channel += Sizes::channels) {
        Result sums[Sizes::channels / step];
#pragma unroll
        for (auto& sum : sums) clear(sum);
        for (int unit = 0; unit < launch.padded_units; unit += Sizes::units) {
            const T* const w2 = pieces.take(turn++, another);
            const auto left = [&](int k) { return Math::left(hidden_rows + unit + k, hidden_stride); };
            accumulate<Math, Sizes::units, false>(sums, left, w2, Sizes::stride2);
        }
#pragma unroll
        for (int n = 0; n < Sizes::channels; n += step) {
            for_lane_elements([&](int index, int m, int column) {
                const int c = channel + n + column;
                // The padding behind the last channel must stay 0: hidden units may be infinite, and 0 times that is NaN.
                if (c >= channels || row + m >= place.count) return;
                const float v = sums[n / step].at[index] + bias[c];
                T& value = tile[at[index / 2 % 2] + c * place.between_channels()];
                value = from_float<T>(to_float(value) * (launch.call.sigmoid ? sigmoid(v) : v));
            });
        }
    }
}

template <class Math, int units>
__global__ void __launch_bounds__(32 * largest_gate_warps, blocks_at_least<Math>) channel_gate_forward(
    const GateLaunch launch
) {
    using T = typename Math::Element;
    using Sizes = ForwardSizes<Math, units>;
    const ChannelGate& call = launch.call;
    const int channels = int(call.map.channels), hidden = int(call.hidden);
    const int hidden_stride = launch.padded_units + Math::pad;
    T* const tiles = reinterpret_cast<T*>(shared_memory());
    T* const hidden_tile = tiles + launch.tile_buffers * launch.tile_elements;
    Pieces<Math, Sizes, ForwardOrder> pieces{
        {static_cast<const T*>(call.w1), hidden, channels, launch.w1_aligned},
        {static_cast<const T*>(call.w2), channels, hidden, launch.w2_aligned},
        hidden_tile + launch.warps * step * hidden_stride,
        launch.padded_channels / Sizes::channels,
        launch.padded_units / Sizes::units,
        launch.resident
    };
    float* const bias1 = reinterpret_cast<float*>(pieces.shared + pieces.shared_elements());
    float* const bias2 = bias1 + launch.padded_units;

    const int64_t end = call.map.batch * call.map.positions;
    const int64_t first = int64_t(blockIdx.x) * launch.held, between = int64_t(gridDim.x) * launch.held;
    TilePlace place = tile_place(launch, first);
    const auto* const x = static_cast<const T*>(call.x);
    const bool ahead = launch.tile_buffers == 2;  // the next tile is copied while one is worked on

    pieces.begin();
    load_vector<T>(bias1, call.b1, hidden, launch.padded_units);
    load_vector<T>(bias2, call.b2, channels, launch.padded_channels);
    for (int b = 0; b < launch.tile_buffers; ++b) {
        clear_channels_behind(tiles + b * launch.tile_elements, place, launch.padded_channels);
    }

    const int row = int(threadIdx.x) / 32 * step;  // the warp's first position in the tile
    T* const hidden_rows = hidden_tile + row * hidden_stride;
    for (int64_t turn = ahead ? -1 : 0; first + turn * between < end; ++turn) {
        TilePlace next = place;
        next.first = first + (ahead ? turn + 1 : turn) * between;
        next.count = at_most(end - next.first, launch.held);
        wait_for_copies<0>();
        __syncthreads();  // the buffer of the next tile has been stored
        if (next.first < end) {
            load_tile(tiles + (ahead && turn % 2 == 0 ? launch.tile_elements : 0), x, call.map, next, launch.x_access);
        }
        commit_copies();
        if (!ahead) {
            wait_for_copies<0>();
            __syncthreads();
        }
        if (turn < 0) continue;
        place.first = first + turn * between;
        place.count = at_most(end - place.first, launch.held);
        T* const tile = tiles + (ahead && turn % 2 ? launch.tile_elements : 0);
        const bool another = place.first + between < end;

        int turn_of_pieces = 0;
        compute_hidden(hidden_rows, hidden_stride, tile, place, row, pieces, turn_of_pieces, another, bias1, hidden);
        gate_rows<Math>(launch, tile, place, row, hidden_rows, pieces, turn_of_pieces, another, bias2);
        __syncthreads();
        store_shuffled(
            static_cast<T*>(call.out), tile, call.map, place, int(call.groups), call.out_last, launch.out_images,
            launch.out_access
        );
    }
}

struct Choice {
    GateLaunch launch;
    Plan plan;
};

// Registers of a thread, at most, as compiled for sm_80, sm_90 and sm_100 by CUDA 13.0.
template <class Math>
constexpr int64_t forward_registers = std::is_same_v<Math, Fma> ? 168 : 128;

// The best way that fits is taken. First come those with the weights in shared memory and two tile buffers, most warps
// first; without resident weights a block has as many positions as possible, since every tile reads all weights from the L2
// cache.
constexpr GateWay ways[] = {
    {true, 2, 4, 4},  {true, 2, 4, 3},  {true, 2, 4, 2},  {true, 2, 8, 1},  {false, 1, 8, 2}, {true, 2, 4, 1},
    {false, 1, 8, 1}, {false, 1, 4, 2}, {false, 1, 4, 1}, {false, 1, 2, 1}, {false, 1, 1, 1},
};

template <class Math, int units>
bool choose(const ChannelGate& call, const GateWay& way, const Device& device, Choice& choice) {
    using Sizes = ForwardSizes<Math, units>;
    const int64_t blocks = ceil_div(call.map.channels, Sizes::channels), channels = blocks * Sizes::channels;
    const int64_t unit_blocks = ceil_div(call.hidden, units), all_units = unit_blocks * units;
    auto& launch = choice.launch;
    launch = gate_launch(call, way, call.out, call.out_last, false, channels, all_units, Math::pad);
    const int64_t pieces = (way.resident ? 2 * blocks * unit_blocks : 2) * Sizes::elements;
    const int64_t hidden = way.warps * step * (all_units + Math::pad);
    const int64_t elements = way.tile_buffers * int64_t(launch.tile_elements) + hidden + pieces;
    const int64_t bytes = elements * element_size(call.map.dtype) + (all_units + channels) * 4;
    if (!fits(bytes, forward_registers<Math>, way, device)) return false;
    const int64_t tiles = ceil_div(call.map.batch * call.map.positions, launch.held);
    choice.plan = {"channel_gate", std::min(tiles, way.blocks * device.multiprocessors), 1, 1, way.warps * 32, bytes};
    return true;
}

// Calls function(choice, kernel).
template <class Function>
void with_choice(const ChannelGate& call, const Device& device, const Function& function) {
    with_units(call.map.dtype, call.tf32, [&](auto math) {
        using Math = decltype(math);
        const bool few = call.hidden <= largest_hidden_of_few_units;
        for (const auto& way : ways) {
            Choice choice{};
            if (!(few ? choose<Math, few_units> : choose<Math, many_units>)(call, way, device, choice)) continue;
            return function(choice, few ? channel_gate_forward<Math, few_units> : channel_gate_forward<Math, many_units>);
        }
        refuse_channels(call, device);
    });
}

}  // namespace

ChannelGatePlan plan_channel_gate(const ChannelGate& call, const Device& device) {
    ChannelGatePlan plan{};
    with_choice(call, device, [&](const Choice& choice, auto) {
        plan = {choice.plan, choice.launch.x_access, choice.launch.out_access};
    });
    return plan;
}

void channel_gate(const ChannelGate& call, const Device& device, Stream stream) {
    with_choice(call, device, [&](const Choice& choice, auto kernel) {
        launch(kernel, choice.plan, stream, choice.launch);
    });
}

}  // namespace gcsa_ext::cuda
