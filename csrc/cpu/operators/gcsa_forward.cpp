// The forward pass of the attention.

#include "cpu/kernels.h"
#include "cpu/operators/channel_statistics.h"
#include "cpu/operators/gcsa_inference.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {
namespace {

// The forward pass with statistics of the batch, or values saved for a backward pass: the whole batch goes from step to
// step.
template <class T>
class Training {
    using A = accumulator<T>;
    using S = Pieces<A>;
    static constexpr int L = lanes<A>;

   public:
    explicit Training(const GcsaForward& p)
        : p_(p),
          s_(p),
          shuffle_(s_.C, p.gate_groups, s_.P),
          plan_(p, s_),
          weights_(p.gate),
          scratch_size_(S::size(std::max(plan_.scratch_size(), BlockedGate<T>::scratch_size(s_.C, s_.h)))),
          statistics_size_(S::size(Statistics<A>::size(s_.most_blocks()))),
          memory_(size_() * static_cast<int64_t>(sizeof(A))),
          pieces_(static_cast<A*>(memory_.data())),
          affine1_(pieces_, s_.m),
          affine2_(pieces_, s_.C),
          z_(s_.map(pieces_.take(s_.map_size(s_.C, s_.N)), s_.C)),
          a1_(s_.map(pieces_.take(s_.map_size(s_.m, s_.N)), s_.m)),
          u1_(saved_(p.u1, s_.m)),
          u2_(saved_(p.u2, s_.C)),
          gate_(p.gate, weights_.get(), pieces_.take(packed_size_())),
          expanded1_(pieces_.take(plan_.weights1.size())),
          expanded2_(pieces_.take(plan_.weights2.size())),
          team_memory_(pieces_.take(plan_.teams * plan_.workspace_size())),
          thread_memory_(pieces_.take(s_.threads * scratch_size_)),
          statistics_memory_(pieces_.take(s_.threads * statistics_size_)) {
        affine1_.set_bias(p.conv1);
        affine2_.set_bias(p.conv2);
    }

    void run() const {
        parallel_team(s_.threads, [&](const Team& all) { run_(all); });
    }

   private:
    int64_t packed_size_() const { return S::size(BlockedGate<T>::packed_size(s_.C, s_.h)); }
    int64_t size_() const {
        const int64_t maps = S::size(s_.map_size(s_.C, s_.N)) + S::size(s_.map_size(s_.m, s_.N));
        return Affine<A>::size(s_.m) + Affine<A>::size(s_.C) + (p_.u1 ? 1 : 2) * maps + packed_size_() +
               plan_.weights_size() + plan_.teams * plan_.workspace_size() + s_.threads * (scratch_size_ + statistics_size_);
    }
    // A convolution's result: the caller's memory or, where it is not saved, memory of this call.
    T* saved_(void* given, int64_t channels) {
        return given ? static_cast<T*>(given) : reinterpret_cast<T*>(pieces_.take(s_.map_size(channels, s_.N)));
    }
    Statistics<A> statistics_(int thread) const {
        return {statistics_memory_ + thread * statistics_size_, s_.most_blocks()};
    }

    // All phases of one thread.
    void run_(const Team& all) const {
        const Team team = plan_.team(all);
        const auto [begin, end] = plan_.images(all, s_.N);
        const int64_t count = end - begin;
        A* const scratch = thread_memory_ + all.rank * scratch_size_;
        A* const spectra = team_memory_ + plan_.team_number(all) * plan_.workspace_size();
        const Statistics<A> statistics = statistics_(all.rank);

        gate_.pack(all);
        plan_.weights1.expand(all, expanded1_);
        plan_.weights2.expand(all, expanded2_);
        all.barrier();
        gate_.run(team, begin, count, z_.from(begin), scratch);
        statistics.clear(s_.blocks(s_.m));
        all.barrier();
        const auto taps1 = plan_.weights1.taps(expanded1_), taps2 = plan_.weights2.taps(expanded2_);
        convolve(
            team, plan_.conv1, z_, plan_.conv1.images(begin, count), taps1, spectra, scratch,
            save_(affine1_, p_.norm1, s_.m, u1_, statistics), NoFinish{}
        );
        finish_norm_(all, p_.norm1, s_.m, affine1_);
        activate_(team, begin, count);
        statistics.clear(s_.blocks(s_.C));
        team.barrier();
        convolve(
            team, plan_.conv2, a1_, plan_.conv2.images(begin, count), taps2, spectra, scratch,
            save_(affine2_, p_.norm2, s_.C, u2_, statistics), NoFinish{}
        );
        finish_norm_(all, p_.norm2, s_.C, affine2_);
        write_result_(team, begin, count);
    }

