// Mean and biased variance of u + offset over all positions of each channel; see norm.h.
//
// Every thread takes a few values at a time, computes their mean and the sum of squared deviations from it, and joins these
// with its result so far by Chan's formula,
//
//   n = a + b,   mean = mean_a + (mean_b - mean_a) b / n,   square = square_a + square_b + (mean_b - mean_a)^2 a b / n
//
// Then threads and blocks are joined by the same formula, in a fixed order. All means are relative to an origin, the median
// of three of the channel's values, so that neither a mean far from zero nor a long sum nor an outlier costs digits.
#include "norm_device.h"

namespace gcsa_ext::cuda {

namespace {

constexpr int at_a_time = norm_accesses_at_a_time;

struct Parameters {
    NormStatistics call;
    Share share;
};

struct Moments {
    float mean = 0.0f, square = 0.0f, count = 0.0f;
};

// Chan's formula; a or b may be empty.
__device__ inline Moments join(const Moments& a, const Moments& b) {
    const float count = a.count + b.count;
    if (b.count == 0.0f) return a;
    if (a.count == 0.0f) return b;
    const float distance = b.mean - a.mean, share = b.count / count;
    return {a.mean + distance * share, a.square + b.square + distance * distance * a.count * share, count};
}

__device__ inline Moments from_lane(const Moments& moments, int distance) {
    return {
        __shfl_xor_sync(0xffffffffu, moments.mean, distance), __shfl_xor_sync(0xffffffffu, moments.square, distance),
        __shfl_xor_sync(0xffffffffu, moments.count, distance)
    };
}

// Both lanes pass the lower lane's moments first, so that they get the same bits.
__device__ inline Moments join_lanes(const Moments& moments, int distance) {
    const auto other = from_lane(moments, distance);
    return threadIdx.x & distance ? join(other, moments) : join(moments, other);
}

template <class T>
__device__ float origin_of(const NormStatistics& call, int64_t channel) {
    const auto& map = call.map;
    const auto value = [&](int64_t image, int64_t position) {
        const int64_t at = call.last ? (image * map.positions + position) * map.channels + channel
                                     : (image * map.channels + channel) * map.positions + position;
        return to_float(static_cast<const T*>(call.u)[at]);
    };
    const float a = value(0, 0), b = value(map.batch / 2, map.positions / 2), c = value(map.batch - 1, map.positions - 1);
    return fmaxf(fminf(a, b), fminf(fmaxf(a, b), c));
}

// Joins the moments of a block's threads into row blockIdx.y of `partial`.
template <int channels>
__device__ void store_moments(
    Moments (&moments)[channels], const NormStatistics& call, const Share& share, int64_t channel
) {
    const auto& map = call.map;
    auto* const of_warps = reinterpret_cast<Moments*>(shared_memory());  // [warps][channel_lanes * channels]
    const int lanes = share.channel_lanes, block_channels = lanes * channels;
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, warps = int(blockDim.x) / 32;
#pragma unroll
    for (int c = 0; c < channels; ++c) {
        for (int distance = 16; distance >= lanes; distance /= 2) moments[c] = join_lanes(moments[c], distance);
        if (lane < lanes) of_warps[warp * block_channels + lane * channels + c] = moments[c];
    }
    __syncthreads();
    const int64_t first = channel - int(threadIdx.x) % lanes * channels;
    const int64_t size = int64_t(gridDim.y) * map.channels;
    for (int i = int(threadIdx.x); i < block_channels; i += int(blockDim.x)) {
        if (first + i >= map.channels) continue;
        auto all = of_warps[i];
        for (int w = 1; w < warps; ++w) all = join(all, of_warps[w * block_channels + i]);
        float* const at = call.partial + int64_t(blockIdx.y) * map.channels + first + i;
        at[0] = all.mean;
        at[size] = all.square;
        at[2 * size] = all.count;
    }
}

template <class T, int width, bool last, bool ragged>
__global__ void __launch_bounds__(norm_threads, 2) statistics(const Parameters p) {
    constexpr int channels = last ? width : 1;
    const auto& map = p.call.map;
    const auto* const u = static_cast<const T*>(p.call.u);
    const int64_t channel = first_channel<width, last>(p.share);
    float origin[channels];
    Moments moments[channels];
#pragma unroll
    for (int i = 0; i < channels; ++i) {
        origin[i] = origin_of<T>(p.call, channel < map.channels ? channel + i : 0);
    }
    Walk<width, last, ragged> walk(p.share, map, channel);
    while (walk.inside()) {
        Pack<T, width> packs[at_a_time];
        Access accesses[at_a_time];
        int found = 0;
#pragma unroll
        for (int i = 0; i < at_a_time; ++i) {
            accesses[i] = walk.access(map);
            if (accesses[i].end > accesses[i].begin) packs[i] = load_values<width, ragged>(u, map, accesses[i]);
            found += last ? accesses[i].end > 0 : accesses[i].end - accesses[i].begin;
            walk.step(p.share, map);
        }
        if (found == 0) continue;
        const float inverse = 1.0f / float(found);
#pragma unroll
        for (int c = 0; c < channels; ++c) {
            Moments some;
            some.count = float(found);
#pragma unroll
            for (int i = 0; i < at_a_time; ++i) {
                for (int e = last ? c : 0; e < (last ? c + 1 : width); ++e) {
                    if (e >= accesses[i].begin && e < accesses[i].end) some.mean += to_float(packs[i].at[e]) - origin[c];
                }
            }
            some.mean *= inverse;
#pragma unroll
            for (int i = 0; i < at_a_time; ++i) {
                for (int e = last ? c : 0; e < (last ? c + 1 : width); ++e) {
                    const float distance = to_float(packs[i].at[e]) - origin[c] - some.mean;
                    if (e >= accesses[i].begin && e < accesses[i].end) some.square += distance * distance;
                }
            }
            moments[c] = join(moments[c], some);
        }
    }
    store_moments(moments, p.call, p.share, channel);
}

constexpr int merge_warps = 8;

struct Merge {
    NormStatistics call;
    int64_t parts;
};

// A warp joins the parts of one channel.
template <class T>
__global__ void __launch_bounds__(32 * merge_warps) merge_parts(const Merge p) {
    const auto& call = p.call;
    const int64_t channels = call.map.channels, size = p.parts * channels;
    const int64_t channel = int64_t(blockIdx.x) * merge_warps + threadIdx.x / 32;
    const int lane = int(threadIdx.x) % 32;
    Moments all;
    for (int64_t part = lane; part < p.parts && channel < channels; part += 32) {
        const float* const at = call.partial + part * channels + channel;
        all = join(all, {at[0], at[size], at[2 * size]});
    }
    for (int distance = 16; distance > 0; distance /= 2) all = join_lanes(all, distance);
    if (lane == 0 && channel < channels) {
        call.mean[channel] = origin_of<T>(call, channel) + all.mean + load(call.offset, channel, 0.0f);
        call.var[channel] = all.square / all.count;
    }
}

}  // namespace

void norm_statistics(const NormStatistics& call, Stream stream) {
    Share share;
    const auto plan = plan_norm_statistics(call, share);
    const Plan merge_plan{"norm_statistics, merge", ceil_div(call.map.channels, merge_warps), 1, 1, 32 * merge_warps, 0};
    with_element(call.map.dtype, [&](auto element) {
        using T = decltype(element);
        constexpr int wide = elements_per_access<T>;
        const auto contiguous = share.ragged ? statistics<T, wide, false, true> : statistics<T, wide, false, false>;
        const auto last = share.width > 1 ? statistics<T, wide, true, false> : statistics<T, 1, true, false>;
        const auto kernel = call.last ? last : contiguous;
        launch(kernel, plan, stream, Parameters{call, share});
        launch(merge_parts<T>, merge_plan, stream, Merge{call, plan.grid_y});
    });
}

}  // namespace gcsa_ext::cuda
