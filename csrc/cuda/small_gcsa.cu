// The whole attention in one launch, with given statistics:
//
//   z = channel_gate(x),   hidden = relu(norm1(conv1(z))),   out = z * sigmoid(norm2(conv2(hidden)))
//
// The work is spread over all multiprocessors in phases. The results of one phase are read by other blocks in the next,
// through the L2 cache, after a barrier of all blocks (hence a cooperative launch):
//
//   gate          a block has 16 positions and all channels
//   convolution   a block has 16 out channels, some of the in channels and up to 512 positions, whose sums go to `partial`
//   normalise     adds the partial sums in their order
//
// and the last two once more. Maps between phases are (blocks of 16 channels, positions, 16), so that a convolution reads 16
// in channels as one piece. It is copied to shared memory together with the weights of 16 out channels x 16 in channels x
// k x k. A warp keeps the sums of up to four times 16 positions, and a product takes the 16 in channels at one tap. Where a
// tap is beside the map, the row of its operand is a row of zeros.
#include "channel_gate_device.h"
#include "small_gcsa.h"
#include "vector_device.h"

namespace gcsa_ext::cuda {

namespace {

constexpr int warps = 8, threads = 32 * warps;
constexpr int block = step;             // of channels
constexpr int tiles_per_warp = 4;       // of 16 positions
constexpr int work_items = 128;         // of a convolution, about: as many as multiprocessors, the same on any GPU
constexpr int largest_gate_rows = 128;  // rows of w1 in shared memory, at most; of w2 four times as many

// Sizes in elements, and where things are in shared memory.
struct Launch {
    SmallGcsa call;
    int positions;      // N * P
    int chunk;          // positions of a block in a convolution, a multiple of 128
    int splits[2];      // parts of the in channels
    int buffers;        // of a convolution's operands: while one is worked on, the next is copied
    int map_rows;       // of a convolution's map in shared memory
    int weight_stride;  // of a row of its weights
    int gate_rows[2];   // of w1 and of w2 at a time
    int coefficients;   // channels that have a slope and an intercept in shared memory
    double images_per_position;
    bool w1_aligned, w2_aligned, convolution_aligned[2];
};

__device__ int blocks_of(int channels) { return (channels + block - 1) / block; }

// A tile of the gate's phase in shared memory: 16 positions, rows of x and of the hidden units.
template <class T>
struct GateTile {
    T *x, *hidden, *weights;
    int x_stride, hidden_stride;
    int padded_channels, padded_hidden;
    int first, left_over;  // its first position, and how many positions there are from it on
};

// Loads x, padded with zeros. The lanes of a warp run along what is contiguous in memory.
template <class T>
__device__ inline void load_gate_tile(const Launch& launch, const GateTile<T>& tile, const TilePlace& place) {
    const ChannelGate& gate = launch.call.gate;
    const int channels = int(gate.map.channels);
    // Contiguous: a thread always has the same position.
    const int position = int(threadIdx.x) % step;
    const int64_t begin = position < tile.left_over ? first_channel(gate.map, place, tile.first + position) : 0;
    for (int i = int(threadIdx.x); i < step * tile.padded_channels; i += threads) {
        const int p = gate.x_last ? i / tile.padded_channels : position;
        const int c = gate.x_last ? i % tile.padded_channels : i / step;
        T value = from_float<T>(0.0f);
        if (p < tile.left_over && c < channels) {
            const int64_t element = gate.x_last ? int64_t(tile.first + p) * channels + c : begin + c * gate.map.positions;
            value = static_cast<const T*>(gate.x)[element];
        }
        tile.x[p * tile.x_stride + c] = value;
    }
}

// What becomes of one sum of a layer: hidden unit `out` of position p, or channel `out` of z.
template <class T>
__device__ inline void finish_gate_sum(
    const Launch& launch, const GateTile<T>& tile, int layer, int p, int out, float value
) {
    const ChannelGate& gate = launch.call.gate;
    const int channels = int(gate.map.channels), hidden = int(gate.hidden), groups = int(gate.groups);
    if (layer == 0) {
        // An infinite x times the zeros of units that do not exist would be NaN.
        const bool inside = out < hidden;
        value = inside ? relu_of(value + to_float(static_cast<const T*>(gate.b1)[out])) : 0.0f;
        tile.hidden[p * tile.hidden_stride + out] = from_float<T>(value);
    } else if (p < tile.left_over) {
        const bool inside = out < channels;
        value += inside ? to_float(static_cast<const T*>(gate.b2)[out]) : 0.0f;
        const float a = gate.sigmoid ? sigmoid(value) : value;
        const int to = inside ? shuffled(out, channels, groups) : out;
        const float gated = inside ? to_float(tile.x[p * tile.x_stride + out]) * a : 0.0f;
        static_cast<T*>(launch.call.z)[(int64_t(to / block) * launch.positions + tile.first + p) * block + to % block] =
            from_float<T>(gated);
    }
}

// z = shuffle(x * gate), all 16 channels of a block, those behind the last one 0.
template <class Math>
__device__ void gate_phase(const Launch& launch, unsigned char* memory) {
    using T = typename Math::Element;
    const ChannelGate& gate = launch.call.gate;
    const int channels = int(gate.map.channels), hidden = int(gate.hidden);
    GateTile<T> tile;
    tile.padded_channels = blocks_of(channels) * block;
    tile.padded_hidden = blocks_of(hidden) * block;
    tile.x_stride = tile.padded_channels + Math::pad;
    tile.hidden_stride = tile.padded_hidden + Math::pad;
    tile.x = reinterpret_cast<T*>(memory);
    tile.hidden = tile.x + step * tile.x_stride;
    tile.weights = tile.hidden + step * tile.hidden_stride;
    const Matrix<T> matrices[2] = {
        {static_cast<const T*>(gate.w1), hidden, channels, launch.w1_aligned},
        {static_cast<const T*>(gate.w2), channels, hidden, launch.w2_aligned}
    };
    const int warp = int(threadIdx.x) / 32;
    const TilePlace place{0, step, 0, gate.x_last, 0, launch.images_per_position, 0, channels, step};

    for (int first = int(blockIdx.x) * step; first < launch.positions; first += int(gridDim.x) * step) {
        tile.first = first;
        tile.left_over = launch.positions - first;
        load_gate_tile(launch, tile, place);
#pragma unroll
        for (int layer = 0; layer < 2; ++layer) {
            const int rows = launch.gate_rows[layer], all_rows = layer ? tile.padded_channels : tile.padded_hidden;
            const int columns = layer ? tile.padded_hidden : tile.padded_channels, stride = columns + Math::pad;
            const T* const left_tile = layer ? tile.hidden : tile.x;
            for (int row = 0; row < all_rows; row += rows) {
                __syncthreads();  // all threads have read the last rows
                const int count = all_rows - row < rows ? all_rows - row : rows;
                load_piece(tile.weights, stride, matrices[layer], row, 0, count, columns);
                commit_copies();
                wait_for_copies<0>();
                __syncthreads();
                for (int n = warp * step; n < count; n += warps * step) {
                    Result sums;
                    clear(sums);
#pragma unroll 2
                    for (int k = 0; k < columns; k += step) {
                        Math::multiply_add(
                            sums, Math::left(left_tile + k, stride), Math::right(tile.weights + n * stride + k, stride)
                        );
                    }
                    for_lane_elements([&](int index, int p, int column) {
                        finish_gate_sum(launch, tile, layer, p, row + n + column, sums.at[index]);
                    });
                }
            }
        }
        __syncthreads();
    }
}

// A convolution's work item in a block: positions begin ... end, some in channels, 16 out channels.
struct ConvolutionItem {
    int begin, end;
    int first_row, last_row;     // rows of the map, one per position, that they reach
    int first_block, end_block;  // of in channels
    int out_block, split;
};

// The lane's rows of the left operands.
template <class Math>
struct ConvolutionRows {
    int row[tiles_per_warp][Math::lane_rows], y[tiles_per_warp][Math::lane_rows], x[tiles_per_warp][Math::lane_rows];
};

// Copies a block of in channels of the map, and its weights behind it, to shared memory.
template <class Math>
__device__ inline void load_operands(
    const Launch& launch, const ConvolutionItem& item, const void* map, const Matrix<typename Math::Element>& weight,
    int in_block, typename Math::Element* to
) {
    using T = typename Math::Element;
    constexpr int row_stride = block + Math::pad, count = elements_per_access<T>, packs = block / count;
    const int taps = int(launch.call.kernel_size * launch.call.kernel_size);
    const T* const from = static_cast<const T*>(map) + (int64_t(in_block) * launch.positions + item.first_row) * block;
#pragma unroll 1
    for (int i = int(threadIdx.x); i < (item.last_row - item.first_row) * packs; i += threads) {
        copy_async(to + i / packs * row_stride + i % packs * count, from + i * count);
    }
    load_piece(
        to + launch.map_rows * row_stride, launch.weight_stride, weight, item.out_block * block, in_block * block * taps,
        block, block * taps
    );
}

// Adds the products of one block of in channels, whose operands begin at `map_rows` in shared memory.
template <class Math>
__device__ inline void multiply_taps(
    const Launch& launch, const ConvolutionItem& item, const ConvolutionRows<Math>& at,
    const typename Math::Element* map_rows, const typename Math::Element* zeros, Result (&sums)[tiles_per_warp]
) {
    using T = typename Math::Element;
    constexpr int row_stride = block + Math::pad;
    const int height = int(launch.call.height), width = int(launch.call.width), k = int(launch.call.kernel_size);
    const int pad = k / 2, warp = int(threadIdx.x) / 32;
    const T* const weights = map_rows + launch.map_rows * row_stride;
    for (int ky = 0; ky < k; ++ky) {
#pragma unroll 1
        for (int kx = 0; kx < k; ++kx) {
            const auto right = Math::right_strided(weights + ky * k + kx, launch.weight_stride, k * k);
            const int shift = (ky - pad) * width + kx - pad;
#pragma unroll
            for (int tile = 0; tile < tiles_per_warp; ++tile) {
                if (item.begin + (tile * warps + warp) * step >= item.end) continue;  // the same for all lanes
                const T* row[Math::lane_rows];
#pragma unroll
                for (int r = 0; r < Math::lane_rows; ++r) {
                    const bool inside = unsigned(at.y[tile][r] + ky - pad) < unsigned(height) &&
                                        unsigned(at.x[tile][r] + kx - pad) < unsigned(width);
                    row[r] = inside ? map_rows + (at.row[tile][r] + shift) * row_stride : zeros;
                }
                Math::multiply_add(sums[tile], Math::left_of_rows(row), right);
            }
        }
    }
}

// Multiplies all blocks of in channels of one work item, and writes its sums to `partial`.
template <class Math>
__device__ inline void convolve_item(
    const Launch& launch, const ConvolutionItem& item, const void* map, const Matrix<typename Math::Element>& weight,
    int out_blocks, typename Math::Element* zeros
) {
    using T = typename Math::Element;
    constexpr int row_stride = block + Math::pad;
    const int height = int(launch.call.height), width = int(launch.call.width), k = int(launch.call.kernel_size);
    const int warp = int(threadIdx.x) / 32;
    T* const operands = zeros + row_stride;
    const int buffer_elements = launch.map_rows * row_stride + block * launch.weight_stride;
    const bool ahead = launch.buffers == 2;

    ConvolutionRows<Math> at;
    Result sums[tiles_per_warp];
#pragma unroll
    for (int tile = 0; tile < tiles_per_warp; ++tile) {
        clear(sums[tile]);
#pragma unroll
        for (int r = 0; r < Math::lane_rows; ++r) {
            const int position = item.begin + (tile * warps + warp) * step + Math::lane_row(r);
            at.row[tile][r] = position - item.first_row;
            at.y[tile][r] = position < item.end ? position / width % height : -k;  // -k reaches no row of the map
            at.x[tile][r] = position % width;
        }
    }
    for (int turn = ahead ? item.first_block - 1 : item.first_block; turn < item.end_block; ++turn) {
        const int next = ahead ? turn + 1 : turn;
        __syncthreads();  // all threads have read the buffer of the next block
        if (next < item.end_block) {
            T* const to = operands + (ahead && (next - item.first_block) % 2 ? buffer_elements : 0);
            load_operands<Math>(launch, item, map, weight, next, to);
        }
        commit_copies();
        if (turn < item.first_block) continue;
        if (ahead) {
            wait_for_copies<1>();
        } else {
            wait_for_copies<0>();
        }
        __syncthreads();
        const T* const map_rows = operands + (ahead && (turn - item.first_block) % 2 ? buffer_elements : 0);
        multiply_taps<Math>(launch, item, at, map_rows, zeros, sums);
    }
    wait_for_copies<0>();
    float* const to = launch.call.partial + (int64_t(item.split) * out_blocks + item.out_block) * launch.positions * block;
#pragma unroll
    for (int tile = 0; tile < tiles_per_warp; ++tile) {
        for_lane_elements([&](int index, int m, int column) {
            const int position = item.begin + (tile * warps + warp) * step + m;
            if (position < item.end) to[int64_t(position) * block + column] = sums[tile].at[index];
        });
    }
}

// partial[split] of the convolution `number` of `map`.
template <class Math>
__device__ void convolution_phase(const Launch& launch, unsigned char* memory, int number, const void* map) {
    using T = typename Math::Element;
    const auto& call = launch.call;
    const int in_channels = int(number ? call.gate.hidden : call.gate.map.channels);
    const int out_channels = int(number ? call.gate.map.channels : call.gate.hidden);
    const int in_blocks = blocks_of(in_channels), out_blocks = blocks_of(out_channels), splits = launch.splits[number];
    const int k = int(call.kernel_size), positions = launch.positions, reach = k / 2 * (int(call.width) + 1);
    const Matrix<T> weight{
        static_cast<const T*>(call.convolutions[number].weight), out_channels, in_channels * k * k,
        launch.convolution_aligned[number]
    };
    T* const zeros = reinterpret_cast<T*>(memory);
    if (int(threadIdx.x) < block + Math::pad) zeros[threadIdx.x] = from_float<T>(0.0f);

    const int chunks = (positions + launch.chunk - 1) / launch.chunk;
    for (int i = int(blockIdx.x); i < chunks * out_blocks * splits; i += int(gridDim.x)) {
        ConvolutionItem item;
        item.split = i % splits;
        item.out_block = i / splits % out_blocks;
        item.begin = i / splits / out_blocks * launch.chunk;
        item.end = item.begin + launch.chunk < positions ? item.begin + launch.chunk : positions;
        item.first_row = item.begin > reach ? item.begin - reach : 0;
        item.last_row = item.end + reach < positions ? item.end + reach : positions;
        item.first_block = in_blocks * item.split / splits;
        item.end_block = in_blocks * (item.split + 1) / splits;
        convolve_item<Math>(launch, item, map, weight, out_blocks, zeros);
    }
    __syncthreads();
}

// norm(u) = slope * u + intercept, with the convolution's bias.
__device__ void load_coefficients(
    const SmallConvolution& convolution, int channels, int padded, float* slope, float* intercept
) {
    for (int c = int(threadIdx.x); c < padded; c += threads) {
        const bool inside = c < channels;
        const float mean = inside ? load(convolution.mean, c, 0.0f) : 0.0f,
                    var = inside ? load(convolution.var, c, 1.0f) : 1.0f;
        slope[c] = inside ? load(convolution.norm_weight, c, 1.0f) / sqrtf(var + convolution.eps) : 0.0f;
        intercept[c] =
            inside ? (load(convolution.offset, c, 0.0f) - mean) * slope[c] + load(convolution.norm_bias, c, 0.0f) : 0.0f;
        if (inside && blockIdx.x == 0) {
            convolution.used_mean[c] = mean;
            convolution.used_var[c] = var;
        }
    }
    __syncthreads();
}

// A thread adds the partial sums of 8 channels at a position.
template <class T, bool last>
__device__ void normalise_phase(const Launch& launch, float* coefficients, int number) {
    constexpr int count = 8, per_pack = elements_per_access<T>;
    const auto& call = launch.call;
    const int channels = int(number ? call.gate.map.channels : call.gate.hidden), blocks = blocks_of(channels);
    const int positions = launch.positions;
    float* const slope = coefficients;
    float* const intercept = coefficients + launch.coefficients;
    load_coefficients(call.convolutions[number], channels, blocks * block, slope, intercept);
    const TilePlace place{0, step, 0, false, 0, launch.images_per_position, 0, channels, step};

    const int work = positions * blocks * (block / count);
    for (int i = int(blockIdx.x) * threads + int(threadIdx.x); i < work; i += int(gridDim.x) * threads) {
        const int position = i % positions, channel = i / positions * count;
        const int64_t at = (int64_t(channel / block) * positions + position) * block + channel % block;
        const int64_t split_elements = int64_t(blocks) * positions * block;
        float values[count] = {};
        for (int split = 0; split < launch.splits[number]; ++split) {
#pragma unroll
            for (int e = 0; e < count; e += 4) {
                const auto pack = load_pack<float, 4>(call.partial + split * split_elements + at + e);
#pragma unroll
                for (int j = 0; j < 4; ++j) values[e + j] += pack.at[j];
            }
        }
#pragma unroll
        for (int e = 0; e < count; ++e) {
            const int c = channel + e;
            values[e] = c < channels ? values[e] * slope[c] + intercept[c] : 0.0f;
        }
        if constexpr (!last) {
#pragma unroll
            for (int e = 0; e < count; e += per_pack) {
                Pack<T, per_pack> pack;
#pragma unroll
                for (int j = 0; j < per_pack; ++j) pack.at[j] = from_float<T>(relu_of(values[e + j]));
                store_pack(static_cast<T*>(call.hidden) + at + e, pack);
            }
        } else {
            T* const out = static_cast<T*>(call.gate.out);
            const int64_t first =
                call.gate.out_last ? int64_t(position) * channels : first_channel(call.gate.map, place, position);
            const int64_t stride = call.gate.out_last ? 1 : call.gate.map.positions;
#pragma unroll
            for (int e = 0; e < count; e += per_pack) {
                const auto z = load_pack<T, per_pack>(static_cast<const T*>(call.z) + at + e);
#pragma unroll
                for (int j = 0; j < per_pack; ++j) {
                    const int c = channel + e + j;
                    if (c < channels) out[first + c * stride] = from_float<T>(to_float(z.at[j]) * sigmoid(values[e + j]));
                }
            }
        }
    }
    __syncthreads();
}

template <class GateMath, class Math>
__global__ void __launch_bounds__(threads, 1) small_gcsa_kernel(const Launch launch) {
    using T = typename Math::Element;
    float* const coefficients = reinterpret_cast<float*>(shared_memory());
    unsigned char* const memory = reinterpret_cast<unsigned char*>(coefficients + 2 * launch.coefficients);
    gate_phase<GateMath>(launch, memory);
    grid_barrier();
    convolution_phase<Math>(launch, memory, 0, launch.call.z);
    grid_barrier();
    normalise_phase<T, false>(launch, coefficients, 0);
    grid_barrier();
    convolution_phase<Math>(launch, memory, 1, launch.call.hidden);
    grid_barrier();
    normalise_phase<T, true>(launch, coefficients, 1);
}

template <class Function>
void with_both_units(const SmallGcsa& call, const Function& function) {
    const auto same = [&](auto math) { function(math, math); };
    if (call.gate.map.dtype != DType::float32) return with_units(call.gate.map.dtype, false, same);
    if (!call.convolution_tf32) return same(Fma());
    if (call.gate.tf32) return same(Mma<float>());
    function(Fma(), Mma<float>());
}

struct Choice {
    SmallGcsaPlan plan;
    Launch launch;
};

// How the positions and in channels of both convolutions are split into work items: a function of the shape, so that GPUs do
// not differ in their bits. Returns how many items the larger one has.
int64_t split_work(const SmallGcsa& call, Launch& launch, SmallGcsaPlan& plan) {
    const int64_t positions = launch.positions;
    const int64_t in_blocks[] = {ceil_div(call.gate.map.channels, block), ceil_div(call.gate.hidden, block)};
    const int64_t out_blocks[] = {in_blocks[1], in_blocks[0]};
    // Smaller chunks of positions where out channels are too few for all multiprocessors, even with all in channels split.
    constexpr int64_t smallest_chunk = warps * step;
    int64_t chunk = tiles_per_warp * smallest_chunk;
    const int64_t most_items = std::min(in_blocks[0] * out_blocks[0], in_blocks[1] * out_blocks[1]);
    while (chunk > smallest_chunk && ceil_div(positions, chunk / 2) * most_items <= work_items) chunk /= 2;
    launch.chunk = int(chunk);
    const int64_t chunks = ceil_div(positions, chunk);
    int64_t items = 0;
    for (int i = 0; i < 2; ++i) {
        const int64_t splits = std::clamp<int64_t>(work_items / (chunks * out_blocks[i]), 1, in_blocks[i]);
        launch.splits[i] = int(splits);
        items = std::max(items, splits * chunks * out_blocks[i]);
        plan.partial_elements = std::max(plan.partial_elements, splits * out_blocks[i] * positions * block);
    }
    return items;
}

// Decides how much of the operands is in shared memory at a time, and returns the bytes
// that a block needs.
template <class GateMath, class Math>
int64_t fill_shared_memory(const SmallGcsa& call, const Device& device, Launch& launch) {
    const int64_t size = element_size(call.gate.map.dtype), taps = call.kernel_size * call.kernel_size;
    const int64_t channels = ceil_div(call.gate.map.channels, block) * block;
    const int64_t hidden = ceil_div(call.gate.hidden, block) * block, reach = call.kernel_size / 2 * (call.width + 1);
    launch.map_rows = int(std::min<int64_t>(launch.positions, launch.chunk + 2 * reach));
    launch.weight_stride = int(block * taps + 8);
    launch.coefficients = int(std::max(channels, hidden));

    const int64_t coefficients = 2 * launch.coefficients * 4;
    const int64_t row_stride = block + Math::pad, buffer = launch.map_rows * row_stride + block * launch.weight_stride;
    const auto convolution_bytes = [&](int64_t buffers) { return (row_stride + buffers * buffer) * size; };
    launch.buffers = coefficients + convolution_bytes(2) <= device.shared_bytes ? 2 : 1;
    const int64_t gate_tiles = step * (channels + hidden + 2 * GateMath::pad) * size;
    const int64_t columns[] = {channels, hidden};
    int64_t bytes = convolution_bytes(launch.buffers);
    for (int i = 0; i < 2; ++i) {
        const int64_t row = (columns[i] + GateMath::pad) * size;
        const int64_t room = (device.shared_bytes - coefficients - gate_tiles) / row / block * block;
        const int64_t rows = std::min({room, largest_gate_rows * int64_t(i ? 4 : 1), columns[1 - i]});
        launch.gate_rows[i] = int(rows);
        bytes = std::max(bytes, gate_tiles + std::max<int64_t>(rows, block) * row);
    }
    return bytes + coefficients;
}

template <class GateMath, class Math>
Choice choose(const SmallGcsa& call, const Device& device) {
    const ChannelGate& gate = call.gate;
    const Map& map = gate.map;
    const int64_t positions = map.batch * map.positions, taps = call.kernel_size * call.kernel_size;
    Choice choice{};
    auto& launch = choice.launch;
    launch.call = call;
    launch.positions = int(positions);
    launch.images_per_position = 1.0 / double(map.positions);
    launch.w1_aligned = row_access(gate.w1, map.channels, map.dtype) == 16;
    launch.w2_aligned = row_access(gate.w2, gate.hidden, map.dtype) == 16;
    launch.convolution_aligned[0] = row_access(call.convolutions[0].weight, map.channels * taps, map.dtype) == 16;
    launch.convolution_aligned[1] = row_access(call.convolutions[1].weight, gate.hidden * taps, map.dtype) == 16;
    const bool many = positions >= int64_t(1) << 24;
    const int64_t items = many ? 0 : std::max(split_work(call, launch, choice.plan), ceil_div(positions, step));
    const int64_t bytes = many ? 0 : fill_shared_memory<GateMath, Math>(call, device, launch);
    if (many || bytes > device.shared_bytes) {
        throw std::invalid_argument(
            "gcsa_ext: small_gcsa: " + std::to_string(map.channels) + " channels, kernels of " +
            std::to_string(call.kernel_size) + " and maps " + std::to_string(call.width) +
            " wide do not fit in the shared memory of a block, " + std::to_string(device.shared_bytes) + " bytes"
        );
    }
    choice.plan.kernel = {"small_gcsa", std::min(items, device.multiprocessors), 1, 1, threads, bytes, true};
    choice.plan.z_elements = ceil_div(map.channels, block) * block * positions;
    choice.plan.hidden_elements = ceil_div(gate.hidden, block) * block * positions;
    return choice;
}

}  // namespace

SmallGcsaPlan plan_small_gcsa(const SmallGcsa& call, const Device& device) {
    SmallGcsaPlan plan{};
    with_both_units(call, [&](auto gate_math, auto math) {
        plan = choose<decltype(gate_math), decltype(math)>(call, device).plan;
    });
    return plan;
}

void small_gcsa(const SmallGcsa& call, const Device& device, Stream stream) {
    with_both_units(call, [&](auto gate_math, auto math) {
        using GateMath = decltype(gate_math);
        using Math = decltype(math);
        const auto choice = choose<GateMath, Math>(call, device);
        launch(small_gcsa_kernel<GateMath, Math>, choice.plan.kernel, stream, choice.launch);
    });
}

}  // namespace gcsa_ext::cuda
