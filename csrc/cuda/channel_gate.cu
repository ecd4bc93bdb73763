// The channel gate of a map x (C, positions), with w1 (h, C), w2 (C, h), G groups of C / G channels:
//
//   hidden = relu(w1 x + b1),   a = sigmoid(w2 hidden + b2),   out[j * G + i] = (x * a)[i * (C / G) + j]
//
// A block goes through tiles of positions; a warp has 16 of them, the rows of its products, and all channels. The hidden
// units stay in registers, where they are the left operand of the second product. x is read once, into shared memory, where
// the product x * a takes its place, and out is written once, from there. While a tile is worked on, the next one is copied.
//
// The weights stay in shared memory, if there is room, or go through two buffers for every tile; then their way through the
// L2 cache bounds the time, not x and out.
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

template <class Math, int units>
__global__ void __launch_bounds__(32 * largest_gate_warps, 1) channel_gate_forward(const GateLaunch launch) {
    using T = typename Math::Element;
    using Sizes = ForwardSizes<Math, units>;
    const ChannelGate& call = launch.call;
    const int channels = int(call.map.channels), hidden = int(call.hidden);
    T* const tiles = reinterpret_cast<T*>(shared_memory());
    Pieces<Math, Sizes, ForwardOrder> pieces{
        {static_cast<const T*>(call.w1), hidden, channels, launch.w1_aligned},
        {static_cast<const T*>(call.w2), channels, hidden, launch.w2_aligned},
        tiles + launch.tile_buffers * launch.tile_elements,
        launch.padded_channels / Sizes::channels,
        launch.resident
    };
    float* const bias1 = reinterpret_cast<float*>(pieces.shared + pieces.shared_elements());
    float* const bias2 = bias1 + units;

    const int size = launch.warps * step;
    const int64_t count = (call.map.batch * call.map.positions + size - 1) / size;
    TilePlace place{
        int64_t(blockIdx.x) * size, size, launch.tile_stride, call.x_last, launch.images_per_position, 0, channels
    };
    const int64_t between = int64_t(gridDim.x) * size, end = count * size;
    const auto* const x = static_cast<const T*>(call.x);
    const bool ahead = launch.tile_buffers == 2;

    pieces.begin();
    load_vector<T>(bias1, call.b1, hidden, units);
    load_vector<T>(bias2, call.b2, channels, launch.padded_channels);
    for (int b = 0; b < launch.tile_buffers; ++b) {
        clear_channels_behind(tiles + b * launch.tile_elements, place, launch.padded_channels);
    }

    const int row = int(threadIdx.x) / 32 * step;  // the warp's first position in the tile
    const int64_t first = int64_t(blockIdx.x) * size;
    for (int64_t turn = ahead ? -1 : 0; first + turn * between < end; ++turn) {
        TilePlace next = place;
        next.first = first + (ahead ? turn + 1 : turn) * between;
        wait_for_copies<0>();
        __syncthreads();  // what the next tile is copied to has been stored
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
        T* const tile = tiles + (ahead && turn % 2 ? launch.tile_elements : 0);
        const bool another = place.first + between < end;

        int turn_of_pieces = 0;
        typename Math::Kept kept[units / step];
#pragma unroll
        for (int block = 0; block < Sizes::unit_blocks; ++block) {
            Result sums[Sizes::units / step];
#pragma unroll
            for (auto& sum : sums) clear(sum);
            for (int channel = 0; channel < launch.padded_channels; channel += Sizes::channels) {
                const T* const w1 = pieces.take(turn_of_pieces++, another);
#pragma unroll Math::unrolled
                for (int k = 0; k < Sizes::channels; k += step) {
                    const auto left = call.x_last
                                          ? Math::left(tile + row * place.stride + channel + k, place.stride)
                                          : Math::left_transposed(tile + (channel + k) * place.stride + row, place.stride);
#pragma unroll
                    for (int n = 0; n < Sizes::units; n += step) {
                        Math::multiply_add(sums[n / step], left, Math::right(w1 + n * Sizes::stride1 + k, Sizes::stride1));
                    }
                }
            }
#pragma unroll
            for (int n = 0; n < Sizes::units; n += step) {
                for_own_elements([&](int index, int, int column) {
                    float& value = sums[n / step].at[index];
                    const int unit = block * Sizes::units + n + column;
                    // 0 times an infinite x would make a NaN of units that do not exist.
                    value = unit < hidden ? relu_of(value + bias1[unit]) : 0.0f;
                });
                kept[(block * Sizes::units + n) / step] = Math::keep(sums[n / step]);
            }
        }

        for (int channel = 0; channel < launch.padded_channels; channel += Sizes::channels) {
            Result sums[Sizes::channels / step];
#pragma unroll
            for (auto& sum : sums) clear(sum);
#pragma unroll
            for (int block = 0; block < Sizes::unit_blocks; ++block) {
                const T* const w2 = pieces.take(turn_of_pieces++, another);
#pragma unroll
                for (int k = 0; k < Sizes::units; k += step) {
                    const auto left = Math::left(kept[(block * Sizes::units + k) / step]);
#pragma unroll
                    for (int n = 0; n < Sizes::channels; n += step) {
                        Math::multiply_add(sums[n / step], left, Math::right(w2 + n * Sizes::stride2 + k, Sizes::stride2));
                    }
                }
            }
#pragma unroll
            for (int n = 0; n < Sizes::channels; n += step) {
                for_own_elements([&](int index, int m, int column) {
                    const int c = channel + n + column, p = row + m;
                    // The padding behind the last channel must stay 0: hidden units may be infinite, and 0 times that is
                    // NaN.
                    if (c >= call.map.channels) return;
                    const float v = sums[n / step].at[index] + bias2[c];
                    T& value = tile[place.last ? p * place.stride + c : c * place.stride + p];
                    value = from_float<T>(to_float(value) * (call.sigmoid ? sigmoid(v) : v));
                });
            }
        }
        __syncthreads();
        store_shuffled(static_cast<T*>(call.out), tile, call.map, place, int(call.groups), call.out_last, launch.out_access);
    }
}

