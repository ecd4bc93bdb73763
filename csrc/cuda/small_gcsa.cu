// The whole attention in one launch, with given statistics:
//
//   z = channel_gate(x),   hidden = relu(norm1(conv1(z))),   out = z * sigmoid(norm2(conv2(hidden)))
//
// The work is spread over all multiprocessors, and what one phase has made is read by other blocks in the next, through the
// L2 cache, behind a barrier of all blocks (hence a cooperative launch):
//
//   gate          a block has 16 positions and all channels
//   convolution   a block has 16 out channels, some of the in channels and up to 512 positions, whose sums go to `partial`
//   normalise     adds the partial sums in their order
//
// and the last two once more. Inside, maps are (blocks of 16 channels, positions, 16), so that what a convolution reads of
// 16 in channels is one piece. It is copied to shared memory with the weights as they lie, 16 out channels x 16 in channels
// x k x k; a warp keeps the sums of up to four times 16 positions, and a product takes the 16 in channels at one tap (the
// rows of a tap beside the map are a row of zeros).
//
// Predicted for bfloat16 on an H200, 8 x 512 x 7 x 7: both weights are 12.8 MB, 3 us from memory and less from the L2 cache;
// each multiprocessor has 9500 products of 16 x 8 x 16 and reads their left operands, 512 bytes for two products, from
// shared memory at 128 bytes per clock: 11 us; gathering the weights' operands, as much again; gate 4 us, partial sums 2 x 3
// us, four barriers 6 us. That makes about 40 us. Plain PyTorch launches 15 kernels.
#include "channel_gate_device.h"
#include "small_gcsa.h"
#include "vector_device.h"

