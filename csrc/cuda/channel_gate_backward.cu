// The gradients of the channel gate. With g the gradient of out in the order of x's channels, and * the element-wise
// product:
//
//   g2 = g * x * a (1 - a),   g1 = (hidden > 0) * (w2' g2),   grad_x = g * a + w1' g1
//   grad_w1 = g1 x',  grad_b1 = sum g1,  grad_w2 = g2 hidden',  grad_b2 = sum g2        summed over positions
//
// hidden and a are computed again. As in the forward pass a warp has 16 positions, the rows of four products, whose operands
// lie in shared memory: g * a and then grad_x in the place of g, g2 in that of x, g1 in that of hidden.
//
// The positions are cut into parts, whose number follows from the shape, and each part has sums of its own. Where the sums
// of a part, results of 16 x 16 elements, are few enough for the registers of a block, its warps share them (`fused`), and
// g2 and g1 have shared memory of their own. Otherwise g2, hidden and g1 go through global memory to channel_gate_sums.cu.
// The sums of a part are a row of `partial`, and sum_rows adds these rows in order.
#include "channel_gate_device.h"
#include "channel_gate_sums.h"
#include "sum_rows.h"

namespace gcsa_ext::cuda {

namespace {

constexpr int held_results = 2;  // results of either matrix that a warp has in registers, at most

// All pieces of w1 for hidden, then of w2 for g2, of w2 for g1, of w1 for grad_x. Products that result in units sum over
// channels in the inner loop, the others over units.
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
    int64_t part;  // positions of a part; not fused: of a tile
};

// Copies rows of shared memory to consecutive rows of a matrix, by one warp.
template <class T>
__device__ void store_rows(T* to, int columns, const T* rows, int stride, int count) {
    constexpr int width = elements_per_access<T>;
    const int packs = columns / width;
    for (int i = lane_number(); i < count * packs; i += 32) {
        const int row = i / packs, column = i % packs * width;
        store_pack(to + row * columns + column, load_pack<T, width>(rows + row * stride + column));
    }
}

// What a block has in shared memory beside the pieces of the weights, and the 16 rows of it that a warp works on.
template <class T>
struct BackwardTiles {
    T *x, *grad, *hidden, *g1, *g2;  // g2 only if fused
    int unit_stride, g2_stride;      // between positions of hidden and g1, and of g2
    const float *bias1, *bias2;
    const int* out_channel;  // of each channel of x
    TilePlace place, grad_place;
    int row;                  // the warp's first position in the tile
    int row_count;            // how many of its positions exist
    int x_at[2], grad_at[2];  // where the two positions begin whose results the lane has

