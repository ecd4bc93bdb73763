// The gradients of norm_forward, or the sums that they need, or both in one pass; see norm.h.
//
// With batch statistics the gradient of u needs sums over all positions, hence two passes: the first fills `partial`, the
// second reads `sums`. Otherwise one pass does all. The sums of a block's threads are added by shuffles and in shared
// memory, those of blocks by sum_rows, each in a fixed order.
#include "norm_device.h"

namespace gcsa_ext::cuda {

namespace {

constexpr int at_a_time = 2;  // three maps are read

struct Parameters {
    NormBackward call;
    Share share;
};

template <int channels>
struct Sums {
    float gvx[channels] = {}, gv[channels] = {};
};

// The state of one thread: the normalisation of its channels and sums. `second`: the sums over the batch are known and not
// made again; a template argument, since the two passes need different registers.
template <class T, int width, int channels, bool ragged, bool second>
struct Backward {
    const NormBackward& call;
    Normalisation<channels> norm;
    float mean_gvx[channels], mean_gv[channels];
    Sums<channels> sums;

    __device__ Backward(const NormBackward& all, int64_t first) : call(all), norm(all.forward, first) {
        const auto& map = call.forward.map;
        const float count = float(map.batch * map.positions);
#pragma unroll
        for (int i = 0; i < channels; ++i) {
            const bool known = second && first < map.channels;
            mean_gvx[i] = known ? call.sums[first + i] / count : 0.0f;
            mean_gv[i] = known ? call.sums[map.channels + first + i] / count : 0.0f;
        }
    }

