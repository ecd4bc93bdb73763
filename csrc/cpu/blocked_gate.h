// The channel gate from a map in any layout into the blocked layout (blocked.h), where its second layer computes a square at
// a time: as many positions as a vector has lanes of one block of the shuffled channels.
#pragma once

#include <algorithm>

#include "blocked.h"
#include "gate_tile.h"
#include "team.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

template <class T>
class BlockedGate {
    using A = accumulator<T>;
    static constexpr int L = lanes<A>;

   public:
    // `packed` has packed_size(C, h) elements, to be filled by `pack`.
    BlockedGate(const ChannelGateForward& p, const Perceptron<A>& mlp, A* packed)
        : p_(p), mlp_(mlp), shuffle_{p.groups, p.map.channels / p.groups}, w2_(packed) {}
    static int64_t packed_size(int64_t C, int64_t h) { return (C + L - 1) / L * (h + 1) * L; }
    static int64_t scratch_size(int64_t C, int64_t h) {
        return Pieces<A>::size(C * tile_columns<A>) + Pieces<A>::size(h * tile_columns<A>);
    }

    // For every block of shuffled channels the weights of the second layer, [hidden][lane], and behind them the bias.
    void pack(const Team& team) const {
        const int64_t C = p_.map.channels, h = p_.hidden;
        team.for_each((C + L - 1) / L, [&](int64_t block) {
            A* const to = packed_(block);
            for (int64_t i = 0; i < L; ++i) {
                const int64_t d = block * L + i, c = d < C ? shuffle_.from(d) : 0;
                for (int64_t k = 0; k < h; ++k) to[k * L + i] = d < C ? mlp_.w2[c * h + k] : 0;
                to[h * L + i] = d < C ? mlp_.b2[c] : 0;
            }
        });
    }

    // Images first ... first + count into z, of which image 0 is `first`.
    void run(const Team& team, int64_t first, int64_t count, const BlockedMap<A>& z, A* scratch) const {
        const int64_t C = p_.map.channels, positions = p_.map.positions, total = count * positions;
        const T* const from = static_cast<const T*>(p_.x) + first * C * positions;
        A* const tile = scratch;
        A* const hidden = scratch + Pieces<A>::size(C * tile_columns<A>);
        const auto [begin, end] = team.share((total + L - 1) / L);
        for_each_tile<A>(begin, end, total, block_vectors, [&](TileRange range, int64_t columns) {
            const int64_t image = range.begin / positions, at = range.begin % positions;
            if constexpr (std::is_same_v<T, A>) {
                if (p_.map.layout == Layout::contiguous && at + columns <= positions) {
                    run_tile_(range, columns, from + image * C * positions + at, positions, z, hidden);
                    return;
                }
            }
            load_tile(p_.map, from, range, columns, tile, ChannelShuffle{1, C});
            run_tile_(range, columns, tile, columns, z, hidden);
        });
    }

   private:
    A* packed_(int64_t block) const { return w2_ + block * (p_.hidden + 1) * L; }

    // x: channel c of the tile's positions at x + c * stride
    void run_tile_(TileRange range, int64_t columns, const A* x, int64_t stride, const BlockedMap<A>& z, A* hidden) const {
        first_layer(mlp_, p_.map.channels, p_.hidden, columns, x, stride, hidden);
        for (int64_t block = 0; block < z.blocks(); ++block)
            for (int64_t column = 0; column < range.count; column += L)
                p_.sigmoid ? run_square_<true>(range, columns, block, column, x, stride, z, hidden)
                           : run_square_<false>(range, columns, block, column, x, stride, z, hidden);
    }

    template <bool with_sigmoid>
    void run_square_(
        TileRange range, int64_t columns, int64_t block, int64_t column, const A* x, int64_t stride, const BlockedMap<A>& z,
        const A* hidden
    ) const {
        const A* const w2 = packed_(block);
        const A* const b2 = w2 + p_.hidden * L;
        vec<A> gate[L];
        for (int i = 0; i < L; ++i) gate[i] = broadcast(b2[i]);
        for (int64_t k = 0; k < p_.hidden; ++k) {
            const vec<A> value = load(hidden + k * columns + column, Full<A>{});
            for (int i = 0; i < L; ++i) gate[i] += w2[k * L + i] * value;
        }
        const int64_t channel = block * L, positions = z.positions();
        const Sigmoid<A> sigmoid;
        const auto row = [&](int i) {
            const A* const at = x + shuffle_.from(channel + i) * stride + column;
            prefetch(at + columns, L);  // of the next tile
            return load(at, Full<A>{}) * (with_sigmoid ? sigmoid(gate[i]) : gate[i]);
        };
        const int64_t begin = range.begin + column, image = begin / positions, at = begin % positions;
        const int64_t width = std::min<int64_t>(L, range.count - column);
        if (at + width <= positions) {
            A* const to = z.block(image, block) + at * L;
            transpose_square<A>(p_.map.channels - channel, width, row, [&](int i, vec<A> value) {
                store(to + i * L, value, Full<A>{});
            });
        } else {
            transpose_square<A>(p_.map.channels - channel, width, row, [&](int i, vec<A> value) {
                const int64_t q = begin + i;
                store(z.block(q / positions, block) + q % positions * L, value, Full<A>{});
            });
        }
    }

    const ChannelGateForward& p_;
    const Perceptron<A>& mlp_;
    ChannelShuffle shuffle_;
    A* w2_;
};

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
