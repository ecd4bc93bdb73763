// The two layers of the channel gate's perceptron for a tile of positions, on the processor's matrix registers
// (matrix_registers.h): see gate_layers.h.
#pragma once

#include "cpu/matrix/matrix_registers.h"
#include "cpu/operators/gate_tile.h"
#include "cpu/team.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

template <class A>
class GateLayers {
    static constexpr int L = lanes<A>, runs = block_vectors;
    static_assert(std::is_same_v<A, float> && L == matrix_lanes && runs == 4);

   public:
    struct Registers : MatrixRegisters {
        Registers() : MatrixRegisters(matrix_rows) {}
    };

    GateLayers(const ChannelGateForward& p, const Perceptron<A>& mlp, A* packed)
        : C_(p.map.channels),
          h_(p.hidden),
          mlp_(mlp),
          shuffle_{p.groups, C_ / p.groups},
          w1_(reinterpret_cast<bfloat16*>(packed)),
          w2_(w1_ + blocks_(h_) * factors_(C_) * matrix_elements),
          b2_(packed + factors_size_(C_, h_)) {}
    static int64_t packed_size(int64_t C, int64_t h) { return factors_size_(C, h) + blocks_(C) * L; }
    static int64_t scratch_size(int64_t C, int64_t h) {
        return (factors_(C) + factors_(h)) * runs * matrix_elements / 2 + sums_size_;
    }

    // Fills `packed` with left factors: [block of outputs][32 inputs][output][input], the second layer's outputs shuffled.
    void pack(const Team& team) const {
        const auto pack_row = [&](const A* from, int64_t inputs, int64_t output, bfloat16* to) {
            for (int64_t i = 0; i < factors_(inputs); ++i) {
                const auto some = [&](int64_t first) {
                    const int64_t left = from ? inputs - first : 0;
                    return left >= L ? load(from + first, Full<A>{})
                                     : load(from + first, left > 0 ? static_cast<int>(left) : 0);
                };
                bfloat16* const at = to + (output / L * factors_(inputs) + i) * matrix_elements + output % L * matrix_depth;
                store_rounded(at, some(i * matrix_depth), some(i * matrix_depth + L));
            }
        };
        team.for_each(blocks_(h_) * L, [&](int64_t i) { pack_row(i < h_ ? mlp_.w1 + i * C_ : nullptr, C_, i, w1_); });
        team.for_each(blocks_(C_) * L, [&](int64_t d) {
            const int64_t c = d < C_ ? shuffle_.from(d) : 0;
            pack_row(d < C_ ? mlp_.w2 + c * h_ : nullptr, h_, d, w2_);
            b2_[d] = d < C_ ? mlp_.b2[c] : 0;
        });
    }
    void first(const A* x, int64_t stride, int64_t columns, A* scratch) const {
        const Parts parts = parts_(scratch);
        const auto row = [&](int64_t c, int64_t column) {
            return c < C_ && column < columns ? load(x + c * stride + column, Full<A>{}) : vec<A>{};
        };
        for (int64_t c = 0; c < factors_(C_) * matrix_depth; c += 2)
            for (int run = 0; run < runs; ++run)
                store_pairs_rounded(pair_(parts.x, c, run), row(c, run * L), row(c + 1, run * L));
        for (int64_t block = 0; block < blocks_(h_); ++block) {
            multiply_(w1_ + block * factors_(C_) * matrix_elements, parts.x, factors_(C_), parts.sums);
            for (int64_t i = 0; i < L; i += 2)
                for (int run = 0; run < runs; ++run) {
                    const auto hidden = [&](int64_t j) {
                        const int64_t unit = block * L + j;
                        const vec<A> sum = load(parts.sums + (j * runs + run) * L, Full<A>{});
                        return unit < h_ ? relu<A>(sum + mlp_.b1[unit]) : vec<A>{};
                    };
                    store_pairs_rounded(pair_(parts.hidden, block * L + i, run), hidden(i), hidden(i + 1));
                }
        }
        if (blocks_(h_) % 2)  // half a factor
            for (int64_t i = blocks_(h_) * L; i < factors_(h_) * matrix_depth; i += 2)
                for (int run = 0; run < runs; ++run) store_pairs_rounded(pair_(parts.hidden, i, run), vec<A>{}, vec<A>{});
    }
    void second(int64_t block, A* scratch) const {
        const Parts parts = parts_(scratch);
        multiply_(w2_ + block * factors_(h_) * matrix_elements, parts.hidden, factors_(h_), parts.sums);
    }
    void square(int64_t block, int64_t column, int64_t, const A* scratch, vec<A>* gate) const {
        const A* const sums = parts_(const_cast<A*>(scratch)).sums + column;
        for (int i = 0; i < L; ++i) gate[i] = load(sums + i * runs * L, Full<A>{}) + b2_[block * L + i];
    }

   private:
    static constexpr int64_t sums_size_ = int64_t(runs) * L * L;
    static int64_t blocks_(int64_t channels) { return (channels + L - 1) / L; }
    static int64_t factors_(int64_t channels) { return (channels + matrix_depth - 1) / matrix_depth; }
    static int64_t factors_size_(int64_t C, int64_t h) {
        return (blocks_(h) * factors_(C) + blocks_(C) * factors_(h)) * matrix_elements / 2;
    }
    // Right factors of the tile, [32 channels][run][pair of channels][position][channel of the two], and sums,
    // [channel][position].
    struct Parts {
        bfloat16 *x, *hidden;
        A* sums;
    };
    Parts parts_(A* scratch) const {
        A* const hidden = scratch + factors_(C_) * runs * matrix_elements / 2;
        A* const sums = hidden + factors_(h_) * runs * matrix_elements / 2;
        return {reinterpret_cast<bfloat16*>(scratch), reinterpret_cast<bfloat16*>(hidden), sums};
    }
    static bfloat16* pair_(bfloat16* factors, int64_t channel, int64_t run) {
        const int64_t factor = channel / matrix_depth * runs + run;
        return factors + factor * matrix_elements + channel % matrix_depth / 2 * 2 * L;
    }
    static void multiply_(const bfloat16* left, const bfloat16* right, int64_t factors, A* sums) {
        constexpr std::make_integer_sequence<int, runs> all;
        for_each_number(all, [](auto i) { zero_register<i>(); });
        for (int64_t factor = 0; factor < factors; ++factor, left += matrix_elements) {
            load_register<4>(left, matrix_depth);
            for_each_number(all, [&](auto i) {
                load_register<5 + i % 3>(right, matrix_depth);
                multiply_registers<i, 4, 5 + i % 3>();
                right += matrix_elements;
            });
        }
        for_each_number(all, [&](auto i) { store_register<i>(sums + i * L, runs * L); });
    }

    int64_t C_, h_;
    const Perceptron<A>& mlp_;
    ChannelShuffle shuffle_;
    bfloat16 *w1_, *w2_;
    A* b2_;
};

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
