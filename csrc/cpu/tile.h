// A tile: some positions of a feature map, all channels, as a matrix [channels][positions] of accumulators, whatever the
// map's dtype and layout. Positions are counted through the whole batch, so small maps fill tiles too.
#pragma once

#include <cstdint>

#include "cpu/vector.h"
#include "cpu/workspace.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// The channel shuffle: channel c of the plain tensor is channel to(c) of the shuffled one; one group changes nothing.
struct ChannelShuffle {
    int64_t groups, width;  // channels = groups * width
    int64_t to(int64_t c) const { return (c % width) * groups + c / width; }
    int64_t from(int64_t d) const { return (d % groups) * width + d / groups; }
};

struct TileRange {
    int64_t begin, count;  // positions, counted through the batch
};

// Cuts vectors begin ... end of positions into tiles of about the same width, at most `widest` vectors. Calls body(range,
// columns) for each: of the `columns` columns, whole vectors, those beyond range.count hold no position.
template <class A, class Body>
inline void for_each_tile(int64_t begin, int64_t end, int64_t positions, int64_t widest, const Body& body) {
    constexpr int64_t L = lanes<A>;
    const int64_t tiles = (end - begin + widest - 1) / widest;
    for (int64_t i = 0; i < tiles; ++i) {
        const int64_t from = begin + (end - begin) * i / tiles, to = begin + (end - begin) * (i + 1) / tiles;
        body(TileRange{from * L, (to * L < positions ? to * L : positions) - from * L}, (to - from) * L);
    }
}

// Calls run(column, offset in the map, count) for every part of a tile that lies in one image: its first column in the tile
// and the offset of its first position in channel 0.
template <class Run>
inline void for_each_run(const FeatureMap& map, TileRange range, const Run& run) {
    for (int64_t done = 0; done < range.count;) {
        const int64_t q = range.begin + done, image = q / map.positions, p = q % map.positions;
        const int64_t left = map.positions - p, count = left < range.count - done ? left : range.count - done;
        run(done, image * map.channels * map.positions + p, count);
        done += count;
    }
}

// tile[c][column] = map(shuffle.to(c), begin + column); columns from range.count to `columns` become zero.
template <class T>
inline void load_tile(
    const FeatureMap& map, const T* from, TileRange range, int64_t columns, accumulator<T>* tile, ChannelShuffle shuffle
) {
    using A = accumulator<T>;
    constexpr int L = lanes<A>;
    for (int64_t c = 0; c < map.channels; ++c)
        for (int64_t i = range.count; i < columns; ++i) tile[c * columns + i] = 0;
    if (map.layout == Layout::contiguous) {
        for_each_run(map, range, [&](int64_t column, int64_t offset, int64_t count) {
            for (int64_t c = 0; c < map.channels; ++c) {
                const T* const row = from + offset + shuffle.to(c) * map.positions;
                prefetch(row + count, count);  // the next tile, unless the image ends
                load_row(row, count, tile + c * columns + column);
            }
        });
        return;
    }
    // channels_last: squares of lanes x lanes, transposed in registers. The rows of a square are permuted when it is stored.
    for (int64_t p = 0; p < range.count; p += L) {
        const int height = static_cast<int>(range.count - p < L ? range.count - p : L);
        for (int64_t c = 0; c < map.channels; c += L) {
            const int width = static_cast<int>(map.channels - c < L ? map.channels - c : L);
            const T* const at = from + (range.begin + p) * map.channels + c;
            transpose_rows(at, map.channels, height, width, [&](int i, vec<A> value) {
                store(tile + shuffle.from(c + i) * columns + p, value, Full<A>{});
            });
        }
    }
}

// map(shuffle.to(c), begin + column) = tile[c][column] for the columns below range.count.
template <class T>
inline void store_tile(
    const FeatureMap& map, T* to, TileRange range, int64_t columns, const accumulator<T>* tile, ChannelShuffle shuffle
) {
    using A = accumulator<T>;
    constexpr int L = lanes<A>;
    if (map.layout == Layout::contiguous) {
        for_each_run(map, range, [&](int64_t column, int64_t offset, int64_t count) {
            for (int64_t c = 0; c < map.channels; ++c) {
                T* const row = to + offset + shuffle.to(c) * map.positions;
                prefetch_to_write(row + count, count);  // the next tile
                store_row(row, count, tile + c * columns + column);
            }
        });
        return;
    }
    for (int64_t p = 0; p < range.count; p += L) {
        const int height = static_cast<int>(range.count - p < L ? range.count - p : L);
        for (int64_t c = 0; c < map.channels; c += L) {
            const int width = static_cast<int>(map.channels - c < L ? map.channels - c : L);
            T* const at = to + (range.begin + p) * map.channels + c;
            transpose_square<A>(
                width, height, [&](int i) { return load(tile + shuffle.from(c + i) * columns + p, Full<A>{}); },
                [&](int i, vec<A> value) {
                    T* const row = at + i * map.channels;
                    width == L ? store(row, value, Full<T>{}) : store(row, value, width);
                }
            );
        }
    }
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
