// The gradients of the channel gate. With g the gradient of out in the order of x's channels, and * the element-wise
// product:
//
//   g2 = g * x * a (1 - a),   g1 = (hidden > 0) * (w2' g2),   grad_x = g * a + w1' g1
//   grad_w1 = g1 x',  grad_b1 = sum g1,  grad_w2 = g2 hidden',  grad_b2 = sum g2        summed over positions
//
// hidden and a are computed again. As in the forward pass a warp has 16 positions, rows of four products, and what it finds
// lies in shared memory: g * a and then grad_x in the place of g, g2 in that of x, g1 in that of hidden.
//
// The sums over positions are made of parts, whose number comes from the shape. Where the results of a part, 16 x 16
// elements each, are few enough to be held in registers, its block shares them out to its warps (`fused`), and g2 and g1
// have places of their own. Otherwise g2, hidden and g1 go through memory to channel_gate_sums.cu. A part's sums are a row
// of `partial`, and sum_rows adds these in their order.
#include "channel_gate_device.h"
#include "channel_gate_sums.h"
#include "sum_rows.h"

namespace gcsa_ext::cuda {

namespace {

constexpr int held_results = 2;  // of either matrix, that a warp holds at most

// All pieces of w1 for hidden, those of w2 for g2, those of w2 for g1, those of w1 for grad_x. The products with units as
// results go through channels first, the others through units.
struct BackwardOrder {
    __device__ static int turns(int channel_blocks, int unit_blocks) { return 4 * channel_blocks * unit_blocks; }
    __device__ static int piece(int turn, int channel_blocks, int unit_blocks) {
        const int half = channel_blocks * unit_blocks;
        if (turn < 2 * half) return turn;
        turn -= 2 * half;
        if (turn < half) return half + turn % channel_blocks * unit_blocks + turn / channel_blocks;
        turn -= half;
        return turn % unit_blocks * channel_blocks + turn / unit_blocks;
    }
};

template <class Math, int units>
using BackwardSizes = PieceSizes<units, 32, Math::pad>;

struct BackwardLaunch {
    GateLaunch gate;
    ChannelGateBackward call;
    int grad_stride, grad_image, grad_elements;
    int grad_access, g2_access;
    int64_t part;  // positions whose sums are made together; not fused: of a tile
};

// A warp copies rows of shared memory to consecutive rows of a matrix.
template <class T>
__device__ void store_rows(T* to, int columns, const T* rows, int stride, int count) {
    constexpr int width = elements_per_access<T>;
    const int packs = columns / width;
    for (int i = lane_number(); i < count * packs; i += 32) {
        const int row = i / packs, column = i % packs * width;
        store_pack(to + row * columns + column, load_pack<T, width>(rows + row * stride + column));
    }
}

template <class Math, int units, bool fused>
__global__ void __launch_bounds__(32 * largest_gate_warps, 1) channel_gate_backward(const BackwardLaunch launch) {
    using T = typename Math::Element;
    using Sizes = BackwardSizes<Math, units>;
    const auto& gate = launch.gate;
    const auto& call = launch.call;
    const Map& map = call.gate.map;
    const int channels = int(map.channels), hidden = int(call.gate.hidden), groups = int(call.gate.groups);
    const int size = gate.warps * step, unit_stride = gate.padded_units + Math::pad;
    const int g2_stride = gate.padded_channels + Math::pad;

    T* const x_tile = reinterpret_cast<T*>(shared_memory());
    T* const grad_tile = x_tile + gate.tile_elements;
    T* const hidden_tile = grad_tile + launch.grad_elements;
    T* const g1_tile = hidden_tile + (fused ? size * unit_stride : 0);
    T* const g2_tile = g1_tile + size * unit_stride;  // if fused
    Pieces<Math, Sizes, BackwardOrder> pieces{
        {static_cast<const T*>(call.gate.w1), hidden, channels, gate.w1_aligned},
        {static_cast<const T*>(call.gate.w2), channels, hidden, gate.w2_aligned},
        g2_tile + (fused ? size * g2_stride : 0),
        gate.padded_channels / Sizes::channels,
        gate.padded_units / Sizes::units,
        gate.resident
    };
    float* const bias1 = reinterpret_cast<float*>(pieces.shared + pieces.shared_elements());
    float* const bias2 = bias1 + gate.padded_units;
    int* const out_channel = reinterpret_cast<int*>(bias2 + gate.padded_channels);

    TilePlace place = tile_place(gate, 0);
    TilePlace grad_place = place;
    grad_place.last = call.grad_last;
    grad_place.stride = launch.grad_stride;
    grad_place.image = launch.grad_image;
    pieces.begin();
    load_vector<T>(bias1, call.gate.b1, hidden, gate.padded_units);
    load_vector<T>(bias2, call.gate.b2, channels, gate.padded_channels);
    for (int c = int(threadIdx.x); c < gate.padded_channels; c += int(blockDim.x)) {
        out_channel[c] = c < channels ? shuffled(c, channels, groups) : 0;
    }
    clear_channels_behind(x_tile, place, gate.padded_channels);

    Result sums_w1[held_results], sums_w2[held_results];
    float sum_b1 = 0.0f, sum_b2 = 0.0f;
    const int thread = int(threadIdx.x), warp = thread / 32;
    const int unit_tiles = gate.padded_units / step, results = (channels + step - 1) / step * unit_tiles;
    if constexpr (fused) {
#pragma unroll
        for (int i = 0; i < held_results; ++i) clear(sums_w1[i]), clear(sums_w2[i]);
    }

    const int row = warp * step;  // the warp's first position in the tile
    const int own = row + lane_number() / 4, x_at[2] = {place.at(own), place.at(own + 8)};
    const int grad_at[2] = {grad_place.at(own), grad_place.at(own + 8)};
    T* const hidden_rows = hidden_tile + row * unit_stride;
    T* const g1_rows = g1_tile + row * unit_stride;
    T* const g2_rows = g2_tile + row * g2_stride;

    const int64_t positions = map.batch * map.positions;
    int64_t part = blockIdx.x;
    for (int64_t first = part * launch.part; first < positions;) {
        const int64_t end_of_part = (part + 1) * launch.part, next = first + gate.held;
        const bool part_ends = next >= end_of_part || next >= positions;
        const int64_t next_first = part_ends ? (part + gridDim.x) * launch.part : next;
        const bool another = next_first < positions;
        place.first = grad_place.first = first;
        place.count = grad_place.count = at_most(positions - first, gate.held);
        __syncthreads();  // nobody reads the last tile any more
#pragma unroll 1
        for (int number = 0; number < 2; ++number) {
            const void* const from = number ? call.grad : call.gate.x;
            TilePlace at = place;  // not one of two places, which would be chosen by its address in memory
            if (number) at.stride = grad_place.stride, at.image = grad_place.image, at.last = grad_place.last;
            load_tile(
                number ? grad_tile : x_tile, static_cast<const T*>(from), map, at,
                number ? launch.grad_access : gate.x_access
            );
        }
        commit_copies();
        wait_for_copies<0>();
        __syncthreads();

        int turn = 0;
        compute_hidden(hidden_rows, unit_stride, x_tile, place, row, pieces, turn, another, bias1, hidden);
        const int own_count = place.count - row < step ? place.count - row : step;
        if (!fused && call.hidden_out) {
            T* const to = static_cast<T*>(call.hidden_out) + (first + row) * gate.padded_units;
            store_rows(to, gate.padded_units, hidden_rows, unit_stride, own_count);
        }

        for (int channel = 0; channel < gate.padded_channels; channel += Sizes::channels) {
            Result g2[Sizes::channels / step];
#pragma unroll
            for (auto& sum : g2) clear(sum);
            for (int unit = 0; unit < gate.padded_units; unit += Sizes::units) {
                const T* const w2 = pieces.take(turn++, another);
                const auto left = [&](int k) { return Math::left(hidden_rows + unit + k, unit_stride); };
                accumulate<Math, Sizes::units, false>(g2, left, w2, Sizes::stride2);
            }
#pragma unroll
            for (int n = 0; n < Sizes::channels; n += step) {
                for_own_elements([&](int index, int m, int column) {
                    const int c = channel + n + column, i = index / 2 % 2;
                    float& value = g2[n / step].at[index];
                    const float v2 = value + bias2[c];
                    const float a = call.gate.sigmoid ? sigmoid(v2) : v2;
                    value = 0.0f;
                    if (c >= channels || m >= own_count) return;
                    T& grad = grad_tile[grad_at[i] + out_channel[c] * grad_place.between_channels()];
                    T& x = x_tile[x_at[i] + c * place.between_channels()];
                    const float g = to_float(grad);
                    value = g * to_float(x) * (call.gate.sigmoid ? a * (1.0f - a) : 1.0f);
                    grad = from_float<T>(g * a);
                    if (!fused) x = from_float<T>(value);
                });
                if (fused) store_result(g2_rows + channel + n, g2_stride, g2[n / step]);
            }
        }
        __syncwarp();

        for (int unit = 0; unit < gate.padded_units; unit += Sizes::units) {
            Result g1[Sizes::units / step];
#pragma unroll
            for (auto& sum : g1) clear(sum);
            for (int channel = 0; channel < gate.padded_channels; channel += Sizes::channels) {
                const T* const w2 = pieces.take(turn++, another);
                const auto left = [&](int k) {
                    return fused ? Math::left(g2_rows + channel + k, g2_stride)
                                 : left_of_tile<Math>(x_tile, place, row, channel + k);
                };
                accumulate<Math, Sizes::channels, true>(g1, left, w2, Sizes::stride2);
            }
#pragma unroll
            for (int n = 0; n < Sizes::units; n += step) {
                for_own_elements([&](int index, int m, int column) {
                    const bool is_zero = to_float(hidden_rows[m * unit_stride + unit + n + column]) == 0.0f;
                    if (is_zero) g1[n / step].at[index] = 0.0f;
                });
                store_result(g1_rows + unit + n, unit_stride, g1[n / step]);
            }
        }
        __syncwarp();
        if (!fused && call.g1_out) {
            T* const to = static_cast<T*>(call.g1_out) + (first + row) * gate.padded_units;
            store_rows(to, gate.padded_units, g1_rows, unit_stride, own_count);
        }

        for (int channel = 0; channel < gate.padded_channels; channel += Sizes::channels) {
            Result sums[Sizes::channels / step];
#pragma unroll
            for (auto& sum : sums) clear(sum);
            for (int unit = 0; unit < gate.padded_units; unit += Sizes::units) {
                const T* const w1 = pieces.take(turn++, another);
                if (!call.grad_x) continue;
                const auto left = [&](int k) { return Math::left(g1_rows + unit + k, unit_stride); };
                accumulate<Math, Sizes::units, true>(sums, left, w1, Sizes::stride1);
            }
#pragma unroll
            for (int n = 0; n < Sizes::channels; n += step) {
                for_own_elements([&](int index, int m, int column) {
                    const int c = channel + n + column;
                    if (c >= channels || m >= own_count) return;
                    T& grad = grad_tile[grad_at[index / 2 % 2] + out_channel[c] * grad_place.between_channels()];
                    grad = from_float<T>(to_float(grad) + sums[n / step].at[index]);
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
            if (!number) at.stride = grad_place.stride, at.image = grad_place.image, at.last = grad_place.last;
            store_shuffled(
                static_cast<T*>(to), number ? x_tile : grad_tile, map, at, number ? 1 : channels / groups,
                number || place.last, !number && gate.out_images, number ? launch.g2_access : gate.out_access
            );
        }
        if constexpr (fused) {
            if (call.partial) {
                for (int p = 0; p < place.count; ++p) {
                    if (thread < gate.padded_channels) sum_b2 += to_float(g2_tile[p * g2_stride + thread]);
                    if (thread < gate.padded_units) sum_b1 += to_float(g1_tile[p * unit_stride + thread]);
                }
#pragma unroll
                for (int i = 0; i < held_results; ++i) {
                    const int number = warp + i * gate.warps;
                    if (number >= results) continue;
                    const int c = number / unit_tiles * step, u = number % unit_tiles * step;
#pragma unroll 1
                    for (int k = 0; k < size; k += step) {
                        Math::multiply_add(
                            sums_w2[i], Math::left_transposed(g2_tile + k * g2_stride + c, g2_stride),
                            Math::right_transposed(hidden_tile + k * unit_stride + u, unit_stride)
                        );
                        Math::multiply_add(
                            sums_w1[i], left_of_channels<Math>(x_tile, place, c, k),
                            Math::right_transposed(g1_tile + k * unit_stride + u, unit_stride)
                        );
                    }
                }
                if (part_ends) {
                    const GateRow to = gate_row(call, part);
                    if (thread < channels) to.b2[thread] = sum_b2;
                    if (thread < hidden) to.b1[thread] = sum_b1;
                    sum_b1 = sum_b2 = 0.0f;
#pragma unroll
                    for (int i = 0; i < held_results; ++i) {
                        const int number = warp + i * gate.warps;
                        if (number >= results) continue;
                        const int c = number / unit_tiles * step, u = number % unit_tiles * step;
                        store_sums(to, call, c, u, true, sums_w1[i]);
                        store_sums(to, call, c, u, false, sums_w2[i]);
                        clear(sums_w1[i]), clear(sums_w2[i]);
                    }
                }
            }
        }
        if (part_ends) part += gridDim.x;
        first = next_first;
    }
    wait_for_copies<0>();
}

constexpr GateWay fused_ways[] = {
    {true, 1, 4, 4}, {true, 1, 4, 3}, {true, 1, 4, 2}, {true, 1, 8, 2}, {true, 1, 8, 1}, {true, 1, 4, 1},
};
constexpr GateWay other_ways[] = {
    {true, 1, 4, 3},  {true, 1, 4, 2}, {false, 1, 4, 3}, {false, 1, 4, 2}, {true, 1, 8, 1},
    {false, 1, 8, 1}, {true, 1, 4, 1}, {false, 1, 4, 1}, {false, 1, 2, 1}, {false, 1, 1, 1},
};

struct Choice {
    ChannelGateBackwardPlan plan;
    BackwardLaunch main;
    ChannelGateSums sums;
    SumRows add;
};

// Of a thread, at most, as compiled for sm_80, sm_90 and sm_100 by CUDA 13.0.
template <class Math>
constexpr int64_t backward_registers = std::is_same_v<Math, Fma> ? 208 : 168;

// Fills the plan of the first kernel; false where a way does not fit.
template <class Math, int units, bool fused>
bool fill_main(const ChannelGateBackward& call, const GateWay& way, const Device& device, Choice& choice) {
    using Sizes = BackwardSizes<Math, units>;
    const Map& map = call.gate.map;
    const int64_t blocks = ceil_div(map.channels, Sizes::channels), channels = blocks * Sizes::channels;
    const int64_t unit_blocks = ceil_div(call.gate.hidden, units), all_units = unit_blocks * units;
    const int64_t size = way.warps * step, of_images = positions_of_images(map, size);
    if (fused && (ceil_div(map.channels, step) * all_units / step > held_results * way.warps || channels > 32 * way.warps)) {
        return false;
    }
    auto& launch = choice.main;
    const bool grad_images = of_images && in_images(call.grad, map, call.grad_last);
    launch.gate = gate_launch(call.gate, way, call.grad_x, call.gate.x_last, grad_images, channels, all_units, Math::pad);
    const auto grad = tile_sizes(map, call.grad_last, grad_images, size, launch.gate.held, channels, Math::pad);
    const int64_t maps = launch.gate.tile_elements + grad.elements;
    const int64_t kept = size * ((fused ? 2 : 1) * (all_units + Math::pad) + (fused ? channels + Math::pad : 0));
    const int64_t pieces = (way.resident ? 2 * blocks * unit_blocks : 2) * Sizes::elements;
    const int64_t bytes = (maps + kept + pieces) * element_size(map.element) + (all_units + 2 * channels) * 4;
    if (!fits(bytes, backward_registers<Math>, way, device)) return false;

    launch.call = call;
    launch.grad_stride = grad.stride;
    launch.grad_image = grad.image;
    launch.grad_elements = grad.elements;
    launch.grad_access = grad_images ? 16 : map_access(call.grad, map, call.grad_last);
    launch.g2_access = map_access(nullptr, map, true);
    launch.part = fused && call.weights ? positions_of_part(map, call.gate.hidden, launch.gate.held) : launch.gate.held;
    const int64_t parts = ceil_div(map.batch * map.positions, launch.part);
    const int64_t grid = std::min(parts, way.blocks * device.multiprocessors);
    choice.plan.main = {"channel_gate_backward", grid, 1, 1, way.warps * 32, bytes};
    choice.plan.rows = fused && call.weights ? parts : 0;
    choice.plan.x_bytes = launch.gate.x_access;
    choice.plan.grad_bytes = launch.grad_access;
    choice.plan.grad_x_bytes = launch.gate.out_access;
    return true;
}

void fill_sums(const ChannelGateBackward& call, int64_t units, const Device& device, Choice& choice) {
    choice.sums = {call, units};
    choice.plan.sums = plan_channel_gate_sums(choice.sums, device);
    choice.plan.rows = choice.plan.sums.grid_x;
    choice.plan.units = units;
}

void fill_add(const ChannelGateBackward& call, Choice& choice) {
    const int64_t weights = call.gate.hidden * call.gate.map.channels;
    const int64_t lengths[] = {weights, call.gate.hidden, weights, call.gate.map.channels};
    auto& add = choice.add;
    add.partial = call.partial;
    add.rows = choice.plan.rows;
    for (int i = 0; i < 4; ++i) {
        add.width += lengths[i];
        add.pieces[i] = {add.width, call.gradients[i]};
    }
    choice.plan.add = plan_sum_rows(add);
}

// Calls function(choice, the first kernel).
template <class Function>
void with_choice(const ChannelGateBackward& call, const Device& device, const Function& function) {
    with_units(call.gate.map.element, call.gate.tf32, [&](auto math) {
        using Math = decltype(math);
        for (const auto& way : fused_ways) {
            Choice choice{};
            if (call.gate.hidden > largest_hidden_of_few_units) break;
            if (!fill_main<Math, few_units, true>(call, way, device, choice)) continue;
            if (call.weights) fill_add(call, choice);
            return function(choice, channel_gate_backward<Math, few_units, true>);
        }
        for (const auto& way : other_ways) {
            Choice choice{};
            if (!fill_main<Math, many_units, false>(call, way, device, choice)) continue;
            if (call.weights) fill_sums(call, choice.main.gate.padded_units, device, choice), fill_add(call, choice);
            return function(choice, channel_gate_backward<Math, many_units, false>);
        }
        refuse_channels(call.gate, device);
    });
}

}  // namespace

ChannelGateBackwardPlan plan_channel_gate_backward(const ChannelGateBackward& call, const Device& device) {
    ChannelGateBackwardPlan plan{};
    with_choice(call, device, [&](const Choice& choice, auto) { plan = choice.plan; });
    return plan;
}

void channel_gate_backward(const ChannelGateBackward& call, const Device& device, Stream stream) {
    with_choice(call, device, [&](const Choice& choice, auto kernel) {
        if (call.rows != choice.plan.rows || call.units != choice.plan.units) {
            throw std::invalid_argument("channel_gate_backward: the workspace is that of another plan");
        }
        launch(kernel, choice.plan.main, stream, choice.main);
        if (choice.plan.sums.threads) channel_gate_sums(choice.sums, device, stream);
        if (choice.plan.add.threads) sum_rows(choice.add, stream);
    });
}

}  // namespace gcsa_ext::cuda
