// The attention in evaluation: statistics are given and nothing is saved. Some images at a time go from x to the result, so
// that everything between stays in the cache.
#pragma once

#include "cpu/elastic_team.h"
#include "cpu/operators/gcsa_affine.h"
#include "memory/scratch.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// How many images at a time, and the memory for them, in elements.
template <class T>
struct InferencePlan : ForwardPlan<T> {
    using A = accumulator<T>;
    using S = Pieces<A>;

    int64_t chunk;  // images at a time
    // Where a block of channels takes the same memory in both layouts, the gated map lies in the result's place, so that
    // less memory goes through the cache. A block of the result is then collected elsewhere until it is complete.
    bool z_in_out;
    // Where the spatial gate is shuffled, a block of the result takes the place of no block of the gated map: it is
    // collected too or, where blocks are not completed one by one, the result has a map for itself.
    bool collects;
    int64_t z_size, result_size, a1_size;             // of a team
    int64_t collected_size, per_thread, packed_size;  // of a thread, of a thread in all, of all threads together

    InferencePlan(const GcsaForward& p, const GcsaShape<T>& s, bool shuffles) : ForwardPlan<T>(p, s) {
        constexpr int L = lanes<A>;
        chunk = std::min(s.N, std::max(this->conv1.images_per_group(), this->conv2.images_per_group()));
        if (this->split_batch) chunk = std::min(chunk, (s.N + s.threads - 1) / s.threads);
        const bool by_block = this->conv2.block_by_block(chunk);
        z_in_out = std::is_same_v<T, A> && p.gate.map.layout == Layout::contiguous && s.C % L == 0 && by_block && !shuffles;
        collects = z_in_out || (by_block && shuffles);
        z_size = z_in_out ? 0 : S::size(s.map_size(s.C, chunk));
        result_size = shuffles && !collects ? z_size : 0;
        a1_size = S::size(s.map_size(s.m, chunk));
        collected_size = collects ? S::size(s.map_size(L, 1)) : 0;
        per_thread = collected_size + S::size(std::max(this->scratch_size(), BlockedGate<T>::scratch_size(s.C, s.h)));
        packed_size = S::size(BlockedGate<T>::packed_size(s.C, s.h));
    }
    int64_t per_team() const { return z_size + result_size + a1_size + this->workspace_size(); }
};

// out[i] = relu(normalised(from[i * step] + bias)) for a run of positions of one block of channels.
template <class A>
inline void relu_run(const typename Affine<A>::Block& affine, int64_t count, const A* from, int64_t step, A* out) {
    for (int64_t i = 0; i < count; ++i) {
        const vec<A> value = affine.biased(load(from + i * step, Full<A>{}));
        store(out + i * lanes<A>, relu<A>(affine.normalised(value)), Full<A>{});
    }
}
// out[i] = gated(i) * activation(normalised(from[i * step] + bias)); gated may read from out.
template <class A, class Gated>
inline void gate_run(
    const typename Affine<A>::Block& affine, bool with_sigmoid, int64_t count, const A* from, int64_t step,
    const Gated& gated, A* out
) {
    with_constant(with_sigmoid, [&](auto with) {
        const Sigmoid<A> sigmoid;
        for (int64_t i = 0; i < count; ++i) {
            const vec<A> value = affine.normalised(affine.biased(load(from + i * step, Full<A>{})));
            store(out + i * lanes<A>, gated(i) * (with ? sigmoid(value) : value), Full<A>{});
        }
    });
}