    __device__ T* hidden_rows() const { return hidden + row * unit_stride; }
    __device__ T* g1_rows() const { return g1 + row * unit_stride; }
    __device__ T* g2_rows() const { return g2 + row * g2_stride; }
    __device__ T& grad_element(int index, int channel) const {
        return grad[grad_at[index / 2 % 2] + out_channel[channel] * grad_place.between_channels()];
    }
    __device__ T& x_element(int index, int channel) const {
        return x[x_at[index / 2 % 2] + channel * place.between_channels()];
    }
};

// The tiles of a block and the rows of its warps; biases and out_channel are not set.
template <class Math, bool fused>
__device__ inline BackwardTiles<typename Math::Element> place_tiles(const BackwardLaunch& launch) {
    using T = typename Math::Element;
    const GateLaunch& gate = launch.gate;
    const int size = gate.warps * step;
    BackwardTiles<T> tiles;
    tiles.unit_stride = gate.padded_units + Math::pad;
    tiles.g2_stride = gate.padded_channels + Math::pad;
    tiles.x = reinterpret_cast<T*>(shared_memory());
    tiles.grad = tiles.x + gate.tile_elements;
    tiles.hidden = tiles.grad + launch.grad_elements;
    tiles.g1 = tiles.hidden + (fused ? size * tiles.unit_stride : 0);
    tiles.g2 = tiles.g1 + size * tiles.unit_stride;
    tiles.place = tiles.grad_place = tile_place(gate, 0);
    tiles.grad_place.last = launch.call.grad_last;
    tiles.grad_place.stride = launch.grad_stride;
    tiles.grad_place.image = launch.grad_image;
    tiles.row = int(threadIdx.x) / 32 * step;
    const int lane_row = tiles.row + lane_number() / 4;
    for (int i = 0; i < 2; ++i) {
        tiles.x_at[i] = tiles.place.at(lane_row + 8 * i);
        tiles.grad_at[i] = tiles.grad_place.at(lane_row + 8 * i);
    }
    return tiles;
}

// Copies the tiles of x and grad.
template <class T>
__device__ inline void load_maps(const BackwardLaunch& launch, const BackwardTiles<T>& tiles) {
#pragma unroll 1
    for (int number = 0; number < 2; ++number) {
        const void* const from = number ? launch.call.grad : launch.gate.call.x;
        TilePlace at = tiles.place;  // a copy: choosing one of two places would put both into memory
        if (number) at.stride = tiles.grad_place.stride, at.image = tiles.grad_place.image, at.last = tiles.grad_place.last;
        load_tile(
            number ? tiles.grad : tiles.x, static_cast<const T*>(from), launch.call.gate.map, at,
            number ? launch.grad_access : launch.gate.x_access
        );
    }
    commit_copies();
    wait_for_copies<0>();
}

// g2 for a warp's positions, and g * a in the place of g.
template <class Math, class Sizes, bool fused>
__device__ inline void compute_g2(
    const BackwardLaunch& launch, const BackwardTiles<typename Math::Element>& tiles,
    Pieces<Math, Sizes, BackwardOrder>& pieces, int& turn, bool another
) {
    using T = typename Math::Element;
    const bool with_sigmoid = launch.call.gate.sigmoid;
    const int channels = int(launch.call.gate.map.channels);
    for (int channel = 0; channel < launch.gate.padded_channels; channel += Sizes::channels) {
        Result g2[Sizes::channels / step];
#pragma unroll
        for (auto& sum : g2) clear(sum);
        for (int unit = 0; unit < launch.gate.padded_units; unit += Sizes::units) {
            const T* const w2 = pieces.take(turn++, another);
            const auto left = [&](int k) { return Math::left(tiles.hidden_rows() + unit + k, tiles.unit_stride); };
            accumulate<Math, Sizes::units, false>(g2, left, w2, Sizes::stride2);
        }
#pragma unroll
        for (int n = 0; n < Sizes::channels; n += step) {
            for_lane_elements([&](int index, int m, int column) {
                const int c = channel + n + column;
                float& value = g2[n / step].at[index];
                const float v2 = value + tiles.bias2[c];
                const float a = with_sigmoid ? sigmoid(v2) : v2;
                value = 0.0f;
                if (c >= channels || m >= tiles.row_count) return;
                T& grad = tiles.grad_element(index, c);
                T& x = tiles.x_element(index, c);
                const float g = to_float(grad);
                value = g * to_float(x) * (with_sigmoid ? a * (1.0f - a) : 1.0f);
                grad = from_float<T>(g * a);
                if (!fused) x = from_float<T>(value);
            });
            if (fused) store_result(tiles.g2_rows() + channel + n, tiles.g2_stride, g2[n / step]);
        }
    }
    __syncwarp();
}

// g1 for a warp's positions.
template <class Math, class Sizes, bool fused>
__device__ inline void compute_g1(
    const BackwardLaunch& launch, const BackwardTiles<typename Math::Element>& tiles,
    Pieces<Math, Sizes, BackwardOrder>& pieces, int& turn, bool another
) {
    for (int unit = 0; unit < launch.gate.padded_units; unit += Sizes::units) {
        Result g1[Sizes::units / step];
#pragma unroll
        for (auto& sum : g1) clear(sum);
        for (int channel = 0; channel < launch.gate.padded_channels; channel += Sizes::channels) {
            const auto* const w2 = pieces.take(turn++, another);
            const auto left = [&](int k) {
                return fused ? Math::left(tiles.g2_rows() + channel + k, tiles.g2_stride)
                             : left_of_tile<Math>(tiles.x, tiles.place, tiles.row, channel + k);
            };
            accumulate<Math, Sizes::channels, true>(g1, left, w2, Sizes::stride2);
        }
#pragma unroll
        for (int n = 0; n < Sizes::units; n += step) {
            for_lane_elements([&](int index, int m, int column) {
                const bool is_zero = to_float(tiles.hidden_rows()[m * tiles.unit_stride + unit + n + column]) == 0.0f;
                if (is_zero) g1[n / step].at[index] = 0.0f;
            });
            store_result(tiles.g1_rows() + unit + n, tiles.unit_stride, g1[n / step]);
        }
    }
    __syncwarp();
}

// grad_x for a warp's positions, in the place of g * a.
template <class Math, class Sizes>
__device__ inline void compute_grad_x(
    const BackwardLaunch& launch, const BackwardTiles<typename Math::Element>& tiles,
    Pieces<Math, Sizes, BackwardOrder>& pieces, int& turn, bool another
) {
    using T = typename Math::Element;
    const int channels = int(launch.call.gate.map.channels);
    for (int channel = 0; channel < launch.gate.padded_channels; channel += Sizes::channels) {
        Result sums[Sizes::channels / step];
#pragma unroll
        for (auto& sum : sums) clear(sum);
        for (int unit = 0; unit < launch.gate.padded_units; unit += Sizes::units) {
            const T* const w1 = pieces.take(turn++, another);
            if (!launch.call.grad_x) continue;
            const auto left = [&](int k) { return Math::left(tiles.g1_rows() + unit + k, tiles.unit_stride); };
            accumulate<Math, Sizes::units, true>(sums, left, w1, Sizes::stride1);
        }
#pragma unroll
        for (int n = 0; n < Sizes::channels; n += step) {
            for_lane_elements([&](int index, int m, int column) {
                const int c = channel + n + column;
                if (c >= channels || m >= tiles.row_count) return;
                T& grad = tiles.grad_element(index, c);
                grad = from_float<T>(to_float(grad) + sums[n / step].at[index]);
            });
        }
    }
}

// Writes grad_x and, if not fused, g2.
template <class T, bool fused>
__device__ inline void store_maps(const BackwardLaunch& launch, const BackwardTiles<T>& tiles) {
    const Map& map = launch.call.gate.map;
    const int channels = int(map.channels), groups = int(launch.call.gate.groups);
#pragma unroll 1
    for (int number = 0; number < (fused ? 1 : 2); ++number) {
        // The inverse of a shuffle of G groups is one of C / G groups; g2 is in the order of x.
        void* const to = number ? launch.call.g2_out : launch.call.grad_x;
        if (!to) continue;
        TilePlace at = tiles.place;
        if (!number) at.stride = tiles.grad_place.stride, at.image = tiles.grad_place.image, at.last = tiles.grad_place.last;
        store_shuffled(
            static_cast<T*>(to), number ? tiles.x : tiles.grad, map, at, number ? 1 : channels / groups,
            number || tiles.place.last, !number && launch.gate.out_images, number ? launch.g2_access : launch.gate.out_access
        );
    }
}

// If fused: a thread's share of the sums over a part.
template <class Math>
struct PartSums {
    using T = typename Math::Element;
    Result w1[held_results], w2[held_results];
    float b1 = 0.0f, b2 = 0.0f;