    // The epilogue of a convolution: its result plus bias into u, with statistics where they are wanted.
    auto save_(
        const Affine<A>& affine, const BatchNorm& norm, int64_t channels, T* u, const Statistics<A>& statistics
    ) const {
        const int64_t blocks = s_.blocks(channels), P = s_.P;
        return [&affine, &norm, &statistics, blocks, P,
                u](int64_t image, int64_t block, int64_t at, int64_t n, const A* run, int64_t step) {
            A* const values = const_cast<A*>(run);
            T* const to = u + ((image * blocks + block) * P + at) * L;
            const auto of_block = affine.block(block);
            for (int64_t i = 0; i < n; ++i) {
                const vec<A> value = of_block.biased(load(run + i * step, Full<A>{}));
                store(to + i * L, value, Full<T>{});
                store(values + i * step, value, Full<A>{});
            }
            if (norm.batch_statistics) statistics.add_run(block, n, run, step);
        };
    }

    // Merges the threads' statistics and folds them into the normalisation.
    void finish_norm_(const Team& all, const BatchNorm& norm, int64_t channels, const Affine<A>& affine) const {
        all.barrier();
        if (all.rank == 0) {
            if (norm.batch_statistics) {
                const Statistics<A> sum = statistics_(0);
                for (int64_t block = 0; block < s_.blocks(channels); ++block)
                    for (int i = 1; i < all.size; ++i) sum.add(statistics_(i), block);
                for (int64_t c = 0; c < channels; ++c) {
                    static_cast<A*>(norm.mean)[c] = sum.mean(c);
                    static_cast<A*>(norm.var)[c] = sum.biased_variance(c);
                }
            }
            affine.set_norm(norm);
        }
        all.barrier();
    }

    // a1 = relu(norm1(u1))
    void activate_(const Team& team, int64_t begin, int64_t count) const {
        const int64_t blocks = s_.blocks(s_.m);
        team.for_each(block_ranges(count, blocks, s_.P), [&](int64_t i) {
            const BlockRange r = block_range(i, blocks, s_.P);
            const auto affine = affine1_.block(r.block);
            const int64_t offset = (((begin + r.image) * blocks + r.block) * s_.P + r.begin) * L;
            const T* const from = u1_ + offset;
            A* const to = a1_.data + offset;
            for (int64_t at = 0; at < r.count * L; at += L)
                store(to + at, relu<A>(affine.normalised(load(from + at, Full<T>{}))), Full<A>{});
        });
    }

    // out = z * activation(norm2(u2)), the latter shuffled
    void write_result_(const Team& team, int64_t begin, int64_t count) const {
        const int64_t blocks = s_.blocks(s_.C);
        T* const out = static_cast<T*>(p_.gate.out);
        team.for_each(block_ranges(count, blocks, s_.P), [&](int64_t i) {
            BlockRange r = block_range(i, blocks, s_.P);
            r.image += begin;
            const int64_t offset = (r.image * blocks + r.block) * s_.P * L;
            const auto affine = affine2_.block(r.block);
            const T* const u = u2_ + offset;
            with_constant(p_.gate_sigmoid, [&](auto with_sigmoid) {
                const Sigmoid<A> sigmoid;
                const auto gate = [&](int64_t at) {
                    const vec<A> v = affine.normalised(load(u + at * L, Full<T>{}));
                    return with_sigmoid ? sigmoid(v) : v;
                };
                if (shuffle_.moves()) {
                    const A* const z = z_.block(r.image, 0);
                    write_block<T>(
                        p_.gate.map, out, r, [&](int64_t at) { return shuffle_.gather(z, r.block, at) * gate(at); },
                        [&](int64_t d) { return shuffle_.channel(d); }
                    );
                } else {
                    const A* const z = z_.data + offset;
                    write_block<T>(p_.gate.map, out, r, [&](int64_t at) { return load(z + at * L, Full<A>{}) * gate(at); });
                }
            });
        });
    }

    const GcsaForward& p_;
    GcsaShape<T> s_;
    GateShuffle<A> shuffle_;
    ForwardPlan<T> plan_;
    PerceptronWeights<T> weights_;
    int64_t scratch_size_, statistics_size_;  // of a thread
    Scratch memory_;
    Pieces<A> pieces_;
    Affine<A> affine1_, affine2_;
    BlockedMap<A> z_, a1_;
    T *u1_, *u2_;
    BlockedGate<T> gate_;
    A *expanded1_, *expanded2_;
    A *team_memory_, *thread_memory_, *statistics_memory_;
};

}  // namespace

template <>
void run(const GcsaForward& p) {
    with_planned_element(p, p.gate.map, p.width, p.mixed, is_plain(p), [&](auto element) {
        using T = decltype(element);
        const bool batch = p.norm1.batch_statistics || p.norm2.batch_statistics;
        if (batch || p.u1)
            Training<T>(p).run();
        else
            infer<T>(p);
    });
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
