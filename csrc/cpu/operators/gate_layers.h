// The two layers of the channel gate's perceptron for a tile of positions, in vectors. The second one is computed a square
// at a time: as many positions as a vector has lanes of one block of the shuffled channels.
#pragma once

#include "cpu/operators/gate_tile.h"
#include "cpu/team.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

template <class A>
class GateLayers {
    static constexpr int L = lanes<A>;

   public:
    // State that a thread sets up before it computes: none.
    struct Registers {
        Registers() {}
    };

    // `packed` has packed_size(C, h) elements, to be filled by `pack`.
    GateLayers(const ChannelGateForward& p, const Perceptron<A>& mlp, A* packed)
        : C_(p.map.channels), h_(p.hidden), mlp_(mlp), shuffle_{p.groups, C_ / p.groups}, packed_(packed) {}
    static int64_t packed_size(int64_t C, int64_t h) { return (C + L - 1) / L * (h + 1) * L; }
    static int64_t scratch_size(int64_t, int64_t h) { return Pieces<A>::size(h * tile_columns<A>); }

    // Fills `packed`: for every block of shuffled channels, the second layer's weights, [hidden][lane], then its bias.
    void pack(const Team& team) const {
        team.for_each((C_ + L - 1) / L, [&](int64_t block) {
            A* const to = block_(block);
            for (int64_t i = 0; i < L; ++i) {
                const int64_t d = block * L + i, c = d < C_ ? shuffle_.from(d) : 0;
                for (int64_t k = 0; k < h_; ++k) to[k * L + i] = d < C_ ? mlp_.w2[c * h_ + k] : 0;
                to[h_ * L + i] = d < C_ ? mlp_.b2[c] : 0;
            }
        });
    }
    // The first layer. Channel c of the tile's positions is at x + c * stride.
    void first(const A* x, int64_t stride, int64_t columns, A* hidden) const {
        first_layer(mlp_, C_, h_, columns, x, stride, hidden);
    }
    // Called before the squares of a block: there is nothing to prepare.
    void second(int64_t, A*) const {}
    // One square of the second layer: the gate before its activation, a vector for each channel of the block.
    void square(int64_t block, int64_t column, int64_t columns, const A* hidden, vec<A>* gate) const {
        const A* const w2 = block_(block);
        const A* const b2 = w2 + h_ * L;
        for (int i = 0; i < L; ++i) gate[i] = broadcast(b2[i]);
        for (int64_t k = 0; k < h_; ++k) {
            const vec<A> value = load(hidden + k * columns + column, Full<A>{});
            for (int i = 0; i < L; ++i) gate[i] += w2[k * L + i] * value;
        }
    }

   private:
    A* block_(int64_t block) const { return packed_ + block * (h_ + 1) * L; }

    int64_t C_, h_;
    const Perceptron<A>& mlp_;
    ChannelShuffle shuffle_;
    A* packed_;
};

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
