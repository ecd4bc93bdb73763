// Tiles of maps and of matrices in shared memory, copied by all threads of a block.
#pragma once

#include <type_traits>

#include "element.h"
#include "map.h"
#include "product.h"

namespace gcsa_ext::cuda {

// A tile: some channels at consecutive positions from `first` on, numbered through all images. Its order in shared memory is
// that of its map: rows of channels at a position (channels_last) or of positions in a channel, `stride` elements apart. Or
// it is of whole images: each is one run of memory, whatever the length of its rows, and they are `image` elements apart.
struct TilePlace {
    int64_t first;
    int size;                    // a multiple of 16, and a power of two
    int stride;                  // a multiple of 16 bytes, or P for whole images
    bool last;                   // channels_last
    int image;                   // 0: not whole images
    double images_per_position;  // 1 / P
    int first_channel, channels;
    int count;  // how many of the `size` positions exist; the others are 0 or, with whole images, have no memory

    __device__ int at(int position) const {
        if (last) return position * stride;
        return image ? position / stride * image + position % stride : position;
    }
    __device__ int between_channels() const { return last ? 1 : stride; }
};

// Calls function(count) with the elements of an access whose addresses are multiples of `bytes`, as a constant.
template <class T, class Function>
__device__ inline void with_access(int bytes, const Function& function) {
    if (bytes >= 16) {
        function(std::integral_constant<int, elements_per_access<T>>());
    } else if (bytes >= 8) {
        function(std::integral_constant<int, elements_per_access<T> / 2>());
    } else {
        function(std::integral_constant<int, 1>());
    }
}

// Copies a pack, asynchronously where that is possible: it is visible after wait_for_copies and a barrier.
template <class T, int count>
__device__ inline void copy_pack(T* shared, const T* global) {
    constexpr int bytes = count * int(sizeof(T));
    if constexpr (bytes == 16) {
        copy_async(shared, global);
    } else if constexpr (bytes >= 4) {
        copy_few_async<bytes>(shared, global);
    } else {
        *shared = *global;
    }
}

template <class T, int count>
__device__ inline void clear_pack(T* address) {
    Pack<T, count> pack;
#pragma unroll
    for (int e = 0; e < count; ++e) pack.at[e] = from_float<T>(0.0f);
    store_pack(address, pack);
}

// The index of channel 0 at a position, in a contiguous map. The image is a rounded product, off by one at most, instead of
// a 64-bit quotient, which would be a call that spills registers.
__device__ inline int64_t first_channel(const Map& map, const TilePlace& place, int64_t position) {
    auto image = int64_t(double(position) * place.images_per_position);
    int64_t within = position - image * map.positions;
    if (within < 0) --image, within += map.positions;
    if (within >= map.positions) ++image, within -= map.positions;
    return image * map.channels * map.positions + within;
}

// Calls function(position in the tile, channel in the tile, index in the map) for the packs of `count` elements of a tile
// that this thread copies. Lanes run along the contiguous axis of the map.
template <int count, class Function>
__device__ inline void for_thread_packs(const Map& map, const TilePlace& place, const Function& function) {
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    if (place.last) {
        const unsigned packs = unsigned(place.channels / count);
#pragma unroll 1
        for (unsigned i = thread; i < place.size * packs; i += threads) {
            const unsigned row = i / packs, channel = (i - row * packs) * count;
            function(int(row), int(channel), (place.first + row) * map.channels + place.first_channel + channel);
        }
    } else {
        const int packs = place.size / count, position = thread % packs * count;
        const int64_t begin = first_channel(map, place, place.first + position);
#pragma unroll 1
        for (int channel = thread / packs; channel < place.channels; channel += threads / packs) {
            function(position, channel, begin + (place.first_channel + channel) * map.positions);
        }
    }
}

// Calls function(image of the tile, index in that image, index in the map) for the packs of `count` elements of whole images
// that this thread copies. A pack may begin in one channel and end in another.
template <int count, class Function>
__device__ inline void for_thread_packs_of_images(const Map& map, const TilePlace& place, const Function& function) {
    const int positions = int(map.positions), packs = place.channels * positions / count;
    const int64_t begin = first_channel(map, place, place.first) + int64_t(place.first_channel) * positions;
#pragma unroll 1
    for (int image = 0; image * positions < place.count; ++image) {
        const int64_t of_image = begin + image * map.channels * positions;
#pragma unroll 1
        for (int i = int(threadIdx.x); i < packs; i += int(blockDim.x)) function(image, i * count, of_image + i * count);
    }
}

template <class T>
__device__ inline void load_tile(T* tile, const T* from, const Map& map, const TilePlace& place, int access) {
    if (place.image) {
        constexpr int count = elements_per_access<T>;
        for_thread_packs_of_images<count>(map, place, [&](int image, int within, int64_t element) {
            copy_async(tile + image * place.image + within, from + element);
        });
        return;
    }
    with_access<T>(access, [&](auto constant) {
        constexpr int count = decltype(constant)::value;
        for_thread_packs<count>(map, place, [&](int position, int channel, int64_t element) {
            T* const to = tile + (place.last ? position * place.stride + channel : channel * place.stride + position);
            if (position < place.count) {
                copy_pack<T, count>(to, from + element);
            } else {
                clear_pack<T, count>(to);
            }
        });
    });
}

// Clears the channels behind the last one, up to `channels`. Loading a tile does not change them.
template <class T>
__device__ inline void clear_channels_behind(T* tile, const TilePlace& place, int channels) {
    const int found = place.channels, behind = channels - found;
#pragma unroll 1
    for (int i = int(threadIdx.x); i < behind * place.size; i += int(blockDim.x)) {
        const int position = i / behind, channel = found + i % behind;
        if (place.image && position >= place.size / place.stride * place.stride) continue;
        tile[place.at(position) + channel * place.between_channels()] = from_float<T>(0.0f);
    }
}

// The left operand of a product: 16 positions of a tile from `row` on, times 16 channels from `channel` on.
template <class Math>
__device__ inline typename Math::Left left_of_tile(
    const typename Math::Element* tile, const TilePlace& place, int row, int channel
) {
    if (place.last) return Math::left(tile + row * place.stride + channel, place.stride);
    if (!place.image) return Math::left_transposed(tile + channel * place.stride + row, place.stride);
    const int position[2] = {row + lane_number() / 4, row + lane_number() / 4 + 8};
    const int at[2] = {place.at(position[0]), place.at(position[1])};
    return Math::left_of_elements([&](int i, int k) {
        return position[i] < place.count ? tile[at[i] + (channel + k) * place.stride]
                                         : from_float<typename Math::Element>(0.0f);
    });
}

// The channel of x that is channel `out` of the shuffled map, and the way back.
__device__ inline int unshuffled(int out, int channels, int groups) {
    return out % groups * (channels / groups) + out / groups;
}
__device__ inline int shuffled(int channel, int channels, int groups) {
    const int per_group = channels / groups;
    return channel % per_group * groups + channel / per_group;
}

// Writes a tile of all channels, shuffled, to a map: channels_last if `out_last`, in whole images if `out_images`.
template <class T>
__device__ inline void store_shuffled(
    T* to, const T* tile, const Map& map, const TilePlace& place, int groups, bool out_last, bool out_images, int access
) {
    const int channels = int(map.channels), between = place.between_channels();
    if (out_images) {
        constexpr int count = elements_per_access<T>;
        const int positions = int(map.positions), between_positions = place.last ? place.stride : 1;
        for_thread_packs_of_images<count>(map, place, [&](int image, int within, int64_t element) {
            const T* const from = tile + place.at(image * positions);
            int channel = within / positions, position = within - channel * positions;
            int row = unshuffled(channel, channels, groups) * between;
            Pack<T, count> pack;
#pragma unroll
            for (int e = 0; e < count; ++e) {
                pack.at[e] = from[row + position * between_positions];
                if (++position < positions) continue;
                position = 0;
                if (++channel < channels) row = unshuffled(channel, channels, groups) * between;
            }
            store_pack(to + element, pack);
        });
        return;
    }
    with_access<T>(access, [&](auto constant) {
        constexpr int count = decltype(constant)::value;
        if (!out_last) {
            TilePlace out = place;
            out.last = false;
            for_thread_packs<count>(map, out, [&](int position, int channel, int64_t element) {
                if (position >= place.count) return;
                const T* const from = tile + unshuffled(channel, channels, groups) * between;
                if (!place.last && !place.image) {
                    store_pack(to + element, load_pack<T, count>(from + position));
                    return;
                }
                Pack<T, count> pack;
#pragma unroll
                for (int e = 0; e < count; ++e) pack.at[e] = from[place.at(position + e)];
                store_pack(to + element, pack);
            });
            return;
        }
        // A warp takes 8 positions and 4 packs of channels, whose elements lie in different banks in either layout of the
        // tile.
        const int packs = channels / count, along_c = (packs + 3) / 4, lane = lane_number();
#pragma unroll 1
        for (int i = int(threadIdx.x) / 32; i < place.size / 8 * along_c; i += int(blockDim.x) / 32) {
            const int position = i / along_c * 8 + lane % 8, number = i % along_c * 4 + lane / 8;
            if (number >= packs || position >= place.count) continue;
            const T* const from = tile + place.at(position);
            Pack<T, count> pack;
            int group = number * count % groups, within = number * count / groups;
#pragma unroll
            for (int e = 0; e < count; ++e) {
                pack.at[e] = from[(group * (channels / groups) + within) * between];
                if (++group == groups) group = 0, ++within;
            }
            store_pack(to + (place.first + position) * channels + number * count, pack);
        }
    });
}

// A matrix in memory, row major and contiguous.
template <class T>
struct Matrix {
    const T* data;
    int rows, columns;
    bool aligned;  // rows begin on multiples of 16 bytes
};

// Copies rows x columns from (row, column) of a matrix on, with zeros outside of it. They are visible after wait_for_copies
// and a barrier.
template <class T>
__device__ inline void load_piece(
    T* piece, int stride, const Matrix<T>& matrix, int row, int column, int rows, int columns
) {
    const int count = matrix.aligned ? elements_per_access<T> : 1, packs = columns / count;
#pragma unroll 1
    for (int i = int(threadIdx.x); i < rows * packs; i += int(blockDim.x)) {
        const int r = i / packs, c = i % packs * count;
        const bool inside = row + r < matrix.rows && column + c < matrix.columns;
        T* const to = piece + r * stride + c;
        const T* const from = matrix.data + (inside ? int64_t(row + r) * matrix.columns + column + c : 0);
        if (matrix.aligned) {
            copy_async(to, from, inside ? 16 : 0);
        } else {
            *to = inside ? *from : from_float<T>(0.0f);
        }
    }
}

}  // namespace gcsa_ext::cuda
