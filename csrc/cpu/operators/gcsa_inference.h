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
    int64_t z_size, a1_size;                          // of a team
    int64_t collected_size, per_thread, packed_size;  // of a thread, of a thread in all, of all threads together

    InferencePlan(const GcsaForward& p, const GcsaShape<T>& s) : ForwardPlan<T>(s) {
        constexpr int L = lanes<A>;
        chunk = std::min(s.N, std::max(this->conv1.images_per_group(), this->conv2.images_per_group()));
        if (this->split_batch) chunk = std::min(chunk, (s.N + s.threads - 1) / s.threads);
        z_in_out = std::is_same_v<T, A> && p.gate.map.layout == Layout::contiguous && s.C % L == 0 &&
                   this->conv2.block_by_block(chunk);
        z_size = z_in_out ? 0 : S::size(s.map_size(s.C, chunk));
        a1_size = S::size(s.map_size(s.h, chunk));
        collected_size = z_in_out ? S::size(s.map_size(L, 1)) : 0;
        per_thread = collected_size + S::size(std::max(this->scratch_size(), BlockedGate<T>::scratch_size(s.C, s.h)));
        packed_size = S::size(BlockedGate<T>::packed_size(s.C, s.h));
    }
    int64_t per_team() const { return z_size + a1_size + this->workspace_size(); }
};

// out[i] = relu(normalised(from[i * step] + bias)) for a run of positions of one block of channels.
template <class A>
inline void relu_run(const typename Affine<A>::Block& affine, int64_t count, const A* from, int64_t step, A* out) {
    for (int64_t i = 0; i < count; ++i) {
        const vec<A> value = affine.biased(load(from + i * step, Full<A>{}));
        store(out + i * lanes<A>, relu<A>(affine.normalised(value)), Full<A>{});
    }
}
// out[i] = gated[i] * sigmoid(normalised(from[i * step] + bias)); out may be gated.
template <class A>
inline void gate_run(
    const typename Affine<A>::Block& affine, int64_t count, const A* from, int64_t step, const A* gated, A* out
) {
    constexpr int L = lanes<A>;
    const Sigmoid<A> sigmoid;
    for (int64_t i = 0; i < count; ++i) {
        const vec<A> value = affine.biased(load(from + i * step, Full<A>{}));
        store(out + i * L, load(gated + i * L, Full<A>{}) * sigmoid(affine.normalised(value)), Full<A>{});
    }
}

template <class T>
void infer(const GcsaForward& p) {
    using A = accumulator<T>;
    constexpr int L = lanes<A>;
    const GcsaShape<T> s(p);
    const InferencePlan<T> plan(p, s);
    const PerceptronWeights<T> weights(p.gate);
    const int64_t per_team = plan.per_team(), per_thread = plan.per_thread;
    const Scratch memory(
        (Affine<A>::size(s.h) + Affine<A>::size(s.C) + plan.packed_size + plan.teams * per_team + s.threads * per_thread) *
        static_cast<int64_t>(sizeof(A))
    );
    Pieces<A> pieces(static_cast<A*>(memory.data()));
    const Affine<A> affine1(pieces, s.h), affine2(pieces, s.C);
    const BlockedGate<T> gate(p.gate, weights.get(), pieces.take(plan.packed_size));
    A* const team_memory = pieces.take(plan.teams * per_team);
    A* const thread_memory = pieces.take(s.threads * per_thread);
    affine1.set_bias(p.conv1);
    affine2.set_bias(p.conv2);
    affine1.set_norm(p.norm1);
    affine2.set_norm(p.norm2);
    const Taps<A> taps1 = forward_taps<A>(p.conv1, s.h, s.C, s.k), taps2 = forward_taps<A>(p.conv2, s.C, s.h, s.k);

    elastic_team(s.threads, [&](const Team& all) {
        const Team team = plan.team(all);
        A* const collected = thread_memory + all.rank * per_thread;
        A* const scratch = collected + plan.collected_size;
        A* const z_memory = team_memory + plan.team_number(all) * per_team;
        const BlockedMap<A> a1 = s.map(z_memory + plan.z_size, s.h);
        A* const spectra = a1.data + plan.a1_size;

        gate.pack(all);
        all.barrier();
        const auto [begin, end] = plan.images(all, s.N);
        for (int64_t first = begin; first < end; first += plan.chunk) {
            const int64_t count = std::min(plan.chunk, end - first);
            T* const out = static_cast<T*>(p.gate.out) + first * s.C * s.P;
            const BlockedMap<A> z = s.map(plan.z_in_out ? reinterpret_cast<A*>(out) : z_memory, s.C);
            const auto result = [&](int64_t image, int64_t block) {
                return plan.z_in_out ? collected : z.block(image, block);
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
                    const A* const gated = z.block(image, block) + at * L;
                    gate_run<A>(affine2.block(block), n, run, step, gated, result(image, block) + at * L);
                },
                [&](BlockRange range) {
                    const A* const from = result(range.image, range.block);
                    write_block<T>(p.gate.map, out, range, [&](int64_t at) { return load(from + at * L, Full<A>{}); });
                }
            );
        }
    });
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
