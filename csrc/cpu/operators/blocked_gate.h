// The channel gate from a map in any layout into the blocked layout (blocked.h).
#pragma once

#include <algorithm>

#include "cpu/blocked.h"
#include "cpu/team.h"
#ifdef GCSA_EXT_MATRIX_REGISTERS
#include "cpu/matrix/matrix_gate_layers.h"
#else
#include "cpu/operators/gate_layers.h"
#endif

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

template <class T>
class BlockedGate {
    using A = accumulator<T>;
    static constexpr int L = lanes<A>;

   public:
    // `packed` has packed_size(C, h) elements, to be filled by `pack`.
    BlockedGate(const ChannelGateForward& p, const Perceptron<A>& mlp, A* packed)
        : p_(p), layers_(p, mlp, packed), shuffle_{p.groups, p.map.channels / p.groups} {}
    static int64_t packed_size(int64_t C, int64_t h) { return GateLayers<A>::packed_size(C, h); }
    static int64_t scratch_size(int64_t C, int64_t h) {
        return Pieces<A>::size(C * tile_columns<A>) + GateLayers<A>::scratch_size(C, h);
    }
    void pack(const Team& team) const { layers_.pack(team); }

    // Images first ... first + count into z, of which image 0 is `first`.
    void run(const Team& team, int64_t first, int64_t count, const BlockedMap<A>& z, A* scratch) const {
        const int64_t C = p_.map.channels, positions = p_.map.positions, total = count * positions;
        const T* const from = static_cast<const T*>(p_.x) + first * C * positions;
        A* const tile = scratch;
        A* const layer_scratch = scratch + Pieces<A>::size(C * tile_columns<A>);
        const typename GateLayers<A>::Registers registers;
        const auto [begin, end] = team.share((total + L - 1) / L);
        for_each_tile<A>(begin, end, total, block_vectors, [&](TileRange range, int64_t columns) {
            const int64_t image = range.begin / positions, at = range.begin % positions;
            if constexpr (std::is_same_v<T, A>) {
                if (p_.map.layout == Layout::contiguous && at + columns <= positions) {
                    run_tile_(range, columns, from + image * C * positions + at, positions, z, layer_scratch);
                    return;
                }
            }
            load_tile(p_.map, from, range, columns, tile, ChannelShuffle{1, C});
            run_tile_(range, columns, tile, columns, z, layer_scratch);
        });
    }

   private:
    // x: channel c of the tile's positions at x + c * stride
    void run_tile_(
        TileRange range, int64_t columns, const A* x, int64_t stride, const BlockedMap<A>& z, A* layer_scratch
    ) const {
        layers_.first(x, stride, columns, layer_scratch);
        for (int64_t block = 0; block < z.blocks(); ++block) {
            layers_.second(block, layer_scratch);
            for (int64_t column = 0; column < range.count; column += L)
                p_.sigmoid ? run_square_<true>(range, columns, block, column, x, stride, z, layer_scratch)
                           : run_square_<false>(range, columns, block, column, x, stride, z, layer_scratch);
        }
    }

    template <bool with_sigmoid>
    void run_square_(
        TileRange range, int64_t columns, int64_t block, int64_t column, const A* x, int64_t stride, const BlockedMap<A>& z,
        const A* layer_scratch
    ) const {
        vec<A> gate[L];
        layers_.square(block, column, columns, layer_scratch, gate);
        const int64_t channel = block * L, positions = z.positions();
        const Sigmoid<A> sigmoid;
        const auto row = [&](int i) {
            const A* const at = x + shuffle_.from(channel + i) * stride + column;
            prefetch(at + columns, L);  // the next tile
            return load(at, Full<A>{}) * (with_sigmoid ? sigmoid(gate[i]) : gate[i]);
        };
        const int64_t begin = range.begin + column, image = begin / positions, at = begin % positions;
        const int64_t width = std::min<int64_t>(L, range.count - column);
        if (at + width <= positions) {
            A* const to = z.block(image, block) + at * L;
            transpose_square<A>(p_.map.channels - channel, width, row, [&](int i, vec<A> value) {
                prefetch_to_write(to + (columns + i) * L, L);
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
    GateLayers<A> layers_;
    ChannelShuffle shuffle_;
};

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
