// What the kernels of batch normalisation share.
#pragma once

#include <type_traits>

#include "element.h"
#include "norm.h"
#include "norm_share.h"
#include "vector_device.h"

namespace gcsa_ext::cuda {

// The first channel of this thread's accesses; C or more for a thread without work.
template <int width, bool last>
__device__ int64_t first_channel(const Share& share) {
    if (!last) return blockIdx.x;
    return (int64_t(blockIdx.x) * share.channel_lanes + threadIdx.x % share.channel_lanes) * width;
}

// An access at `offset` elements in the map. Its values in [begin, end) belong to the row.
struct Access {
    int64_t offset;
    int begin, end;  // equal behind the last access
};

// The accesses of one thread, one after the other.
template <int width, bool last, bool ragged>
struct Walk {
    int64_t index, after;  // of the access among those of its channels, and behind the last one
    int64_t offset;        // channels_last: in the map, in elements
    int64_t row;           // contiguous: where the row of positions begins
    int64_t in_plane;      // contiguous: the number of the access in its row

    __device__ Walk(const Share& share, const Map& map, int64_t channel) {
        const int rows = int(blockDim.x) / share.channel_lanes;
        index = int64_t(blockIdx.y) * rows + threadIdx.x / share.channel_lanes;
        after = channel < map.channels ? share.accesses : 0;
        if (last) {
            offset = index * map.channels + channel;
        } else {
            const int64_t image = index / share.per_plane;
            in_plane = index - image * share.per_plane;
            row = (image * map.channels + channel) * map.positions;
        }
    }

    __device__ bool inside() const { return index < after; }

    __device__ Access access(const Map& map) const {
        Access found{last ? offset : (ragged ? row / width * width : row) + in_plane * width, 0, inside() ? width : 0};
        if (ragged && inside()) {
            const int64_t behind = row + map.positions - found.offset;
            found.begin = row > found.offset ? int(row - found.offset) : 0;
            found.end = behind < width ? int(behind) : width;
            if (found.end < found.begin) found.end = found.begin;
        }
        return found;
    }

    __device__ void step(const Share& share, const Map& map) {
        index += share.stride;
        if (last) {
            offset += share.stride_elements;
            return;
        }
        row += share.stride_elements;
        in_plane += share.stride_in_plane;
        if (in_plane >= share.per_plane) {
            in_plane -= share.per_plane;
            row += map.channels * map.positions;
        }
    }
};

// Loads an access. If ragged, it may include values of other rows, but never memory behind the map.
template <int width, bool ragged, class T>
__device__ Pack<T, width> load_values(const T* values, const Map& map, const Access& access) {
    if (ragged) {
        const bool aligned = reinterpret_cast<uintptr_t>(values) % 16 == 0;
        if (!aligned || access.offset + width > map.batch * map.channels * map.positions) {
            Pack<T, width> pack{};
#pragma unroll
            for (int e = 0; e < width; ++e) {
                if (e >= access.begin && e < access.end) pack.at[e] = values[access.offset + e];
            }
            return pack;
        }
    }
    return load_pack<T, width>(values + access.offset);
}

template <int width, bool ragged, class T>
__device__ void store_values(T* values, const Access& access, const Pack<T, width>& pack) {
    if (ragged) {
        const bool aligned = reinterpret_cast<uintptr_t>(values) % 16 == 0;
        if (!aligned || access.end - access.begin < width) {
#pragma unroll
            for (int e = 0; e < width; ++e) {
                if (e >= access.begin && e < access.end) values[access.offset + e] = pack.at[e];
            }
            return;
        }
    }
    store_pack(values + access.offset, pack);
}

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

// A tile that is transposed in shared memory: some channels at positions that are numbered through all images. It has the
// order of the contiguous map: whole images, each one run of memory, where rows of positions are ragged and an image is
// small; otherwise rows of 64 positions. In these, eights of positions are permuted, differently for every eight channels,
// so that lanes along channels and lanes along positions both use different banks.
struct MixedTile {
    int channels, positions;
    bool images;
    int image_positions;

    __device__ MixedTile(const Share& share, const Map& map, int block_channels)
        : channels(block_channels),
          positions(share.tile_positions),
          images(share.whole_images),
          image_positions(share.whole_images ? int(map.positions) : 1) {}

    __device__ int index(int channel, int position) const {
        if (images) {
            const int image = position / image_positions;
            return (image * (channels - 1) + channel) * image_positions + position;
        }
        const int eight = position / 8 ^ channel / 8 % 8;
        return channel * mixed_tile_positions + eight * 8 + position % 8;
    }
};

// Copies a tile between shared memory and a contiguous map, from `channel` and `position` on: 16 bytes at a time where rows
// are aligned to that, or 8, or one value. A copy from the map is visible after wait_for_copies and a barrier.
template <class T, bool to_map>
__device__ void copy_tile(const MixedTile& tile, T* shared, T* map_data, const Map& map, int64_t channel, int64_t position) {
    const int64_t positions = map.batch * map.positions;
    const int channels = map.channels - channel < tile.channels ? int(map.channels - channel) : tile.channels;
    const auto copy = [&](auto constant) {
        constexpr int length = decltype(constant)::value, bytes = length * int(sizeof(T));
        const auto move = [&](T* here, T* there) {
            if constexpr (to_map || bytes < 4) {
                store_pack(to_map ? there : here, load_pack<T, length>(to_map ? here : there));
            } else if constexpr (bytes == 16) {
                copy_async(here, there);
            } else {
                copy_few_async<bytes>(here, there);
            }
        };
        if (tile.images) {
            const int64_t first = position / map.positions, left_over = map.batch - first;
            const int found = tile.positions / tile.image_positions, images = left_over < found ? int(left_over) : found;
            for (int image = 0; image < images; ++image) {
                T* const there = map_data + ((first + image) * map.channels + channel) * map.positions;
                T* const here = shared + image * tile.channels * tile.image_positions;
                const int size = channels * tile.image_positions / length;
                for (int i = int(threadIdx.x); i < size; i += int(blockDim.x)) move(here + i * length, there + i * length);
            }
            return;
        }
        constexpr int per_channel = mixed_tile_positions / length;
        for (int i = int(threadIdx.x); i < channels * per_channel; i += int(blockDim.x)) {
            const int c = i / per_channel, p = i % per_channel * length;
            const int64_t at = position + p, image = at / map.positions;
            if (at >= positions) continue;
            T* const there = map_data + (image * map.channels + channel + c) * map.positions + (at - image * map.positions);
            move(shared + tile.index(c, p), there);
        }
    };
    const uintptr_t row = tile.images ? 0 : uintptr_t(map.positions * int64_t(sizeof(T)));
    const uintptr_t bits = reinterpret_cast<uintptr_t>(map_data) | row;
    if (bits % 16 == 0) {
        copy(std::integral_constant<int, 8>());
    } else if (bits % 8 == 0) {
        copy(std::integral_constant<int, 4>());
    } else {
        copy(std::integral_constant<int, 1>());
    }
    if (!to_map) commit_copies();
}

}  // namespace gcsa_ext::cuda
