// out = z * sigmoid(v) or relu(v), where v = (u + offset - mean) / sqrt(var + eps) * weight + bias; see norm.h.
//
// One pass: u and z are read once and out is written once. Where z or out is contiguous and the others are channels_last, a
// block transposes tiles of 64 channels x 64 positions in shared memory, so that each map is accessed along its contiguous
// axis.
#include "norm_device.h"

namespace gcsa_ext::cuda {

namespace {

struct Parameters {
    NormForward call;
    Share share;
};

template <class T, int width, int channels>
__device__ void gate(
    Pack<T, width>& out, const Pack<T, width>& u, const Pack<T, width>& z, bool gated, const Normalisation<channels>& norm
) {
#pragma unroll
    for (int e = 0; e < width; ++e) {
        const int i = channels > 1 ? e : 0;
        const float v = norm.xhat(to_float(u.at[e]), i) * norm.scale[i] + norm.at_zero[i];
        const float result = gated ? to_float(z.at[e]) * sigmoid(v) : v < 0.0f ? 0.0f : v;
        out.at[e] = from_float<T>(result);
    }
}

template <class T, int width>
__device__ void add_to(Pack<T, width>& a, const Pack<T, width>& b) {
#pragma unroll
    for (int e = 0; e < width; ++e) a.at[e] = from_float<T>(to_float(a.at[e]) + to_float(b.at[e]));
}

template <class T, int width, bool last, bool ragged, bool add>
__global__ void __launch_bounds__(norm_threads, 2) forward(const Parameters p) {
    // Fewer where a third map or the normalisation of several channels takes registers.
    constexpr int at_a_time = add ? 2 : last && width > 1 ? 3 : norm_accesses_at_a_time;
    const auto& call = p.call;
    const auto& map = call.map;
    const auto *const u = static_cast<const T*>(call.u), *const z = static_cast<const T*>(call.z);
    auto* const out = static_cast<T*>(call.out);
    const int64_t channel = first_channel<width, last>(p.share);
    const Normalisation<last ? width : 1> norm(call, channel);
    Walk<width, last, ragged> walk(p.share, map, channel);
    while (walk.inside()) {
        Pack<T, width> us[at_a_time], zs[at_a_time], outs[add ? at_a_time : 1];
        Access accesses[at_a_time];
#pragma unroll
        for (int i = 0; i < at_a_time; ++i) {
            accesses[i] = walk.access(map);
            if (accesses[i].end > accesses[i].begin) {
                us[i] = load_values<width, ragged>(u, map, accesses[i]);
                if (z) zs[i] = load_values<width, ragged>(z, map, accesses[i]);
                if constexpr (add) outs[i] = load_values<width, ragged>(out, map, accesses[i]);
            }
            walk.step(p.share, map);
        }
#pragma unroll
        for (int i = 0; i < at_a_time; ++i) {
            if (accesses[i].end == accesses[i].begin) continue;
            gate(us[i], us[i], zs[i], z, norm);
            if constexpr (add) add_to(us[i], outs[i]);
            store_values<width, ragged>(out, accesses[i], us[i]);
        }
    }
}

// u and z are channels_last, out is contiguous; 16-bit elements.
template <class T, int width>
__global__ void __launch_bounds__(norm_threads) forward_to_contiguous(const Parameters p) {
    constexpr int lanes = mixed_tile_channels / width < 32 ? mixed_tile_channels / width : 32;
    constexpr int rows = norm_threads / lanes, per_thread = mixed_tile_positions / rows;
    const auto& call = p.call;
    const auto& map = call.map;
    const auto *const u = static_cast<const T*>(call.u), *const z = static_cast<const T*>(call.z);
    auto* const shared = reinterpret_cast<T*>(shared_memory());
    const int64_t positions = map.batch * map.positions, block_channel = int64_t(blockIdx.x) * lanes * width;
    const int64_t channel = first_channel<width, true>(p.share);
    const Normalisation<width> norm(call, channel);
    const int row = int(threadIdx.x) / lanes, tile_channel = int(threadIdx.x) % lanes * width;
    const MixedTile tile(p.share, map, lanes * width);
    for (int64_t first = int64_t(blockIdx.y) * tile.positions; first < positions;
         first += int64_t(gridDim.y) * tile.positions) {
        const int found = positions - first < tile.positions ? int(positions - first) : tile.positions;
        Pack<T, width> us[per_thread], zs[per_thread];
#pragma unroll
        for (int i = 0; i < per_thread; ++i) {
            const int64_t position = first + row + i * rows;
            if (channel >= map.channels || row + i * rows >= found) continue;
            us[i] = load_pack<T, width>(u + position * map.channels + channel);
            if (z) zs[i] = load_pack<T, width>(z + position * map.channels + channel);
        }
#pragma unroll
        for (int i = 0; i < per_thread; ++i) {
            if (channel >= map.channels || row + i * rows >= found) continue;
            gate(us[i], us[i], zs[i], z, norm);
            for (int e = 0; e < width; ++e) shared[tile.index(tile_channel + e, row + i * rows)] = us[i].at[e];
        }
        __syncthreads();
        copy_tile<T, true>(tile, shared, static_cast<T*>(call.out), map, block_channel, first);
        __syncthreads();
    }
}

// u and out are channels_last, z is contiguous; 16-bit elements.
template <class T, int width>
__global__ void __launch_bounds__(norm_threads, 2) forward_from_contiguous(const Parameters p) {
    constexpr int lanes = mixed_tile_channels / width < 32 ? mixed_tile_channels / width : 32;
    constexpr int rows = norm_threads / lanes, per_thread = mixed_tile_positions / rows;
    const auto& call = p.call;
    const auto& map = call.map;
    const auto* const u = static_cast<const T*>(call.u);
    auto *const z = static_cast<T*>(const_cast<void*>(call.z)), *const out = static_cast<T*>(call.out);
    auto* const shared = reinterpret_cast<T*>(shared_memory());
    const int64_t positions = map.batch * map.positions, block_channel = int64_t(blockIdx.x) * lanes * width;
    const int64_t channel = first_channel<width, true>(p.share);
    const Normalisation<width> norm(call, channel);
    const int row = int(threadIdx.x) / lanes, tile_channel = int(threadIdx.x) % lanes * width;
    const MixedTile tile(p.share, map, lanes * width);
    for (int64_t first = int64_t(blockIdx.y) * tile.positions; first < positions;
         first += int64_t(gridDim.y) * tile.positions) {
        const int found = positions - first < tile.positions ? int(positions - first) : tile.positions;
        copy_tile<T, false>(tile, shared, z, map, block_channel, first);
        Pack<T, width> us[per_thread], outs[per_thread];
#pragma unroll
        for (int i = 0; i < per_thread; ++i) {
            const int64_t position = first + row + i * rows;
            if (channel >= map.channels || row + i * rows >= found) continue;
            us[i] = load_pack<T, width>(u + position * map.channels + channel);
            if (call.add) outs[i] = load_pack<T, width>(out + position * map.channels + channel);
        }
        wait_for_copies<0>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < per_thread; ++i) {
            const int64_t position = first + row + i * rows;
            if (channel >= map.channels || row + i * rows >= found) continue;
            Pack<T, width> zs;
            for (int e = 0; e < width; ++e) zs.at[e] = shared[tile.index(tile_channel + e, row + i * rows)];
            gate(us[i], us[i], zs, true, norm);
            if (call.add) add_to(us[i], outs[i]);
            store_pack(out + position * map.channels + channel, us[i]);
        }
        __syncthreads();
    }
}

template <class T, bool add>
void run_one_layout(const NormForward& call, const Share& share, const Plan& plan, Stream stream) {
    constexpr int wide = elements_per_access<T>;
    const auto contiguous = share.ragged ? forward<T, wide, false, true, add> : forward<T, wide, false, false, add>;
    const auto last = share.width > 1 ? forward<T, wide, true, false, add> : forward<T, 1, true, false, add>;
    launch(call.last ? last : contiguous, plan, stream, Parameters{call, share});
}

template <class T>
void run(const NormForward& call, const Share& share, const Plan& plan, Stream stream) {
    if (call.last == call.out_last && call.last == call.z_last) {
        if (call.add) return run_one_layout<T, true>(call, share, plan, stream);
        run_one_layout<T, false>(call, share, plan, stream);
    } else if constexpr (sizeof(T) == 2) {
        constexpr int wide = elements_per_access<T>;
        const auto from = share.width > 1 ? forward_from_contiguous<T, wide> : forward_from_contiguous<T, 1>;
        const auto to = share.width > 1 ? forward_to_contiguous<T, wide> : forward_to_contiguous<T, 1>;
        launch(call.out_last ? from : to, plan, stream, Parameters{call, share});
    } else {
        throw std::invalid_argument("gcsa_ext: norm_forward has maps of two layouts for 16-bit elements only");
    }
}

}  // namespace

void norm_forward(const NormForward& call, Stream stream) {
    Share share;
    const auto plan = plan_norm_forward(call, share);
    with_element(call.map.dtype, [&](auto element) { run<decltype(element)>(call, share, plan, stream); });
}

}  // namespace gcsa_ext::cuda
