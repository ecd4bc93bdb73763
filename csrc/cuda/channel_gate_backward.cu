// The gradients of the channel gate. With g the gradient of out in the order of x's channels, and * the element-wise
// product:
//
//   g2 = g * x * a (1 - a),   g1 = (hidden > 0) * (w2' g2),   grad_x = g * a + w1' g1
//   grad_w1 = g1 x',  grad_b1 = sum g1,  grad_w2 = g2 hidden',  grad_b2 = sum g2        summed over positions
//
// hidden and a are computed again. As in the forward pass a warp has 16 positions, rows of all products but the sums over
// positions. For those a block keeps what its warps have found of a tile, and shares out their results, 16 x 16 elements
// each, to its warps, which hold them until the block is done; its sums are one row of `partial`. Where they are too many to
// be held, g2, hidden and g1 go through memory to a second kernel, in which a block sums for 64 channels only. The rows of
// `partial` are added in their order.
#include "channel_gate_device.h"
#include "norm_device.h"

namespace gcsa_ext::cuda {

namespace {

constexpr int held_results = 2;  // of either matrix, that a warp holds at most

// The pieces of w1 for hidden; of w2 for each block of channels, twice where the units have several blocks; of w1 for each
// block of channels.
struct BackwardOrder {
    __device__ static int turns_of_block(int unit_blocks) { return unit_blocks == 1 ? 1 : 2 * unit_blocks; }
    __device__ static int turns(int channel_blocks, int unit_blocks) {
        return channel_blocks * (2 * unit_blocks + turns_of_block(unit_blocks));
    }
    __device__ static int piece(int turn, int channel_blocks, int unit_blocks) {
        const int half = channel_blocks * unit_blocks, per_block = turns_of_block(unit_blocks);
        if (turn < half) return turn;
        turn -= half;
        if (turn < channel_blocks * per_block) {
            return half + turn / per_block * unit_blocks + turn % per_block % unit_blocks;
        }
        turn -= channel_blocks * per_block;
        return turn % unit_blocks * channel_blocks + turn / unit_blocks;
    }
};

template <class Math, int units>
using BackwardSizes = PieceSizes<units, 32, Math::pad>;

struct BackwardLaunch {
    GateLaunch gate;
    ChannelGateBackward call;
    int grad_stride, grad_elements;
    int grad_access, g2_access;
};

struct SumsLaunch {
    ChannelGateBackward call;
    int buffers;
    int x_access, g2_access;
    double images_per_position;
};

// A row of partial sums.
struct GateRow {
    float *w1, *b1, *w2, *b2;
};

__device__ GateRow gate_row(const ChannelGateBackward& call, int64_t number) {
    const int64_t channels = call.gate.map.channels, hidden = call.gate.hidden;
    float* const w1 = call.partial + number * (2 * hidden * channels + hidden + channels);
    float* const b1 = w1 + hidden * channels;
    return {w1, b1, b1 + hidden, b1 + hidden + channels * hidden};
}

// A result for 16 channels from `channel` on and 16 units, of w1 or of w2.
__device__ void store_sums(
    const GateRow& to, const ChannelGateBackward& call, int channel, int unit, bool is_w1, const Result& sums
) {
    const int channels = int(call.gate.map.channels), hidden = int(call.gate.hidden);
    for_own_elements([&](int index, int row, int column) {
        const int c = channel + row, u = unit + column;
        if (c >= channels || u >= hidden) return;
        (is_w1 ? to.w1 : to.w2)[is_w1 ? u * channels + c : c * hidden + u] = sums.at[index];
    });
}

template <class T>
__device__ void store_kept(T* rows, int stride, const Result& result) {
    for_own_elements([&](int index, int row, int column) { rows[row * stride + column] = from_float<T>(result.at[index]); });
}

template <class Math, int units, bool fused>
__global__ void __launch_bounds__(32 * largest_gate_warps, 1) channel_gate_backward(const BackwardLaunch launch) {
    using T = typename Math::Element;
    using Sizes = BackwardSizes<Math, units>;
    constexpr int unit_tiles = units / step, unit_stride = units + Math::pad;
    const auto& gate = launch.gate;
    const auto& call = launch.call;
    const Map& map = call.gate.map;
    const int channels = int(map.channels), hidden = int(call.gate.hidden), groups = int(call.gate.groups);
    const int size = gate.warps * step;

    T* const x_tile = reinterpret_cast<T*>(shared_memory());
    T* const grad_tile = x_tile + gate.tile_elements;
    // Of a fused block, rows of positions.
    T* const g2_tile = grad_tile + launch.grad_elements;
    const int g2_stride = gate.padded_channels + Math::pad;
    T* const hidden_tile = g2_tile + (fused ? size * g2_stride : 0);
    T* const g1_tile = hidden_tile + (fused ? size * unit_stride : 0);
    Pieces<Math, Sizes, BackwardOrder> pieces{
        {static_cast<const T*>(call.gate.w1), hidden, channels, gate.w1_aligned},
        {static_cast<const T*>(call.gate.w2), channels, hidden, gate.w2_aligned},
        g1_tile + (fused ? size * unit_stride : 0),
        gate.padded_channels / Sizes::channels,
        gate.resident
    };
    float* const bias1 = reinterpret_cast<float*>(pieces.shared + pieces.shared_elements());
    float* const bias2 = bias1 + units;
    int* const out_channel = reinterpret_cast<int*>(bias2 + gate.padded_channels);

    TilePlace place{int64_t(blockIdx.x) * size, size, gate.tile_stride, call.gate.x_last,
                    gate.images_per_position,   0,    channels};
    const int64_t positions = map.batch * map.positions;
    pieces.begin();
    load_vector<T>(bias1, call.gate.b1, hidden, units);
    load_vector<T>(bias2, call.gate.b2, channels, gate.padded_channels);
    for (int c = int(threadIdx.x); c < gate.padded_channels; c += int(blockDim.x)) {
        out_channel[c] = c < channels ? shuffled(c, channels, groups) : -1;
    }
    clear_channels_behind(x_tile, place, gate.padded_channels);

    Result sums_w1[held_results], sums_w2[held_results];
    float sum_b1 = 0.0f, sum_b2 = 0.0f;
    const int warp = int(threadIdx.x) / 32, channel_tiles = (channels + step - 1) / step;
    if constexpr (fused) {
#pragma unroll
        for (int i = 0; i < held_results; ++i) clear(sums_w1[i]), clear(sums_w2[i]);
    }

    const int row = warp * step;  // the warp's first position in the tile
    for (; place.first < positions; place.first += int64_t(gridDim.x) * size) {
        const bool another = place.first + int64_t(gridDim.x) * size < positions;
        TilePlace grad_place = place;
        grad_place.stride = launch.grad_stride;
        grad_place.last = call.grad_last;
        __syncthreads();  // nobody reads the last tile any more
#pragma unroll 1
        for (int number = 0; number < 2; ++number) {
            const void* const from = number ? call.grad : call.gate.x;
            T* const to = number ? grad_tile : x_tile;
            TilePlace at = place;  // not one of two places, which would be chosen by its address in memory
            if (number) at.stride = launch.grad_stride, at.last = call.grad_last;
            load_tile(to, static_cast<const T*>(from), map, at, number ? launch.grad_access : gate.x_access);
        }
        commit_copies();
        wait_for_copies<0>();
        __syncthreads();
        const auto is_position = [&](int m) { return place.first + row + m < positions; };

        int turn = 0;
        typename Math::Kept kept[unit_tiles];
#pragma unroll
        for (int block = 0; block < Sizes::unit_blocks; ++block) {
            Result sums[Sizes::units / step];
#pragma unroll
            for (auto& sum : sums) clear(sum);
            for (int channel = 0; channel < gate.padded_channels; channel += Sizes::channels) {
                const T* const w1 = pieces.take(turn++, another);
#pragma unroll Math::unrolled
                for (int k = 0; k < Sizes::channels; k += step) {
                    const auto left = place.last
                                          ? Math::left(x_tile + row * place.stride + channel + k, place.stride)
                                          : Math::left_transposed(x_tile + (channel + k) * place.stride + row, place.stride);
#pragma unroll
                    for (int n = 0; n < Sizes::units; n += step) {
                        Math::multiply_add(sums[n / step], left, Math::right(w1 + n * Sizes::stride1 + k, Sizes::stride1));
                    }
                }
            }
#pragma unroll
            for (int n = 0; n < Sizes::units; n += step) {
                const int unit = block * Sizes::units + n;
                for_own_elements([&](int index, int m, int column) {
                    float& value = sums[n / step].at[index];
                    value = is_position(m) && unit + column < hidden ? relu_of(value + bias1[unit + column]) : 0.0f;
                });
                kept[unit / step] = Math::keep(sums[n / step]);
                if (fused) {
                    store_kept(hidden_tile + row * unit_stride + unit, unit_stride, sums[n / step]);
                } else if (call.hidden_out) {
                    for_own_elements([&](int index, int m, int column) {
                        if (!is_position(m)) return;
                        T* const to = static_cast<T*>(call.hidden_out) + (place.first + row + m) * units;
                        to[unit + column] = from_float<T>(sums[n / step].at[index]);
                    });
                }
            }
        }

        Result g1[unit_tiles];
#pragma unroll
        for (auto& sum : g1) clear(sum);
        for (int channel = 0; channel < gate.padded_channels; channel += Sizes::channels) {
            Result g2[Sizes::channels / step];
#pragma unroll
            for (auto& sum : g2) clear(sum);
            const T* w2 = nullptr;
#pragma unroll
            for (int block = 0; block < Sizes::unit_blocks; ++block) {
                w2 = pieces.take(turn++, another);
#pragma unroll
                for (int k = 0; k < Sizes::units; k += step) {
                    const auto left = Math::left(kept[(block * Sizes::units + k) / step]);
#pragma unroll
                    for (int n = 0; n < Sizes::channels; n += step) {
                        Math::multiply_add(g2[n / step], left, Math::right(w2 + n * Sizes::stride2 + k, Sizes::stride2));
                    }
                }
            }
#pragma unroll
            for (int n = 0; n < Sizes::channels; n += step) {
                for_own_elements([&](int index, int m, int column) {
                    const int c = channel + n + column, p = row + m, out = out_channel[c];
                    float& value = g2[n / step].at[index];
                    const float v2 = value + bias2[c];
                    const float a = call.gate.sigmoid ? sigmoid(v2) : v2;
                    T* const own_x = x_tile + (place.last ? p * place.stride + c : c * place.stride + p);
                    value = 0.0f;
                    if (out >= 0 && is_position(m)) {
                        const int at = grad_place.last ? p * grad_place.stride + out : out * grad_place.stride + p;
                        const float g = to_float(grad_tile[at]);
                        value = g * to_float(*own_x) * (call.gate.sigmoid ? a * (1.0f - a) : 1.0f);
                        grad_tile[at] = from_float<T>(g * a);
                    }
                    if (fused) {
                        g2_tile[p * g2_stride + c] = from_float<T>(value);
                    } else {
                        *own_x = from_float<T>(value);  // it is not needed any more
                    }
                });
            }
#pragma unroll
            for (int block = 0; block < Sizes::unit_blocks; ++block) {
                if (Sizes::unit_blocks > 1) w2 = pieces.take(turn++, another);
#pragma unroll
                for (int k = 0; k < Sizes::channels; k += step) {
                    const auto left = Math::left(Math::keep(g2[k / step]));
#pragma unroll
                    for (int n = 0; n < Sizes::units; n += step) {
                        Math::multiply_add(
                            g1[(block * Sizes::units + n) / step], left,
                            Math::right_transposed(w2 + k * Sizes::stride2 + n, Sizes::stride2)
                        );
                    }
                }
            }
        }

#pragma unroll
        for (int tile = 0; tile < unit_tiles; ++tile) {
            for_own_elements([&](int index, int m, int column) {
                float& value = g1[tile].at[index];
                if (Math::is_zero(kept[tile], index)) value = 0.0f;
                if (!fused && call.g1_out && is_position(m)) {
                    T* const to = static_cast<T*>(call.g1_out) + (place.first + row + m) * units;
                    to[tile * step + column] = from_float<T>(value);
                }
            });
            if (fused) store_kept(g1_tile + row * unit_stride + tile * step, unit_stride, g1[tile]);
            kept[tile] = Math::keep(g1[tile]);
        }

        for (int channel = 0; channel < gate.padded_channels; channel += Sizes::channels) {
            Result sums[Sizes::channels / step];
#pragma unroll
            for (auto& sum : sums) clear(sum);
#pragma unroll
            for (int block = 0; block < Sizes::unit_blocks; ++block) {
                const T* const w1 = pieces.take(turn++, another);
                if (!call.grad_x) continue;
#pragma unroll
                for (int k = 0; k < Sizes::units; k += step) {
                    const auto left = Math::left(kept[(block * Sizes::units + k) / step]);
#pragma unroll
                    for (int n = 0; n < Sizes::channels; n += step) {
                        Math::multiply_add(
                            sums[n / step], left, Math::right_transposed(w1 + k * Sizes::stride1 + n, Sizes::stride1)
                        );
                    }
                }
            }
#pragma unroll
            for (int n = 0; n < Sizes::channels; n += step) {
                for_own_elements([&](int index, int m, int column) {
                    const int p = row + m, out = out_channel[channel + n + column];
                    if (out < 0) return;
                    T& value = grad_tile[grad_place.last ? p * grad_place.stride + out : out * grad_place.stride + p];
                    value = from_float<T>(to_float(value) + sums[n / step].at[index]);
                });
            }
        }
        __syncthreads();
#pragma unroll 1
        for (int number = 0; number < (fused ? 1 : 2); ++number) {
            // The inverse of a shuffle of G groups is one of C / G groups; g2 is in the order of x.
            void* const to = number ? call.g2_out : call.grad_x;
            if (!to) continue;
            TilePlace at = place;
            if (!number) at.stride = launch.grad_stride, at.last = call.grad_last;
            store_shuffled(
                static_cast<T*>(to), number ? x_tile : grad_tile, map, at, number ? 1 : channels / groups,
                number || place.last, number ? launch.g2_access : gate.out_access
            );
        }
        if constexpr (fused) {
            if (!call.partial) continue;
            const int thread = int(threadIdx.x);
            for (int p = 0; p < size; ++p) {
                if (thread < gate.padded_channels) sum_b2 += to_float(g2_tile[p * g2_stride + thread]);
                if (thread < units) sum_b1 += to_float(g1_tile[p * unit_stride + thread]);
            }
#pragma unroll
            for (int i = 0; i < held_results; ++i) {
                const int number = warp + i * gate.warps;
                if (number >= channel_tiles * unit_tiles) continue;
                const int c = number / unit_tiles * step, u = number % unit_tiles * step;
#pragma unroll 1
                for (int k = 0; k < size; k += step) {
                    Math::multiply_add(
                        sums_w2[i], Math::left_transposed(g2_tile + k * g2_stride + c, g2_stride),
                        Math::right_transposed(hidden_tile + k * unit_stride + u, unit_stride)
                    );
                    Math::multiply_add(
                        sums_w1[i],
                        place.last ? Math::left_transposed(x_tile + k * place.stride + c, place.stride)
                                   : Math::left(x_tile + c * place.stride + k, place.stride),
                        Math::right_transposed(g1_tile + k * unit_stride + u, unit_stride)
                    );
                }
            }
        }
    }
    wait_for_copies<0>();

    if constexpr (fused) {
        if (!call.partial) return;
        const GateRow to = gate_row(call, int64_t(blockIdx.x));
        const int thread = int(threadIdx.x);
        if (thread < channels) to.b2[thread] = sum_b2;
        if (thread < hidden) to.b1[thread] = sum_b1;
#pragma unroll
        for (int i = 0; i < held_results; ++i) {
            const int number = warp + i * gate.warps;
            if (number >= channel_tiles * unit_tiles) continue;
            store_sums(to, call, number / unit_tiles * step, number % unit_tiles * step, true, sums_w1[i]);
            store_sums(to, call, number / unit_tiles * step, number % unit_tiles * step, false, sums_w2[i]);
        }
    }
}

constexpr int sums_positions = 64, sums_channels = 64, sums_warps = 8;

template <class Math, int units>
__global__ void __launch_bounds__(32 * sums_warps, 1) channel_gate_sums(const SumsLaunch launch) {
    using T = typename Math::Element;
    constexpr int unit_tiles = units / step, stride = sums_channels + Math::pad, unit_stride = units + Math::pad;
    static_assert(stride == sums_positions + Math::pad, "x has the same stride in either layout");
    constexpr int map_elements = sums_positions * stride, unit_elements = sums_positions * unit_stride;
    constexpr int buffer_elements = 2 * (map_elements + unit_elements);
    const auto& call = launch.call;
    const Map& map = call.gate.map;
    const int thread = int(threadIdx.x), warp = thread / 32;
    T* const buffers = reinterpret_cast<T*>(shared_memory());

    const int first_channel = int(blockIdx.y) * sums_channels, left_over = int(map.channels) - first_channel;
    const int channels = left_over < sums_channels ? left_over : sums_channels;
    const int64_t positions = map.batch * map.positions;
    TilePlace place{int64_t(blockIdx.x) * sums_positions, sums_positions, stride,  call.gate.x_last,
                    launch.images_per_position,           first_channel,  channels};
    const auto load = [&](int buffer, int64_t first) {
        T* const to = buffers + buffer * buffer_elements;
#pragma unroll 1
        for (int number = 0; number < 4; ++number) {
            TilePlace from = place;
            from.first = first;
            Map sizes = map;
            if (number != 1) from.last = true;
            if (number >= 2) {
                from.stride = unit_stride, from.first_channel = 0, from.channels = units;
                sizes.channels = units;
            }
            load_tile(
                to + (number < 2 ? number * map_elements : 2 * map_elements + (number - 2) * unit_elements),
                static_cast<const T*>(
                    number == 0   ? call.g2_out
                    : number == 1 ? call.gate.x
                    : number == 2 ? call.hidden_out
                                  : call.g1_out
                ),
                sizes, from,
                number == 0   ? launch.g2_access
                : number == 1 ? launch.x_access
                              : 16
            );
        }
    };

    // Half of the warps sum g2 hidden', the others x g1', each for 16 channels and all units.
    const bool is_w1 = warp >= sums_warps / 2;
    const int c = warp % (sums_warps / 2) * step;
    Result sums[unit_tiles];
#pragma unroll
    for (auto& sum : sums) clear(sum);
    float sum_bias = 0.0f;
    const bool ahead = launch.buffers == 2;
    const int64_t begin = place.first, between = int64_t(gridDim.x) * sums_positions;
    for (int64_t turn = ahead ? -1 : 0; begin + turn * between < positions; ++turn) {
        const int64_t next = begin + (ahead ? turn + 1 : turn) * between;
        wait_for_copies<0>();
        __syncthreads();  // nobody reads any more where the next tile is copied to
        if (next < positions) load(ahead && turn % 2 == 0 ? 1 : 0, next);
        commit_copies();
        if (!ahead) {
            wait_for_copies<0>();
            __syncthreads();
        }
        if (turn < 0) continue;
        const int buffer = ahead && turn % 2 ? 1 : 0;

        const T* const g2 = buffers + buffer * buffer_elements;
        const T* const x = g2 + map_elements;
        const T* const hidden = x + map_elements;
        const T* const g1 = hidden + unit_elements;
#pragma unroll 1
        for (int k = 0; k < sums_positions; k += step) {
            const auto left = is_w1 && !place.last ? Math::left(x + c * stride + k, stride)
                                                   : Math::left_transposed((is_w1 ? x : g2) + k * stride + c, stride);
            const T* const rows = (is_w1 ? g1 : hidden) + k * unit_stride;
#pragma unroll
            for (int u = 0; u < units; u += step) {
                Math::multiply_add(sums[u / step], left, Math::right_transposed(rows + u, unit_stride));
            }
        }
        if (thread < channels) {
            for (int p = 0; p < sums_positions; ++p) sum_bias += to_float(g2[p * stride + thread]);
        } else if (thread >= sums_channels && thread < sums_channels + units) {
            for (int p = 0; p < sums_positions; ++p) {
                sum_bias += to_float(g1[p * unit_stride + thread - sums_channels]);
            }
        }
    }

    const GateRow to = gate_row(call, int64_t(blockIdx.x));
    if (thread < channels) to.b2[first_channel + thread] = sum_bias;
    const int unit = thread - sums_channels;
    if (unit >= 0 && unit < int(call.gate.hidden) && blockIdx.y == 0) to.b1[unit] = sum_bias;
#pragma unroll
    for (int u = 0; u < units; u += step) {
        store_sums(to, call, first_channel + c, u, is_w1, sums[u / step]);
    }
}

constexpr int add_columns = 32, add_rows = 8;

struct AddLaunch {
    const float* partial;
    int64_t rows, width;
    int64_t ends[4];  // of the pieces of a row
    Vector gradients[4];
};

// Block i adds columns 32 i to 32 i + 31: every eighth row first, then these eight sums.
__global__ void __launch_bounds__(add_columns* add_rows) channel_gate_add(const AddLaunch launch) {
    auto* const sums = reinterpret_cast<float*>(shared_memory());
    const int column = int(threadIdx.x) % add_columns, row = int(threadIdx.x) / add_columns;
    const int64_t at = int64_t(blockIdx.x) * add_columns + column;
    float sum = 0.0f;
    if (at < launch.width) {
#pragma unroll 4
        for (int64_t r = row; r < launch.rows; r += add_rows) sum += launch.partial[r * launch.width + at];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (row > 0 || at >= launch.width) return;
    for (int i = 1; i < add_rows; ++i) sum += sums[i * add_columns + column];
    int64_t begin = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (at >= begin && at < launch.ends[i]) store(launch.gradients[i], at - begin, sum);
        begin = launch.ends[i];
    }
}

constexpr GateWay fused_ways[] = {
    {true, 1, 4, 3}, {true, 1, 4, 2}, {true, 1, 8, 2}, {true, 1, 8, 1}, {true, 1, 4, 1},
};
constexpr GateWay other_ways[] = {
    {true, 1, 4, 3}, {true, 1, 4, 2},  {false, 1, 8, 2}, {false, 1, 4, 2}, {true, 1, 8, 1},
    {true, 1, 4, 1}, {false, 1, 8, 1}, {false, 1, 4, 1}, {false, 1, 2, 1}, {false, 1, 1, 1},
};

struct Choice {
    ChannelGateBackwardPlan plan;
    BackwardLaunch main;
    SumsLaunch sums;
    AddLaunch add;
};

// Of a thread of the first kernel, at most, as compiled for sm_80 and sm_90 by CUDA 13.0. For sm_100 it is up to 215, so
// that the last of three blocks begins when another one ends.
template <class Math, int units>
constexpr int64_t backward_registers = std::is_same_v<Math, Fma> || units > 64 ? 255
                                       : sizeof(typename Math::Element) == 4   ? 184
                                                                               : 168;

// Fills the plan of the first kernel; false where a way does not fit.
template <class Math, int units, bool fused>
bool fill_main(const ChannelGateBackward& call, const GateWay& way, const Device& device, Choice& choice) {
    using Sizes = BackwardSizes<Math, units>;
    const Map& map = call.gate.map;
    const int64_t blocks = ceil_div(map.channels, Sizes::channels), channels = blocks * Sizes::channels;
    const int64_t size = way.warps * step;
    const auto stride = [&](bool last) { return (last ? channels : size) + Math::pad; };
    const auto elements = [&](bool last) { return stride(last) * (last ? size : channels); };
    if (fused && (ceil_div(map.channels, step) * units / step > held_results * way.warps || channels > 32 * way.warps)) {
        return false;
    }
    const int64_t maps = elements(call.gate.x_last) + elements(call.grad_last);
    const int64_t kept = fused ? size * (channels + 2 * units + 3 * Math::pad) : 0;
    const int64_t pieces = (way.resident ? 2 * blocks * Sizes::unit_blocks : 2) * Sizes::elements;
    const int64_t bytes = (maps + kept + pieces) * element_size(map.element) + (units + 2 * channels) * 4;
    if (!fits(bytes, backward_registers<Math, units>, way, device)) return false;

    auto& launch = choice.main;
    launch.gate = gate_launch(call.gate, way, channels);
    launch.gate.tile_stride = int(stride(call.gate.x_last));
    launch.gate.tile_elements = int(elements(call.gate.x_last));
    launch.gate.out_access = map_access(call.grad_x, map, call.gate.x_last);
    launch.call = call;
    launch.grad_stride = int(stride(call.grad_last));
    launch.grad_elements = int(elements(call.grad_last));
    launch.grad_access = map_access(call.grad, map, call.grad_last);
    launch.g2_access = map_access(nullptr, map, true);
    const int64_t tiles = ceil_div(map.batch * map.positions, size);
    const int64_t grid = std::min(tiles, way.blocks * device.multiprocessors);
    choice.plan.main = {"channel_gate_backward", grid, 1, 1, way.warps * 32, bytes};
    choice.plan.rows = fused ? grid : 0;
    return true;
}

template <class Math, int units>
void fill_sums(const ChannelGateBackward& call, const Device& device, Choice& choice) {
    const Map& map = call.gate.map;
    constexpr int64_t buffer = 2 * sums_positions * (sums_channels + units + 2 * Math::pad) * sizeof(typename Math::Element);
    auto& launch = choice.sums;
    launch.call = call;
    launch.buffers = 2 * buffer <= device.shared_bytes ? 2 : 1;
    launch.x_access = map_access(call.gate.x, map, call.gate.x_last);
    launch.g2_access = map_access(nullptr, map, true);
    launch.images_per_position = 1.0 / double(map.positions);
    const int64_t along_c = ceil_div(map.channels, sums_channels), per_multiprocessor = 2;
    choice.plan.rows = std::min(
        ceil_div(map.batch * map.positions, sums_positions), ceil_div(per_multiprocessor * device.multiprocessors, along_c)
    );
    choice.plan.sums = {"channel_gate_sums", choice.plan.rows, along_c, 1, 32 * sums_warps, launch.buffers * buffer};
    choice.plan.units = units;
}

void fill_add(const ChannelGateBackward& call, Choice& choice) {
    auto& launch = choice.add;
    const int64_t lengths[] = {
        call.gate.hidden * call.gate.map.channels, call.gate.hidden, call.gate.hidden * call.gate.map.channels,
        call.gate.map.channels
    };
    launch.partial = call.partial;
    launch.rows = choice.plan.rows;
    for (int i = 0; i < 4; ++i) {
        launch.ends[i] = launch.width += lengths[i];
        launch.gradients[i] = call.gradients[i];
    }
    choice.plan.add = {"channel_gate_add",     ceil_div(launch.width, add_columns), 1, 1,
                       add_columns * add_rows, add_columns * add_rows * 4};
}

// Calls function(choice, the first kernel, the second).
template <class Function>
void with_choice(const ChannelGateBackward& call, const Device& device, const Function& function) {
    with_units(call.gate.map.element, call.gate.tf32, [&](auto math) {
        using Math = decltype(math);
        using Element = typename Math::Element;
        // Few units: their sums fit into the registers of a block, unless there are very many channels.
        if (call.gate.hidden <= 64 / int(sizeof(Element))) {
            bool found = false;
            with_padded_units<Math, 16>(call.gate.hidden, [&](auto constant) {
                constexpr int units = decltype(constant)::value;
                if constexpr (units <= 64 / int(sizeof(Element))) {
                    for (const auto& way : fused_ways) {
                        Choice choice{};
                        if (!fill_main<Math, units, true>(call, way, device, choice)) continue;
                        if (call.weights) fill_add(call, choice);
                        found = true;
                        const auto none = static_cast<void (*)(SumsLaunch)>(nullptr);
                        return function(choice, channel_gate_backward<Math, units, true>, none);
                    }
                }
            });
            if (found) return;
        }
        with_padded_units<Math, 64>(call.gate.hidden, [&](auto constant) {
            constexpr int units = decltype(constant)::value;
            for (const auto& way : other_ways) {
                Choice choice{};
                if (!fill_main<Math, units, false>(call, way, device, choice)) continue;
                if (call.weights) fill_sums<Math, units>(call, device, choice), fill_add(call, choice);
                return function(choice, channel_gate_backward<Math, units, false>, channel_gate_sums<Math, units>);
            }
            refuse_channels(call.gate, device);
        });
    });
}

}  // namespace

ChannelGateBackwardPlan plan_channel_gate_backward(const ChannelGateBackward& call, const Device& device) {
    ChannelGateBackwardPlan plan{};
    with_choice(call, device, [&](const Choice& choice, auto, auto) { plan = choice.plan; });
    return plan;
}

void channel_gate_backward(const ChannelGateBackward& call, const Device& device, Stream stream) {
    with_choice(call, device, [&](const Choice& choice, auto main, auto sums) {
        launch(main, choice.plan.main, stream, choice.main);
        if (choice.plan.sums.threads) launch(sums, choice.plan.sums, stream, choice.sums);
        if (choice.plan.add.threads) launch(channel_gate_add, choice.plan.add, stream, choice.add);
    });
}

}  // namespace gcsa_ext::cuda