    __device__ PartSums() { clear_results(); }

    // Calls function(number of the held result, its first channel and unit) for the results of the warp.
    template <class Function>
    __device__ void for_results(const GateLaunch& gate, const Function& function) {
        const int unit_tiles = gate.padded_units / step;
        const int results = (int(gate.call.map.channels) + step - 1) / step * unit_tiles;
#pragma unroll
        for (int i = 0; i < held_results; ++i) {
            const int number = int(threadIdx.x) / 32 + i * gate.warps;
            if (number < results) function(i, number / unit_tiles * step, number % unit_tiles * step);
        }
    }
    __device__ void clear_results() {
#pragma unroll
        for (int i = 0; i < held_results; ++i) clear(w1[i]), clear(w2[i]);
    }

    __device__ void add_tile(const GateLaunch& gate, const BackwardTiles<T>& tiles) {
        const int thread = int(threadIdx.x), size = gate.warps * step;
        for (int p = 0; p < tiles.place.count; ++p) {
            if (thread < gate.padded_channels) b2 += to_float(tiles.g2[p * tiles.g2_stride + thread]);
            if (thread < gate.padded_units) b1 += to_float(tiles.g1[p * tiles.unit_stride + thread]);
        }
        for_results(gate, [&](int i, int c, int u) {
#pragma unroll 1
            for (int k = 0; k < size; k += step) {
                Math::multiply_add(
                    w2[i], Math::left_transposed(tiles.g2 + k * tiles.g2_stride + c, tiles.g2_stride),
                    Math::right_transposed(tiles.hidden + k * tiles.unit_stride + u, tiles.unit_stride)
                );
                Math::multiply_add(
                    w1[i], left_of_channels<Math>(tiles.x, tiles.place, c, k),
                    Math::right_transposed(tiles.g1 + k * tiles.unit_stride + u, tiles.unit_stride)
                );
            }
        });
    }