    __device__ void operator()(Pack<T, width>& g, Pack<T, width>& u, Pack<T, width>& z, const Access& access) {
        const bool gated = call.forward.z != nullptr;
#pragma unroll
        for (int e = 0; e < width; ++e) {
            const int i = channels > 1 ? e : 0;
            const float xhat = norm.xhat(to_float(u.at[e]), i), grad = to_float(g.at[e]);
            const float v = xhat * norm.scale[i] + norm.at_zero[i];
            float gv;
            if (gated) {
                const float s = sigmoid(v);
                gv = grad * to_float(z.at[e]) * (s * (1.0f - s));
                z.at[e] = from_float<T>(grad * s);
            } else {
                gv = v <= 0.0f ? 0.0f : grad;
            }
            if constexpr (second) {
                gv = gv - mean_gv[i] - xhat * mean_gvx[i];
            } else if (!ragged || (e >= access.begin && e < access.end)) {
                sums.gvx[i] += gv * xhat;
                sums.gv[i] += gv;
            }
            u.at[e] = from_float<T>(gv * norm.rstd[i] * norm.scale[i]);
        }
        if (call.grad_z) store_values<width, ragged>(static_cast<T*>(call.grad_z), access, z);
        if (call.grad_u) store_values<width, ragged>(static_cast<T*>(call.grad_u), access, u);
    }
};

// Adds the sums of a block's threads into row blockIdx.y of `partial`. It overwrites the shared memory.
template <int channels>
__device__ void store_sums(const Sums<channels>& sums, const NormBackward& call, const Share& share, int64_t channel) {
    auto* const of_warps = reinterpret_cast<float*>(shared_memory());  // [warps][2][channel_lanes * channels]
    const int lanes = share.channel_lanes, block_channels = lanes * channels;
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, warps = int(blockDim.x) / 32;
#pragma unroll
    for (int i = 0; i < channels; ++i) {
        float gvx = sums.gvx[i], gv = sums.gv[i];
        for (int distance = 16; distance >= lanes; distance /= 2) {
            gvx += __shfl_xor_sync(0xffffffffu, gvx, distance);
            gv += __shfl_xor_sync(0xffffffffu, gv, distance);
        }
        if (lane < lanes) {
            of_warps[2 * warp * block_channels + lane * channels + i] = gvx;
            of_warps[(2 * warp + 1) * block_channels + lane * channels + i] = gv;
        }
    }
    __syncthreads();
    const int64_t first = channel - int(threadIdx.x) % lanes * channels;
    const int64_t all_channels = call.forward.map.channels;
    float* const row = call.partial + int64_t(blockIdx.y) * 2 * all_channels;
    for (int i = int(threadIdx.x); i < 2 * block_channels; i += int(blockDim.x)) {
        const int which = i / block_channels;
        const int64_t c = first + i - which * block_channels;
        if (c >= all_channels) continue;
        float sum = 0.0f;
        for (int w = 0; w < warps; ++w) sum += of_warps[2 * w * block_channels + i];
        row[which * all_channels + c] = sum;
    }
}

template <class T, int width, bool last, bool ragged, bool second>
__global__ void __launch_bounds__(norm_threads, 2) backward(const Parameters p) {
    constexpr int channels = last ? width : 1;
    const auto& forward = p.call.forward;
    const auto& map = forward.map;
    const auto *const u = static_cast<const T*>(forward.u), *const z = static_cast<const T*>(forward.z);
    const auto* const grad = static_cast<const T*>(p.call.grad);
    const int64_t channel = first_channel<width, last>(p.share);
    Backward<T, width, channels, ragged, second> compute(p.call, channel);
    Walk<width, last, ragged> walk(p.share, map, channel);
    while (walk.inside()) {
        Pack<T, width> gs[at_a_time], us[at_a_time], zs[at_a_time];
        Access accesses[at_a_time];
#pragma unroll
        for (int i = 0; i < at_a_time; ++i) {
            accesses[i] = walk.access(map);
            if (accesses[i].end > accesses[i].begin) {
                gs[i] = load_values<width, ragged>(grad, map, accesses[i]);
                us[i] = load_values<width, ragged>(u, map, accesses[i]);
                if (z) zs[i] = load_values<width, ragged>(z, map, accesses[i]);
            }
            walk.step(p.share, map);
        }
#pragma unroll
        for (int i = 0; i < at_a_time; ++i) {
            if (accesses[i].end > accesses[i].begin) compute(gs[i], us[i], zs[i], accesses[i]);
        }
    }
    if (!second && p.call.partial) store_sums(compute.sums, p.call, p.share, channel);
}

// grad is contiguous, all other maps are channels_last; 16-bit elements.
template <class T, int width, bool second>
__global__ void __launch_bounds__(norm_threads, 2) backward_from_contiguous(const Parameters p) {
    constexpr int lanes = mixed_tile_channels / width < 32 ? mixed_tile_channels / width : 32;
    constexpr int rows = norm_threads / lanes, per_thread = mixed_tile_positions / rows;
    const auto& forward = p.call.forward;
    const auto& map = forward.map;
    const auto *const u = static_cast<const T*>(forward.u), *const z = static_cast<const T*>(forward.z);
    auto* const grad = static_cast<T*>(const_cast<void*>(p.call.grad));
    auto* const shared = reinterpret_cast<T*>(shared_memory());
    const int64_t positions = map.batch * map.positions, block_channel = int64_t(blockIdx.x) * lanes * width;
    const int64_t channel = first_channel<width, true>(p.share);
    Backward<T, width, width, false, second> compute(p.call, channel);
    const int row = int(threadIdx.x) / lanes, tile_channel = int(threadIdx.x) % lanes * width;
    const MixedTile tile(p.share, map, lanes * width);
    for (int64_t first = int64_t(blockIdx.y) * tile.positions; first < positions;
         first += int64_t(gridDim.y) * tile.positions) {
        const int found = positions - first < tile.positions ? int(positions - first) : tile.positions;
        copy_tile<T, false>(tile, shared, grad, map, block_channel, first);
        Pack<T, width> us[per_thread], zs[per_thread];
#pragma unroll
        for (int i = 0; i < per_thread; ++i) {
            const int64_t position = first + row + i * rows;
            if (channel >= map.channels || row + i * rows >= found) continue;
            us[i] = load_pack<T, width>(u + position * map.channels + channel);
            if (z) zs[i] = load_pack<T, width>(z + position * map.channels + channel);
        }
        wait_for_copies<0>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < per_thread; ++i) {
            const int64_t position = first + row + i * rows;
            if (channel >= map.channels || row + i * rows >= found) continue;
            Pack<T, width> g;
            for (int e = 0; e < width; ++e) g.at[e] = shared[tile.index(tile_channel + e, row + i * rows)];
            compute(g, us[i], zs[i], {position * map.channels + channel, 0, width});
        }
        __syncthreads();
    }
    if (!second && p.call.partial) store_sums(compute.sums, p.call, p.share, channel);
}

template <class T, bool second>
void run(const NormBackward& call, const Share& share, const Plan& plan, Stream stream) {
    constexpr int wide = elements_per_access<T>;
    const Parameters parameters{call, share};
    const bool last = call.forward.last;
    if (last == call.forward.out_last) {
        const auto contiguous =
            share.ragged ? backward<T, wide, false, true, second> : backward<T, wide, false, false, second>;
        const auto of_last = share.width > 1 ? backward<T, wide, true, false, second> : backward<T, 1, true, false, second>;
        launch(last ? of_last : contiguous, plan, stream, parameters);
    } else if constexpr (sizeof(T) == 2) {
        const auto kernel =
            share.width > 1 ? backward_from_contiguous<T, wide, second> : backward_from_contiguous<T, 1, second>;
        launch(kernel, plan, stream, parameters);
    } else {
        throw std::invalid_argument("gcsa_ext: norm_backward has maps of two layouts for 16-bit elements only");
    }
}

}  // namespace

void norm_backward(const NormBackward& call, Stream stream) {
    Share share;
    const auto plan = plan_norm_backward(call, share);
    with_element(call.forward.map.dtype, [&](auto element) {
        using T = decltype(element);
        if (call.sums) return run<T, true>(call, share, plan, stream);
        run<T, false>(call, share, plan, stream);
    });
}

}  // namespace gcsa_ext::cuda
