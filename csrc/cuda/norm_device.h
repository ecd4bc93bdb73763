// What the kernels of batch normalisation share.
#pragma once

#include "element.h"
#include "norm.h"
#include "norm_share.h"
#include "vector_device.h"

namespace gcsa_ext::cuda {

// The first channel of this thread's accesses, C or more where it has nothing to do.
template <int width, bool last>
__device__ int64_t first_channel(const Share& share) {
    if (!last) return blockIdx.x;
    return (int64_t(blockIdx.x) * share.channel_lanes + threadIdx.x % share.channel_lanes) * width;
}

// The accesses of one thread, one after the other.
template <int width, bool last>
struct Walk {
    int64_t index, end, offset;  // of the access among its channels' and in memory, in elements
    int64_t in_plane;

    __device__ Walk(const Share& share, const Map& map, int64_t channel) {
        const int rows = int(blockDim.x) / share.channel_lanes;
        index = int64_t(blockIdx.y) * rows + threadIdx.x / share.channel_lanes;
        end = channel < map.channels ? share.accesses : 0;
        if (last) {
            in_plane = 0;
            offset = index * map.channels + channel;
        } else {
            const int64_t image = index / share.per_plane;
            in_plane = index - image * share.per_plane;
            offset = (image * map.channels + channel) * map.positions + in_plane * width;
        }
    }

    __device__ bool inside() const { return index < end; }

    __device__ void step(const Share& share, const Map& map) {
        index += share.stride;
        offset += share.stride_elements;
        if (last) return;
        in_plane += share.stride_in_plane;
        if (in_plane >= share.per_plane) {
            in_plane -= share.per_plane;
            offset += (map.channels - 1) * map.positions;
        }
    }
};

// The normalisation of the channels of one thread's accesses.
template <int channels>
struct Normalisation {
    float shift[channels], rstd[channels], scale[channels], at_zero[channels];

    __device__ Normalisation(const NormForward& call, int64_t first) {
#pragma unroll
        for (int i = 0; i < channels; ++i) {
            const int64_t channel = first < call.map.channels ? first + i : 0;
            shift[i] = call.mean[channel] - load(call.offset, channel, 0.0f);
            rstd[i] = 1.0f / sqrtf(call.var[channel] + call.eps);
            scale[i] = load(call.weight, channel, 1.0f);
            at_zero[i] = load(call.bias, channel, 0.0f);
        }
    }

    __device__ float xhat(float u, int i) const { return (u - shift[i]) * rstd[i]; }
};

// Where value (channel, position) of a transposed tile lies in shared memory. Eight positions stay together; which eight
// come where changes with every eight channels, so that neither lanes along channels nor along positions meet in a bank.
__device__ inline int tile_index(int channel, int position) {
    const int eight = position / 8 ^ channel / 8 % 8;
    return channel * mixed_tile_positions + eight * 8 + position % 8;
}

// Copies a tile between shared memory and a contiguous map; `channels` of it, from `channel` on, at positions of all images
// counted through from `position` on.
template <class T, bool to_map>
__device__ void copy_tile(T* tile, T* map_data, const Map& map, int64_t channel, int64_t position, int channels) {
    constexpr int eight = 8;
    const int64_t positions = map.batch * map.positions;
    const bool in_packs = map.positions % eight == 0 && reinterpret_cast<uintptr_t>(map_data) % 16 == 0;
    const int length = in_packs ? eight : 1, per_channel = mixed_tile_positions / length;
    for (int i = int(threadIdx.x); i < channels * per_channel; i += int(blockDim.x)) {
        const int c = i / per_channel, p = i % per_channel * length;
        const int64_t at = position + p, image = at / map.positions;
        if (channel + c >= map.channels || at >= positions) continue;
        T* const there = map_data + (image * map.channels + channel + c) * map.positions + (at - image * map.positions);
        T* const here = tile + tile_index(c, p);
        T *const from = to_map ? here : there, *const to = to_map ? there : here;
        if (in_packs) {
            store_pack(to, load_pack<T, eight>(from));
        } else {
            *to = *from;
        }
    }
}

}  // namespace gcsa_ext::cuda