    // Writes the sums to a row of `partial` and clears them.
    __device__ void store_part(const BackwardLaunch& launch, int64_t part) {
        const auto& call = launch.call;
        const GateRow to = gate_row(call, part);
        const int thread = int(threadIdx.x);
        if (thread < int(call.gate.map.channels)) to.b2[thread] = b2;
        if (thread < int(call.gate.hidden)) to.b1[thread] = b1;
        b1 = b2 = 0.0f;
        for_results(launch.gate, [&](int i, int c, int u) {
            store_sums(to, call, c, u, true, w1[i]);
            store_sums(to, call, c, u, false, w2[i]);
        });
        clear_results();
    }
};

template <class Math, int units, bool fused>
__global__ void __launch_bounds__(32 * largest_gate_warps, 1) channel_gate_backward(const BackwardLaunch launch) {
    using T = typename Math::Element;
    using Sizes = BackwardSizes<Math, units>;
    const auto& gate = launch.gate;
    const auto& call = launch.call;
    const Map& map = call.gate.map;
    const int channels = int(map.channels), hidden = int(call.gate.hidden);

    BackwardTiles<T> tiles = place_tiles<Math, fused>(launch);
    Pieces<Math, Sizes, BackwardOrder> pieces{
        {static_cast<const T*>(call.gate.w1), hidden, channels, gate.w1_aligned},
        {static_cast<const T*>(call.gate.w2), channels, hidden, gate.w2_aligned},
        tiles.g2 + (fused ? gate.warps * step * tiles.g2_stride : 0),
        gate.padded_channels / Sizes::channels,
        gate.padded_units / Sizes::units,
        gate.resident
    };
    float* const bias1 = reinterpret_cast<float*>(pieces.shared + pieces.shared_elements());
    float* const bias2 = bias1 + gate.padded_units;
    int* const out_channel = reinterpret_cast<int*>(bias2 + gate.padded_channels);
    tiles.bias1 = bias1;
    tiles.bias2 = bias2;
    tiles.out_channel = out_channel;

    pieces.begin();
    load_vector<T>(bias1, call.gate.b1, hidden, gate.padded_units);
    load_vector<T>(bias2, call.gate.b2, channels, gate.padded_channels);
    for (int c = int(threadIdx.x); c < gate.padded_channels; c += int(blockDim.x)) {
        out_channel[c] = c < channels ? shuffled(c, channels, int(call.gate.groups)) : 0;
    }
    clear_channels_behind(tiles.x, tiles.place, gate.padded_channels);

    PartSums<Math> sums;
    const int64_t positions = map.batch * map.positions;
    int64_t part = blockIdx.x;
    for (int64_t first = part * launch.part; first < positions;) {
        const int64_t end_of_part = (part + 1) * launch.part, next = first + gate.held;
        const bool part_ends = next >= end_of_part || next >= positions;
        const int64_t next_first = part_ends ? (part + gridDim.x) * launch.part : next;
        const bool another = next_first < positions;
        tiles.place.first = tiles.grad_place.first = first;
        tiles.place.count = tiles.grad_place.count = at_most(positions - first, gate.held);
        tiles.row_count = tiles.place.count - tiles.row < step ? tiles.place.count - tiles.row : step;
        __syncthreads();  // all threads have read the last tile
        load_maps(launch, tiles);
        __syncthreads();

        int turn = 0;
        const int64_t row_of_units = (first + tiles.row) * gate.padded_units;
        compute_hidden(
            tiles.hidden_rows(), tiles.unit_stride, tiles.x, tiles.place, tiles.row, pieces, turn, another, bias1, hidden
        );
        if (!fused && call.hidden_out) {
            T* const to = static_cast<T*>(call.hidden_out) + row_of_units;
            store_rows(to, gate.padded_units, tiles.hidden_rows(), tiles.unit_stride, tiles.row_count);
        }
        compute_g2<Math, Sizes, fused>(launch, tiles, pieces, turn, another);
        compute_g1<Math, Sizes, fused>(launch, tiles, pieces, turn, another);
        if (!fused && call.g1_out) {
            T* const to = static_cast<T*>(call.g1_out) + row_of_units;
            store_rows(to, gate.padded_units, tiles.g1_rows(), tiles.unit_stride, tiles.row_count);
        }
        compute_grad_x<Math, Sizes>(launch, tiles, pieces, turn, another);
        __syncthreads();
        store_maps<T, fused>(launch, tiles);
        if (fused && call.partial) {
            sums.add_tile(gate, tiles);
            if (part_ends) sums.store_part(launch, part);
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

// Registers of a thread, at most, as compiled for sm_80, sm_90 and sm_100 by CUDA 13.0.
template <class Math>
constexpr int64_t backward_registers = std::is_same_v<Math, Fma> ? 208 : 168;

// Fills the plan of the first kernel; false where this way does not fit.
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
    const int64_t bytes = (maps + kept + pieces) * element_size(map.dtype) + (all_units + 2 * channels) * 4;
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
    with_units(call.gate.map.dtype, call.gate.tf32, [&](auto math) {
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