struct Choice {
    GateLaunch launch;
    Plan plan;
};

// The next tile is copied while one is worked on, by as many warps as possible, with the weights in shared memory; where
// they are not, two blocks share a multiprocessor, so that one works while the other waits.
constexpr GateWay ways[] = {
    {true, 2, 4, 4},  {true, 2, 4, 3},  {true, 2, 4, 2},  {true, 2, 8, 1},  {true, 2, 4, 1},  {false, 1, 8, 2},
    {false, 1, 4, 2}, {false, 1, 8, 1}, {false, 1, 4, 1}, {false, 1, 2, 1}, {false, 1, 1, 1},
};

// Of a thread, at most, as compiled for sm_80, sm_90 and sm_100 by CUDA 13.0.
template <class Math, int units>
constexpr int64_t forward_registers = std::is_same_v<Math, Fma> ? 255
                                      : units <= 32             ? 128
                                      : units <= 64             ? 168
                                                                : 180;

template <class Math, int units>
Choice choose(const ChannelGate& call, const Device& device) {
    using Sizes = ForwardSizes<Math, units>;
    const int64_t blocks = ceil_div(call.map.channels, Sizes::channels), channels = blocks * Sizes::channels;
    for (const auto& way : ways) {
        auto launch = gate_launch(call, way, channels);
        const int64_t positions = way.warps * step, stride = (call.x_last ? channels : positions) + Math::pad;
        const int64_t tile = stride * (call.x_last ? positions : channels);
        const int64_t pieces = way.resident ? 2 * blocks * Sizes::unit_blocks : 2;
        const int64_t elements = way.tile_buffers * tile + pieces * Sizes::elements;
        const int64_t bytes = elements * element_size(call.map.element) + (units + channels) * 4;
        if (!fits(bytes, forward_registers<Math, units>, way, device)) continue;
        launch.tile_stride = int(stride);
        launch.tile_elements = int(tile);
        const int64_t tiles = ceil_div(call.map.batch * call.map.positions, positions);
        return {launch, {"channel_gate", std::min(tiles, way.blocks * device.multiprocessors), 1, 1, way.warps * 32, bytes}};
    }
    refuse_channels(call, device);
}

// Calls function(choice, kernel).
template <class Function>
void with_choice(const ChannelGate& call, const Device& device, const Function& function) {
    with_units(call.map.element, call.tf32, [&](auto math) {
        using Math = decltype(math);
        with_padded_units<Math, 16>(call.hidden, [&](auto constant) {
            constexpr int units = decltype(constant)::value;
            function(choose<Math, units>(call, device), channel_gate_forward<Math, units>);
        });
    });
}

}  // namespace

Plan plan_channel_gate(const ChannelGate& call, const Device& device) {
    Plan plan{};
    with_choice(call, device, [&](const Choice& choice, auto) { plan = choice.plan; });
    return plan;
}

void channel_gate(const ChannelGate& call, const Device& device, Stream stream) {
    with_choice(call, device, [&](const Choice& choice, auto kernel) {
        launch(kernel, choice.plan, stream, choice.launch);
    });
}

}  // namespace gcsa_ext::cuda
