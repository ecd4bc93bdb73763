// The layout that convolutions compute in: [N][channel block][position][lane], accumulators. A vector holds one position of
// as many channels as it has lanes; lanes behind the last channel are zero.
#pragma once

#include <cstdint>

#include "cpu/tile.h"
#include "cpu/vector.h"
#include "cpu/workspace.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

template <class A>
struct BlockedMap {
    A* data;
    int64_t channels, height, width;

    int64_t blocks() const { return (channels + lanes<A> - 1) / lanes<A>; }
    int64_t positions() const { return height * width; }
    int64_t image_size() const { return blocks() * positions() * lanes<A>; }
    A* block(int64_t image, int64_t block) const { return data + image * image_size() + block * positions() * lanes<A>; }
    BlockedMap from(int64_t image) const { return {data + image * image_size(), channels, height, width}; }
};

// A run of positions of one channel block of one image.
struct BlockRange {
    int64_t image, block, begin, count;
};

// A `finish` that does nothing.
struct NoFinish {
    void operator()(BlockRange) const {}
};

// Cuts `images` maps into ranges of at most this many positions, to be divided among threads.
constexpr int64_t positions_per_range = 512;
inline int64_t block_ranges(int64_t images, int64_t blocks, int64_t positions) {
    return images * blocks * ((positions + positions_per_range - 1) / positions_per_range);
}
inline BlockRange block_range(int64_t index, int64_t blocks, int64_t positions) {
    const int64_t per_block = (positions + positions_per_range - 1) / positions_per_range;
    const int64_t begin = index % per_block * positions_per_range, left = positions - begin;
    return {
        index / per_block / blocks, index / per_block % blocks, begin,
        left < positions_per_range ? left : positions_per_range
    };
}

// The order of channels where none has moved.
struct SameChannels {
    constexpr int64_t operator()(int64_t c) const { return c; }
};

// Reads a range of a map in any layout: sink(position, vector of the block's channels). Channel c of the block is channel
// channel(c) of the map.
template <class T, class Sink, class Channel = SameChannels>
inline void read_block(
    const FeatureMap& map, const T* from, BlockRange range, const Sink& sink, const Channel& channel = {}
) {
    constexpr bool same = std::is_same_v<Channel, SameChannels>;
    using A = accumulator<T>;
    constexpr int L = lanes<A>;
    const int64_t first = range.block * L, end = range.begin + range.count;
    const int width = static_cast<int>(map.channels - first < L ? map.channels - first : L);
    const T* image = from + range.image * map.channels * map.positions;
    int64_t channels[L] = {};
    for (int i = 0; i < width && !same; ++i) channels[i] = channel(first + i);
    if (map.layout == Layout::channels_last) {
        for (int64_t p = range.begin; p < end; ++p) {
            const T* at = image + p * map.channels;
            if constexpr (same) {
                at += first;
                sink(p, width == L ? load(at, Full<T>{}) : load(at, width));
            } else {
                T lane[L] = {};
                for (int i = 0; i < width; ++i) lane[i] = at[channels[i]];
                sink(p, load(lane, Full<T>{}));
            }
        }
        return;
    }
    for (int64_t p = range.begin; p < end; p += L) {
        const int height = static_cast<int>(end - p < L ? end - p : L);
        const auto take = [&](int i, vec<A> value) { sink(p + i, value); };
        if constexpr (same) {
            transpose_rows(image + first * map.positions + p, map.positions, width, height, take);
        } else {
            const auto row = [&](int i) {
                const T* const at = image + channels[i] * map.positions + p;
                return height == L ? load(at, Full<T>{}) : load(at, height);
            };
            transpose_square<A>(width, height, row, take);
        }
    }
}

// Writes a range of a map in any layout from source(position); channels as above.
template <class T, class Source, class Channel = SameChannels>
inline void write_block(const FeatureMap& map, T* to, BlockRange range, const Source& source, const Channel& channel = {}) {
    constexpr bool same = std::is_same_v<Channel, SameChannels>;
    using A = accumulator<T>;
    constexpr int L = lanes<A>;
    const int64_t first = range.block * L, end = range.begin + range.count;
    const int width = static_cast<int>(map.channels - first < L ? map.channels - first : L);
    T* image = to + range.image * map.channels * map.positions;
    int64_t channels[L] = {};
    for (int i = 0; i < width; ++i) channels[i] = channel(first + i);
    if (map.layout == Layout::channels_last) {
        for (int64_t p = range.begin; p < end; ++p) {
            T* at = image + p * map.channels;
            if constexpr (same) {
                at += first;
                width == L ? store(at, source(p), Full<T>{}) : store(at, source(p), width);
            } else {
                T lane[L];
                store(lane, source(p), Full<T>{});
                for (int i = 0; i < width; ++i) at[channels[i]] = lane[i];
            }
        }
        return;
    }
    for (int64_t p = range.begin; p < end; p += L) {
        const int height = static_cast<int>(end - p < L ? end - p : L);
        transpose_square<A>(
            height, width, [&](int i) { return source(p + i); },
            [&](int i, vec<A> value) {
                T* const at = image + channels[i] * map.positions + p;
                height == L ? store(at, value, Full<T>{}) : store(at, value, height);
            }
        );
    }
}

// load_tile (tile.h) from a blocked map.
template <class A>
inline void load_tile(const BlockedMap<A>& map, TileRange range, int64_t columns, A* tile, ChannelShuffle shuffle) {
    constexpr int L = lanes<A>;
    for (int64_t c = 0; c < map.channels; ++c)
        for (int64_t i = range.count; i < columns; ++i) tile[c * columns + i] = 0;
    for (int64_t block = 0; block < map.blocks(); ++block) {
        const int width = static_cast<int>(map.channels - block * L < L ? map.channels - block * L : L);
        for (int64_t p = 0; p < range.count; p += L) {
            const int height = static_cast<int>(range.count - p < L ? range.count - p : L);
            transpose_square<A>(
                height, width,
                [&](int i) {
                    const int64_t at = range.begin + p + i;
                    const A* const from = map.block(at / map.positions(), block) + at % map.positions() * L;
                    prefetch(from + columns * L, L);  // the next tile
                    return load(from, Full<A>{});
                },
                [&](int i, vec<A> value) { store(tile + shuffle.from(block * L + i) * columns + p, value, Full<A>{}); }
            );
        }
    }
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
