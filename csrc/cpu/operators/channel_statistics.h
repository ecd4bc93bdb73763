// Statistics and sums per channel that every thread collects over its share of a map in the blocked layout (blocked.h).
#pragma once

#include <cstdint>

#include "cpu/vector.h"
#include "cpu/workspace.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// Mean and sum of squared deviations of every channel (Chan, Golub, LeVeque 1979).
template <class A>
class Statistics {
    static constexpr int L = lanes<A>;

   public:
    // `memory` has size(blocks) elements; `blocks` is the same in every use of that memory, so that the counts have memory
    // of their type.
    Statistics(A* memory, int64_t blocks)
        : values_(memory), count_(reinterpret_cast<int64_t*>(memory + Pieces<A>::size(blocks * 2 * L))) {}
    static int64_t size(int64_t blocks) {
        constexpr int64_t per_count = (sizeof(int64_t) + sizeof(A) - 1) / sizeof(A);
        return Pieces<A>::size(blocks * 2 * L) + Pieces<A>::size(blocks * per_count);
    }
    // Of the first `blocks` blocks.
    void clear(int64_t blocks) const {
        for (int64_t i = 0; i < blocks * 2 * L; ++i) values_[i] = 0;
        for (int64_t i = 0; i < blocks; ++i) count_[i] = 0;
    }
    // A run of values, `step` elements apart.
    void add_run(int64_t block, int64_t n, const A* run, int64_t step) const {
        vec<A> sum{}, deviations{};
        for (int64_t i = 0; i < n; ++i) sum += load(run + i * step, Full<A>{});
        const vec<A> mean = sum / static_cast<A>(n);
        for (int64_t i = 0; i < n; ++i) {
            const vec<A> d = load(run + i * step, Full<A>{}) - mean;
            deviations += d * d;
        }
        add_(block, n, mean, deviations);
    }
    void add(const Statistics& other, int64_t block) const {
        const A* const from = other.values_ + block * 2 * L;
        add_(block, other.count_[block], load(from, Full<A>{}), load(from + L, Full<A>{}));
    }
    A mean(int64_t channel) const { return values_[channel / L * 2 * L + channel % L]; }
    A biased_variance(int64_t channel) const {
        return values_[channel / L * 2 * L + L + channel % L] / static_cast<A>(count_[channel / L]);
    }

   private:
    void add_(int64_t block, int64_t n, vec<A> mean, vec<A> deviations) const {
        A* const at = values_ + block * 2 * L;
        const int64_t total = count_[block] + n;
        if (total == 0) return;
        const vec<A> delta = mean - load(at, Full<A>{});
        const A share = static_cast<A>(n) / static_cast<A>(total);
        const A weight = share * static_cast<A>(count_[block]);
        store(at, load(at, Full<A>{}) + delta * share, Full<A>{});
        store(at + L, load(at + L, Full<A>{}) + deviations + delta * delta * weight, Full<A>{});
        count_[block] = total;
    }

    A* values_;       // [block][mean, deviations][lane]
    int64_t* count_;  // [block]
};

// Sums of two quantities per channel, in float64.
template <class A>
class ChannelSums {
    static constexpr int L = lanes<A>;

   public:
    // `memory` has size(blocks) elements.
    explicit ChannelSums(A* memory) : values_(reinterpret_cast<double*>(memory)) {}
    static int64_t size(int64_t blocks) {
        return Pieces<A>::size(blocks * 2 * L * static_cast<int64_t>(sizeof(double) / sizeof(A)));
    }
    void clear(int64_t blocks) const {
        for (int64_t i = 0; i < blocks * 2 * L; ++i) values_[i] = 0;
    }
    void add(int64_t block, vec<A> first, vec<A> second) const {
        double* const at = values_ + block * 2 * L;
        for (int i = 0; i < L; ++i) at[i] += static_cast<double>(first[i]);
        for (int i = 0; i < L; ++i) at[L + i] += static_cast<double>(second[i]);
    }
    double first(int64_t channel) const { return values_[channel / L * 2 * L + channel % L]; }
    double second(int64_t channel) const { return values_[channel / L * 2 * L + L + channel % L]; }

   private:
    double* values_;  // [block][two][lane]
};

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