namespace gcsa_ext::cuda {

namespace {

constexpr int warps = 8, threads = 32 * warps;
constexpr int block = step;             // of channels
constexpr int tiles_per_warp = 4;       // of 16 positions
constexpr int work_items = 128;         // of a convolution, about: as many as multiprocessors, but the same on any GPU
constexpr int largest_gate_rows = 128;  // of a matrix of the gate's that are in shared memory

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
    int coefficients;   // channels with a slope and an intercept
    double images_per_position;
    bool w1_aligned, w2_aligned, convolution_aligned[2];
};

__device__ int blocks_of(int channels) { return (channels + block - 1) / block; }

// z = shuffle(x * gate), all 16 channels of a block, those behind the last one 0.
template <class Math>
__device__ void gate_phase(const Launch& launch, unsigned char* memory) {
    using T = typename Math::Element;
    const ChannelGate& gate = launch.call.gate;
    const int channels = int(gate.map.channels), hidden = int(gate.hidden), groups = int(gate.groups);
    const int padded_channels = blocks_of(channels) * block, padded_hidden = blocks_of(hidden) * block;
    const int x_stride = padded_channels + Math::pad, hidden_stride = padded_hidden + Math::pad;
    T* const x_tile = reinterpret_cast<T*>(memory);
    T* const hidden_tile = x_tile + step * x_stride;
    T* const weights = hidden_tile + step * hidden_stride;
    const Matrix<T> matrices[2] = {
        {static_cast<const T*>(gate.w1), hidden, channels, launch.w1_aligned},
        {static_cast<const T*>(gate.w2), channels, hidden, launch.w2_aligned}
    };
    T* const z = static_cast<T*>(launch.call.z);
    const int warp = int(threadIdx.x) / 32;
    TilePlace place{0, step, 0, gate.x_last, 0, launch.images_per_position, 0, channels, step};

    for (int first = int(blockIdx.x) * step; first < launch.positions; first += int(gridDim.x) * step) {
        const int left_over = launch.positions - first;
        // Contiguous: a thread always has the same position.
        const int own = int(threadIdx.x) % step;
        const int64_t own_first = own < left_over ? first_channel(gate.map, place, first + own) : 0;
        for (int i = int(threadIdx.x); i < step * padded_channels; i += threads) {
            const int p = gate.x_last ? i / padded_channels : own, c = gate.x_last ? i % padded_channels : i / step;
            T value = from_float<T>(0.0f);
            if (p < left_over && c < channels) {
                const int64_t element = gate.x_last ? int64_t(first + p) * channels + c : own_first + c * gate.map.positions;
                value = static_cast<const T*>(gate.x)[element];
            }
            x_tile[p * x_stride + c] = value;
        }
#pragma unroll
        for (int layer = 0; layer < 2; ++layer) {
            const int rows = launch.gate_rows[layer], all_rows = layer ? padded_channels : padded_hidden;
            const int columns = layer ? padded_hidden : padded_channels, stride = columns + Math::pad;
            const T* const left_tile = layer ? hidden_tile : x_tile;
            for (int row = 0; row < all_rows; row += rows) {
                __syncthreads();  // nobody reads the last rows any more
                const int count = all_rows - row < rows ? all_rows - row : rows;
                load_piece(weights, stride, matrices[layer], row, 0, count, columns);
                commit_copies();
                wait_for_copies<0>();
                __syncthreads();
                for (int n = warp * step; n < count; n += warps * step) {
                    Result sums;
                    clear(sums);
#pragma unroll 2
                    for (int k = 0; k < columns; k += step) {
                        Math::multiply_add(
                            sums, Math::left(left_tile + k, stride), Math::right(weights + n * stride + k, stride)
                        );
                    }
                    for_own_elements([&](int index, int p, int column) {
                        const int out = row + n + column;
                        float value = sums.at[index];
                        if (layer == 0) {
                            // 0 times an infinite x would make a NaN of units that do not exist.
                            const bool inside = out < hidden;
                            value = inside ? relu_of(value + to_float(static_cast<const T*>(gate.b1)[out])) : 0.0f;
                            hidden_tile[p * hidden_stride + out] = from_float<T>(value);
                        } else if (p < left_over) {
                            const bool inside = out < channels;
                            value += inside ? to_float(static_cast<const T*>(gate.b2)[out]) : 0.0f;
                            const float a = gate.sigmoid ? sigmoid(value) : value;
                            const int to = inside ? shuffled(out, channels, groups) : out;
                            const float gated = inside ? to_float(x_tile[p * x_stride + out]) * a : 0.0f;
                            z[(int64_t(to / block) * launch.positions + first + p) * block + to % block] =
                                from_float<T>(gated);
                        }
                    });
                }
            }
        }
        __syncthreads();
    }
}

// partial[split] of the convolution `number` of `map`.
template <class Math>
__device__ void convolution_phase(const Launch& launch, unsigned char* memory, int number, const void* map) {
    using T = typename Math::Element;
    constexpr int row_stride = block + Math::pad;
    const auto& call = launch.call;
    const int in_channels = int(number ? call.gate.hidden : call.gate.map.channels);
    const int out_channels = int(number ? call.gate.map.channels : call.gate.hidden);
    const int in_blocks = blocks_of(in_channels), out_blocks = blocks_of(out_channels), splits = launch.splits[number];
    const int height = int(call.height), width = int(call.width), k = int(call.kernel_size), pad = k / 2, taps = k * k;
    const int positions = launch.positions, reach = pad * (width + 1);
    const Matrix<T> weight{
        static_cast<const T*>(call.convolutions[number].weight), out_channels, in_channels * taps,
        launch.convolution_aligned[number]
    };
    T* const zeros = reinterpret_cast<T*>(memory);
    T* const operands = zeros + row_stride;
    const int map_elements = launch.map_rows * row_stride, buffer_elements = map_elements + block * launch.weight_stride;
    const int warp = int(threadIdx.x) / 32;
    const bool ahead = launch.buffers == 2;
    if (int(threadIdx.x) < row_stride) zeros[threadIdx.x] = from_float<T>(0.0f);

    const int chunks = (positions + launch.chunk - 1) / launch.chunk;
    for (int item = int(blockIdx.x); item < chunks * out_blocks * splits; item += int(gridDim.x)) {
        const int split = item % splits, out_block = item / splits % out_blocks,
                  begin = item / splits / out_blocks * launch.chunk;
        const int end = begin + launch.chunk < positions ? begin + launch.chunk : positions;
        const int first_row = begin > reach ? begin - reach : 0;
        const int last_row = end + reach < positions ? end + reach : positions;
        const int first_block = in_blocks * split / splits, end_block = in_blocks * (split + 1) / splits;

        // Of the rows of products that the lane addresses.
        int row[tiles_per_warp][Math::own_rows], y[tiles_per_warp][Math::own_rows], x[tiles_per_warp][Math::own_rows];
        Result sums[tiles_per_warp];
#pragma unroll
        for (int tile = 0; tile < tiles_per_warp; ++tile) {
            clear(sums[tile]);
#pragma unroll
            for (int r = 0; r < Math::own_rows; ++r) {
                const int position = begin + (tile * warps + warp) * step + Math::own_row(r);
                row[tile][r] = position - first_row;
                y[tile][r] = position < end ? position / width % height : -k;  // the latter reaches no row of the map
                x[tile][r] = position % width;
            }
        }

        for (int turn = ahead ? first_block - 1 : first_block; turn < end_block; ++turn) {
            const int next = ahead ? turn + 1 : turn;
            __syncthreads();  // nobody reads any more where the next block is copied to
            if (next < end_block) {
                T* const to = operands + (ahead && (next - first_block) % 2 ? buffer_elements : 0);
                constexpr int count = elements_per_access<T>, packs = block / count;
                const T* const from = static_cast<const T*>(map) + (int64_t(next) * positions + first_row) * block;
#pragma unroll 1
                for (int i = int(threadIdx.x); i < (last_row - first_row) * packs; i += threads) {
                    copy_async(to + i / packs * row_stride + i % packs * count, from + i * count);
                }
                load_piece(
                    to + map_elements, launch.weight_stride, weight, out_block * block, next * block * taps, block,
                    block * taps
                );
            }
            commit_copies();
            if (turn < first_block) continue;
            if (ahead) {
                wait_for_copies<1>();
            } else {
                wait_for_copies<0>();
            }
            __syncthreads();
            const T* const rows = operands + (ahead && (turn - first_block) % 2 ? buffer_elements : 0);
            const T* const weights = rows + map_elements;
            for (int ky = 0; ky < k; ++ky) {
#pragma unroll 1
                for (int kx = 0; kx < k; ++kx) {
                    const auto right = Math::right_strided(weights + ky * k + kx, launch.weight_stride, taps);
                    const int shift = (ky - pad) * width + kx - pad;
#pragma unroll
                    for (int tile = 0; tile < tiles_per_warp; ++tile) {
                        if (begin + (tile * warps + warp) * step >= end) continue;  // the same for all lanes
                        const T* own[Math::own_rows];
#pragma unroll
                        for (int r = 0; r < Math::own_rows; ++r) {
                            const bool inside = unsigned(y[tile][r] + ky - pad) < unsigned(height) &&
                                                unsigned(x[tile][r] + kx - pad) < unsigned(width);
                            own[r] = inside ? rows + (row[tile][r] + shift) * row_stride : zeros;
                        }
                        Math::multiply_add(sums[tile], Math::left_of_rows(own), right);
                    }
                }
            }
        }
        wait_for_copies<0>();
        float* const to = call.partial + (int64_t(split) * out_blocks + out_block) * positions * block;
#pragma unroll
        for (int tile = 0; tile < tiles_per_warp; ++tile) {
            for_own_elements([&](int index, int m, int column) {
                const int position = begin + (tile * warps + warp) * step + m;
                if (position < end) to[int64_t(position) * block + column] = sums[tile].at[index];
            });
        }
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
    if (call.gate.map.element != Element::float32) return with_units(call.gate.map.element, false, same);
    if (!call.convolution_tf32) return same(Fma());
    if (call.gate.tf32) return same(Mma<float>());
    function(Fma(), Mma<float>());
}

struct Choice {
    SmallGcsaPlan plan;
    Launch launch;
};

template <class GateMath, class Math>
Choice choose(const SmallGcsa& call, const Device& device) {
    const ChannelGate& gate = call.gate;
    const Map& map = gate.map;
    const int64_t size = element_size(map.element), positions = map.batch * map.positions;
    const int64_t in_blocks[] = {ceil_div(map.channels, block), ceil_div(gate.hidden, block)};
    const int64_t out_blocks[] = {in_blocks[1], in_blocks[0]};
    const int64_t channels = in_blocks[0] * block, hidden = in_blocks[1] * block;
    const int64_t taps = call.kernel_size * call.kernel_size, reach = call.kernel_size / 2 * (call.width + 1);

    Choice choice{};
    auto& launch = choice.launch;
    launch.call = call;
    launch.positions = int(positions);
    launch.images_per_position = 1.0 / double(map.positions);
    launch.coefficients = int(std::max(channels, hidden));
    launch.w1_aligned = row_access(gate.w1, map.channels, map.element) == 16;
    launch.w2_aligned = row_access(gate.w2, gate.hidden, map.element) == 16;
    launch.convolution_aligned[0] = row_access(call.convolutions[0].weight, map.channels * taps, map.element) == 16;
    launch.convolution_aligned[1] = row_access(call.convolutions[1].weight, gate.hidden * taps, map.element) == 16;

    // Smaller chunks of positions where out channels are too few for all multiprocessors, even with all in channels split.
    // How sums are split is a function of the shape, so that GPUs do not differ in their bits.
    constexpr int64_t smallest_chunk = warps * step;
    int64_t chunk = tiles_per_warp * smallest_chunk;
    const int64_t most_items = std::min(in_blocks[0] * out_blocks[0], in_blocks[1] * out_blocks[1]);
    while (chunk > smallest_chunk && ceil_div(positions, chunk / 2) * most_items <= work_items) chunk /= 2;
    const int64_t chunks = ceil_div(positions, chunk);
    int64_t items = ceil_div(positions, step);
    int64_t partial = 0;
    for (int i = 0; i < 2; ++i) {
        const int64_t splits = std::clamp<int64_t>(work_items / (chunks * out_blocks[i]), 1, in_blocks[i]);
        launch.splits[i] = int(splits);
        items = std::max(items, splits * chunks * out_blocks[i]);
        partial = std::max(partial, splits * out_blocks[i] * positions * block);
    }
    launch.chunk = int(chunk);
    launch.map_rows = int(std::min(positions, chunk + 2 * reach));
    launch.weight_stride = int(block * taps + 8);

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
    bytes += coefficients;
    if (bytes > device.shared_bytes || positions >= int64_t(1) << 24) {
        throw std::invalid_argument(
            "gcsa_ext: small_gcsa: " + std::to_string(map.channels) + " channels, kernels of " +
            std::to_string(call.kernel_size) + " and maps " + std::to_string(call.width) +
            " wide do not fit in the shared memory of a block, " + std::to_string(device.shared_bytes) + " bytes"
        );
    }
    choice.plan = {
        {"small_gcsa", std::min(items, device.multiprocessors), 1, 1, threads, bytes, true},
        channels * positions,
        hidden * positions,
        partial
    };
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