template <class T>
void infer(const GcsaForward& p) {
    using A = accumulator<T>;
    constexpr int L = lanes<A>;
    const GcsaShape<T> s(p);
    const GateShuffle<A> shuffle(s.C, p.gate_groups, s.P);
    const InferencePlan<T> plan(p, s, shuffle.moves());
    const PerceptronWeights<T> weights(p.gate);
    const int64_t per_team = plan.per_team(), per_thread = plan.per_thread;
    const Scratch memory(
        (Affine<A>::size(s.m) + Affine<A>::size(s.C) + plan.packed_size + plan.weights_size() + plan.teams * per_team +
         s.threads * per_thread) *
        static_cast<int64_t>(sizeof(A))
    );
    Pieces<A> pieces(static_cast<A*>(memory.data()));
    const Affine<A> affine1(pieces, s.m), affine2(pieces, s.C);
    const BlockedGate<T> gate(p.gate, weights.get(), pieces.take(plan.packed_size));
    A* const expanded1 = pieces.take(plan.weights1.size());
    A* const expanded2 = pieces.take(plan.weights2.size());
    A* const team_memory = pieces.take(plan.teams * per_team);
    A* const thread_memory = pieces.take(s.threads * per_thread);
    affine1.set_bias(p.conv1);
    affine2.set_bias(p.conv2);
    affine1.set_norm(p.norm1);
    affine2.set_norm(p.norm2);
    const Taps<A> taps1 = plan.weights1.taps(expanded1), taps2 = plan.weights2.taps(expanded2);

    elastic_team(s.threads, [&](const Team& all) {
        const Team team = plan.team(all);
        A* const collected = thread_memory + all.rank * per_thread;
        A* const scratch = collected + plan.collected_size;
        A* const z_memory = team_memory + plan.team_number(all) * per_team;
        A* const result_memory = z_memory + plan.z_size;
        const BlockedMap<A> a1 = s.map(result_memory + plan.result_size, s.m);
        A* const spectra = a1.data + plan.a1_size;

        gate.pack(all);
        plan.weights1.expand(all, expanded1);
        plan.weights2.expand(all, expanded2);
        all.barrier();
        const auto [begin, end] = plan.images(all, s.N);
        for (int64_t first = begin; first < end; first += plan.chunk) {
            const int64_t count = std::min(plan.chunk, end - first);
            T* const out = static_cast<T*>(p.gate.out) + first * s.C * s.P;
            const BlockedMap<A> z = s.map(plan.z_in_out ? reinterpret_cast<A*>(out) : z_memory, s.C);
            const BlockedMap<A> results = plan.result_size ? s.map(result_memory, s.C) : z;
            const auto result = [&](int64_t image, int64_t block) {
                return plan.collects ? collected : results.block(image, block);
            };
            gate.run(team, first, count, z, scratch);
            team.barrier();
            convolve(
                team, plan.conv1, z, plan.conv1.images(0, count), taps1, spectra, scratch,
                [&](int64_t image, int64_t block, int64_t at, int64_t n, const A* run, int64_t step) {
                    relu_run<A>(affine1.block(block), n, run, step, a1.block(image, block) + at * L);
                },
                NoFinish{}
            );
            convolve(
                team, plan.conv2, a1, plan.conv2.images(0, count), taps2, spectra, scratch,
                [&](int64_t image, int64_t block, int64_t at, int64_t n, const A* run, int64_t step) {
                    const auto affine = affine2.block(block);
                    A* const to = result(image, block) + at * L;
                    if (shuffle.moves()) {
                        const A* const gated = z.block(image, 0);
                        const auto value = [&](int64_t i) { return shuffle.gather(gated, block, at + i); };
                        gate_run<A>(affine, p.gate_sigmoid, n, run, step, value, to);
                    } else {
                        const A* const gated = z.block(image, block) + at * L;
                        const auto value = [&](int64_t i) { return load(gated + i * L, Full<A>{}); };
                        gate_run<A>(affine, p.gate_sigmoid, n, run, step, value, to);
                    }
                },
                [&](BlockRange range) {
                    const A* const from = result(range.image, range.block);
                    const auto value = [&](int64_t at) { return load(from + at * L, Full<A>{}); };
                    if (shuffle.moves())
                        write_block<T>(p.gate.map, out, range, value, [&](int64_t d) { return shuffle.channel(d); });
                    else
                        write_block<T>(p.gate.map, out, range, value);
                }
            );
        }
    });
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
