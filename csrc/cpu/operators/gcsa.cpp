// Global channel-spatial attention on the CPU: everything between x and the result stays in the blocked layout that the
// convolutions compute in (blocked.h).

#include "params/gcsa.h"

#include "cpu/kernels.h"
#include "cpu/operators/blocked_gate.h"
#include "cpu/plan.h"
#include "cpu/sigmoid.h"
#include "memory/scratch.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {
namespace {

// A convolution's bias and the normalisation behind it, for every channel, padded with zeros to whole blocks.
template <class A>
struct Affine {
    A *bias, *scale, *shift;

    static constexpr int vectors = 3;
    static Affine take(Pieces<A>& pieces, int64_t channels) {
        const int64_t padded = round_up(channels, lanes<A>);
        return {pieces.take(padded), pieces.take(padded), pieces.take(padded)};
    }
    // Of one block of channels, in registers.
    struct Block {
        vec<A> bias, scale, shift;
        vec<A> biased(vec<A> value) const { return value + bias; }
        vec<A> normalised(vec<A> value) const { return value * scale + shift; }
    };
    Block block(int64_t b) const {
        const auto at = [&](const A* v) { return load(v + b * lanes<A>, Full<A>{}); };
        return {at(bias), at(scale), at(shift)};
    }
};

template <class A>
inline A element(const void* values, int64_t i, A otherwise) {
    return values ? static_cast<const A*>(values)[i] : otherwise;
}
template <class A>
inline A inverse_deviation(const BatchNorm& norm, int64_t c) {
    const A var = static_cast<const A*>(norm.var)[c] + static_cast<A>(norm.eps);
    return A(1) / (sizeof(A) == 4 ? static_cast<A>(__builtin_sqrtf(static_cast<float>(var)))
                                  : static_cast<A>(__builtin_sqrt(static_cast<double>(var))));
}
template <class A>
inline void fold_bias(const Convolution2d& conv, int64_t channels, const Affine<A>& to) {
    for (int64_t c = 0; c < round_up(channels, lanes<A>); ++c) to.bias[c] = c < channels ? element<A>(conv.bias, c, 0) : 0;
}
template <class A>
inline void fold_norm(const BatchNorm& norm, int64_t channels, const Affine<A>& to) {
    for (int64_t c = 0; c < round_up(channels, lanes<A>); ++c) {
        const bool real = c < channels;
        to.scale[c] = real ? element<A>(norm.weight, c, 1) * inverse_deviation<A>(norm, c) : 0;
        to.shift[c] = real ? element<A>(norm.bias, c, 0) - static_cast<const A*>(norm.mean)[c] * to.scale[c] : 0;
    }
}

// Mean and sum of squared deviations of every channel over what one thread has seen (Chan, Golub, LeVeque 1979).
template <class A>
struct Statistics {
    static constexpr int L = lanes<A>;
    A* values;       // [block][mean, deviations][lane]
    int64_t* count;  // [block]

    static int64_t size(int64_t blocks) { return Pieces<A>::size(blocks * 2 * L) + Pieces<A>::size(blocks * 2); }
    Statistics(A* memory, int64_t blocks)
        : values(memory), count(reinterpret_cast<int64_t*>(memory + Pieces<A>::size(blocks * 2 * L))) {}
    void clear(int64_t blocks) const {
        for (int64_t i = 0; i < blocks * 2 * L; ++i) values[i] = 0;
        for (int64_t i = 0; i < blocks; ++i) count[i] = 0;
    }
    void add(int64_t block, int64_t n, vec<A> mean, vec<A> deviations) const {
        A* const at = values + block * 2 * L;
        const int64_t total = count[block] + n;
        if (total == 0) return;
        const vec<A> delta = mean - load(at, Full<A>{});
        const A share = static_cast<A>(n) / static_cast<A>(total);
        store(at, load(at, Full<A>{}) + delta * share, Full<A>{});
        store(
            at + L, load(at + L, Full<A>{}) + deviations + delta * delta * (share * static_cast<A>(count[block])), Full<A>{}
        );
        count[block] = total;
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
        add(block, n, mean, deviations);
    }
    void add(const Statistics& other, int64_t block) const {
        const A* from = other.values + block * 2 * L;
        add(block, other.count[block], load(from, Full<A>{}), load(from + L, Full<A>{}));
    }
};

// Sums of two quantities per channel over what one thread has seen, in float64.
template <class A>
struct ChannelSums {
    static constexpr int L = lanes<A>;
    double* values;  // [block][two][lane]

    static int64_t size(int64_t blocks) { return Pieces<A>::size(blocks * 2 * L * 8 / static_cast<int64_t>(sizeof(A))); }
    void clear(int64_t blocks) const {
        for (int64_t i = 0; i < blocks * 2 * L; ++i) values[i] = 0;
    }
    void add(int64_t block, vec<A> first, vec<A> second) const {
        double* const at = values + block * 2 * L;
        for (int i = 0; i < L; ++i) at[i] += static_cast<double>(first[i]);
        for (int i = 0; i < L; ++i) at[L + i] += static_cast<double>(second[i]);
    }
};

// The shapes of a call and how its convolutions are carried out.
template <class T>
struct Geometry {
    using A = accumulator<T>;
    int64_t N, C, h, H, W, P, k;
    int threads;
    PlannedConvolution<T> conv1, conv2;

    explicit Geometry(const GcsaForward& p)
        : N(p.gate.map.batch),
          C(p.gate.map.channels),
          h(p.gate.hidden),
          H(p.height),
          W(p.width),
          P(H * W),
          k(p.kernel),
          threads(p.gate.map.threads),
          conv1(plan<T>(N, C, h, H, W, k, threads, false)),
          conv2(plan<T>(N, h, C, H, W, k, threads, false)) {
        const PlannedConvolution<T> apart1 = plan<T>(N, C, h, H, W, k, threads, true);
        const PlannedConvolution<T> apart2 = plan<T>(N, h, C, H, W, k, threads, true);
        if (better_apart(apart1, conv1, threads) && better_apart(apart2, conv2, threads)) conv1 = apart1, conv2 = apart2;
    }

    Taps<A> taps1(const GcsaForward& p) const { return Taps<A>::forward(p.conv1.weight, p.conv1.layout, h, C, k); }
    Taps<A> taps2(const GcsaForward& p) const { return Taps<A>::forward(p.conv2.weight, p.conv2.layout, C, h, k); }
    BlockedMap<A> map(A* data, int64_t channels) const { return {data, channels, H, W}; }
    int64_t blocks(int64_t channels) const { return (channels + lanes<A> - 1) / lanes<A>; }
    int64_t map_size(int64_t channels, int64_t images) const { return images * blocks(channels) * P * lanes<A>; }
};

template <class A>
void relu_run(const Affine<A>& affine, int64_t block, int64_t count, const A* from, int64_t step, A* to) {
    const auto own = affine.block(block);
    for (int64_t i = 0; i < count; ++i) {
        const vec<A> value = own.biased(load(from + i * step, Full<A>{}));
        store(to + i * lanes<A>, relu<A>(own.normalised(value)), Full<A>{});
    }
}

// Statistics are given and nothing is saved: some images at a time from x to the result, so that everything between stays
// in the cache.
template <class T>
void infer(const GcsaForward& p) {
    using A = accumulator<T>;
    constexpr int L = lanes<A>;
    Geometry<T> g(p);
    PlannedConvolution<T>&c1 = g.conv1, &c2 = g.conv2;
    const bool apart = c1.team < g.threads;
    const int64_t N = g.N, C = g.C, h = g.h;
    int64_t chunk = std::min(N, std::max(c1.images_per_group(), c2.images_per_group()));
    if (apart) chunk = std::min(chunk, (N + g.threads - 1) / g.threads);
    const PerceptronWeights<T> weights(p.gate);
    WeightSpectra<A> weights1(c1, g.taps1(p), p.conv1.source), weights2(c2, g.taps2(p), p.conv2.source);

    const int teams = apart ? g.threads : 1;
    using S = Pieces<A>;
    // Where a block of channels takes the same memory in both layouts, the gated map lies in the result's place, which saves
    // its own share of the cache. A block of the result is then collected elsewhere until it is complete.
    const bool z_in_out =
        std::is_same_v<T, A> && p.gate.map.layout == Layout::contiguous && C % L == 0 && c2.block_by_block(chunk);
    const int64_t z_size = z_in_out ? 0 : S::size(g.map_size(C, chunk));
    const int64_t block_size = z_in_out ? S::size(g.map_size(L, 1)) : 0;
    const int64_t vectors = Affine<A>::vectors * (S::size(round_up(C, L)) + S::size(round_up(h, L)));
    const int64_t spectra_size = std::max(c1.workspace_size(), c2.workspace_size());
    const int64_t per_team = z_size + S::size(g.map_size(h, chunk)) + spectra_size;
    const int64_t per_thread =
        block_size + S::size(std::max({c1.scratch_size(), c2.scratch_size(), BlockedGate<T>::scratch_size(C, h)}));
    const int64_t packed = S::size(BlockedGate<T>::packed_size(C, h));
    const Scratch memory((vectors + packed + teams * per_team + g.threads * per_thread) * static_cast<int64_t>(sizeof(A)));
    S pieces(static_cast<A*>(memory.data()));
    const Affine<A> affine1 = Affine<A>::take(pieces, h), affine2 = Affine<A>::take(pieces, C);
    const BlockedGate<T> gate(p.gate, weights.get(), pieces.take(packed));
    A* const team_memory = pieces.take(teams * per_team);
    A* const thread_memory = pieces.take(g.threads * per_thread);
    fold_bias(p.conv1, h, affine1);
    fold_bias(p.conv2, C, affine2);
    fold_norm(p.norm1, h, affine1);
    fold_norm(p.norm2, C, affine2);

    parallel_team(g.threads, [&](const Team& all) {
        const Team team = apart ? Team{0, 1} : all;
        A* const collected = thread_memory + all.rank * per_thread;
        A* const scratch = collected + block_size;
        S own(team_memory + (apart ? all.rank : 0) * per_team);
        A* const z_memory = own.take(z_size);
        const BlockedMap<A> a1 = g.map(own.take(g.map_size(h, chunk)), h);
        A* const spectra = own.take(spectra_size);

        const int64_t begin = apart ? N * all.rank / all.size : 0, end = apart ? N * (all.rank + 1) / all.size : N;
        gate.pack(all);
        weights1.check(all);
        weights2.check(all);
        all.barrier();
        const bool filled1 = weights1.fill(all, scratch), filled2 = weights2.fill(all, scratch);
        if (filled1 || filled2) all.barrier();
        const Taps<A> taps1 = weights1.taps(), taps2 = weights2.taps();
        for (int64_t first = begin; first < end; first += chunk) {
            const int64_t count = std::min(chunk, end - first);
            T* const out = static_cast<T*>(p.gate.out) + first * C * g.P;
            const BlockedMap<A> z = g.map(z_in_out ? reinterpret_cast<A*>(out) : z_memory, C);
            const auto result = [&](int64_t image, int64_t block) { return z_in_out ? collected : z.block(image, block); };
            gate.run(team, first, count, z, scratch);
            team.barrier();
            convolve(
                team, c1, z, c1.images(0, count), taps1, spectra, scratch,
                [&](int64_t image, int64_t block, int64_t at, int64_t n, const A* run, int64_t step) {
                    relu_run(affine1, block, n, run, step, a1.block(image, block) + at * L);
                },
                NoFinish{}
            );
            convolve(
                team, c2, a1, c2.images(0, count), taps2, spectra, scratch,
                [&](int64_t image, int64_t block, int64_t at, int64_t n, const A* run, int64_t step) {
                    const A* const gated = z.block(image, block) + at * L;
                    A* const to = result(image, block) + at * L;
                    const auto affine = affine2.block(block);
                    const Sigmoid<A> sigmoid;
                    for (int64_t i = 0; i < n; ++i) {
                        const vec<A> value = affine.biased(load(run + i * step, Full<A>{}));
                        store(to + i * L, load(gated + i * L, Full<A>{}) * sigmoid(affine.normalised(value)), Full<A>{});
                    }
                },
                [&](BlockRange range) {
                    const A* const from = result(range.image, range.block);
                    write_block<T>(p.gate.map, out, range, [&](int64_t at) { return load(from + at * L, Full<A>{}); });
                }
            );
        }
    });
    weights1.keep();
    weights2.keep();
}

// Merges the threads' statistics and folds them into the normalisation; by one thread.
template <class A>
void finish_statistics(const BatchNorm& norm, A* memory, int64_t per_thread, int threads, int64_t channels, int64_t blocks) {
    const Statistics<A> sum(memory, blocks);
    for (int64_t block = 0; block < blocks; ++block) {
        for (int i = 1; i < threads; ++i) sum.add(Statistics<A>(memory + i * per_thread, blocks), block);
        const A* const at = sum.values + block * 2 * lanes<A>;
        for (int64_t c = block * lanes<A>; c < channels && c < (block + 1) * lanes<A>; ++c) {
            static_cast<A*>(norm.mean)[c] = at[c % lanes<A>];
            static_cast<A*>(norm.var)[c] = at[lanes<A> + c % lanes<A>] / static_cast<A>(sum.count[block]);
        }
    }
}

// Statistics of the batch, or values saved for a backward pass: the whole batch from step to step.
template <class T>
void forward(const GcsaForward& p) {
    using A = accumulator<T>;
    constexpr int L = lanes<A>;
    Geometry<T> g(p);
    PlannedConvolution<T>&c1 = g.conv1, &c2 = g.conv2;
    const bool apart = c1.team < g.threads;
    const int64_t N = g.N, C = g.C, h = g.h, C_blocks = g.blocks(C), h_blocks = g.blocks(h);
    const int64_t most_blocks = std::max(C_blocks, h_blocks);  // h may be more than C
    const PerceptronWeights<T> weights(p.gate);

    using S = Pieces<A>;
    const int teams = apart ? g.threads : 1;
    const int64_t spectra_size = std::max(c1.workspace_size(), c2.workspace_size());
    const int64_t saved = p.u1 ? 0 : S::size(g.map_size(C, N)) + S::size(g.map_size(h, N));
    const int64_t per_thread = S::size(std::max({c1.scratch_size(), c2.scratch_size(), BlockedGate<T>::scratch_size(C, h)}));
    const int64_t packed = S::size(BlockedGate<T>::packed_size(C, h));
    const int64_t statistics = S::size(Statistics<A>::size(most_blocks));
    const int64_t total = Affine<A>::vectors * (S::size(C_blocks * L) + S::size(h_blocks * L)) + S::size(g.map_size(C, N)) +
                          S::size(g.map_size(h, N)) + packed + saved + teams * spectra_size +
                          g.threads * (per_thread + statistics);
    const Scratch memory(total * static_cast<int64_t>(sizeof(A)));
    S pieces(static_cast<A*>(memory.data()));
    const Affine<A> affine1 = Affine<A>::take(pieces, h), affine2 = Affine<A>::take(pieces, C);
    const BlockedMap<A> z = g.map(pieces.take(g.map_size(C, N)), C), a1 = g.map(pieces.take(g.map_size(h, N)), h);
    T* const u1 = p.u1 ? static_cast<T*>(p.u1) : reinterpret_cast<T*>(pieces.take(g.map_size(h, N)));
    T* const u2 = p.u2 ? static_cast<T*>(p.u2) : reinterpret_cast<T*>(pieces.take(g.map_size(C, N)));
    const BlockedGate<T> gate(p.gate, weights.get(), pieces.take(packed));
    A* const team_memory = pieces.take(teams * spectra_size);
    A* const thread_memory = pieces.take(g.threads * per_thread);
    A* const statistics_memory = pieces.take(g.threads * statistics);
    for (int i = 0; i < g.threads; ++i) Statistics<A>(statistics_memory + i * statistics, most_blocks).clear(most_blocks);
    fold_bias(p.conv1, h, affine1);
    fold_bias(p.conv2, C, affine2);

    parallel_team(g.threads, [&](const Team& all) {
        const Team team = apart ? Team{0, 1} : all;
        const int64_t begin = apart ? N * all.rank / all.size : 0, end = apart ? N * (all.rank + 1) / all.size : N;
        A* const scratch = thread_memory + all.rank * per_thread;
        A* const spectra = team_memory + (apart ? all.rank : 0) * spectra_size;
        A* const own_statistics = statistics_memory + all.rank * statistics;
        // A convolution's result plus bias into u, with statistics where they are wanted.
        const auto save = [&](const Affine<A>& affine, const BatchNorm& norm, int64_t channels, T* u) {
            return [&, channels, u](int64_t image, int64_t block, int64_t at, int64_t n, const A* run, int64_t step) {
                const int64_t blocks = g.blocks(channels);
                A* const values = const_cast<A*>(run);
                T* const to = u + ((image * blocks + block) * g.P + at) * L;
                const auto own = affine.block(block);
                for (int64_t i = 0; i < n; ++i) {
                    const vec<A> value = own.biased(load(run + i * step, Full<A>{}));
                    store(to + i * L, value, Full<T>{});
                    store(values + i * step, value, Full<A>{});
                }
                if (norm.batch_statistics) Statistics<A>(own_statistics, blocks).add_run(block, n, run, step);
            };
        };
        const auto finish = [&](const BatchNorm& norm, int64_t channels, const Affine<A>& affine) {
            all.barrier();
            if (all.rank == 0) {
                if (norm.batch_statistics)
                    finish_statistics(norm, statistics_memory, statistics, all.size, channels, g.blocks(channels));
                fold_norm<A>(norm, channels, affine);
            }
            all.barrier();
        };

        gate.pack(all);
        all.barrier();
        gate.run(team, begin, end - begin, z.from(begin), scratch);
        all.barrier();
        convolve(
            team, c1, z, c1.images(begin, end - begin), g.taps1(p), spectra, scratch, save(affine1, p.norm1, h, u1),
            NoFinish{}
        );
        finish(p.norm1, h, affine1);
        team.for_each(block_ranges(end - begin, h_blocks, g.P), [&](int64_t i) {
            const BlockRange r = block_range(i, h_blocks, g.P);
            const auto affine = affine1.block(r.block);
            const int64_t offset = (((begin + r.image) * h_blocks + r.block) * g.P + r.begin) * L;
            for (int64_t at = offset; at < offset + r.count * L; at += L)
                store(a1.data + at, relu<A>(affine.normalised(load(u1 + at, Full<T>{}))), Full<A>{});
        });
        Statistics<A>(own_statistics, C_blocks).clear(C_blocks);
        team.barrier();
        convolve(
            team, c2, a1, c2.images(begin, end - begin), g.taps2(p), spectra, scratch, save(affine2, p.norm2, C, u2),
            NoFinish{}
        );
        finish(p.norm2, C, affine2);
        T* const out = static_cast<T*>(p.gate.out);
        team.for_each(block_ranges(end - begin, C_blocks, g.P), [&](int64_t i) {
            BlockRange r = block_range(i, C_blocks, g.P);
            r.image += begin;
            const int64_t offset = (r.image * C_blocks + r.block) * g.P * L;
            const auto affine = affine2.block(r.block);
            const Sigmoid<A> sigmoid;
            write_block<T>(p.gate.map, out, r, [&](int64_t at) {
                const vec<A> v = affine.normalised(load(u2 + offset + at * L, Full<T>{}));
                return load(z.data + offset + at * L, Full<A>{}) * sigmoid(v);
            });
        });
    });
}

// What the gradient of a normalisation's input needs once the sums over the batch are known:
// grad_u = scale * (d - average_d - n * average_dn), n = (u - mean) * inverse; the averages are 0 with given statistics.
template <class A>
struct NormGradient {
    A *mean, *inverse, *scale, *shift, *average_d, *average_dn;  // per channel, padded with zeros

    static int64_t size(int64_t channels) { return 6 * Pieces<A>::size(round_up(channels, lanes<A>)); }
    NormGradient(const BatchNorm& norm, int64_t channels, A* memory) {
        Pieces<A> pieces(memory);
        const int64_t padded = round_up(channels, lanes<A>);
        for (A** vector : {&mean, &inverse, &scale, &shift, &average_d, &average_dn}) {
            *vector = pieces.take(padded);
            for (int64_t c = 0; c < padded; ++c) (*vector)[c] = 0;
        }
        for (int64_t c = 0; c < channels; ++c) {
            mean[c] = static_cast<const A*>(norm.mean)[c];
            inverse[c] = inverse_deviation<A>(norm, c);
            scale[c] = inverse[c] * element<A>(norm.weight, c, 1);
            shift[c] = element<A>(norm.bias, c, 0);
        }
    }
    struct Block {
        vec<A> mean, inverse, weight_inverse, shift, average_d, average_dn;
        vec<A> normalised(vec<A> u) const { return (u - mean) * inverse; }
        vec<A> value(vec<A> u) const { return (u - mean) * weight_inverse + shift; }
    };
    Block block(int64_t b) const {
        const auto at = [&](const A* v) { return load(v + b * lanes<A>, Full<A>{}); };
        return {at(mean), at(inverse), at(scale), at(shift), at(average_d), at(average_dn)};
    }
    // Adds up the threads' sums of d and d * n; by one thread.
    void finish(
        const BatchNorm& norm, A* memory, int64_t per_thread, int threads, int64_t channels, int64_t count,
        void* grad_weight, void* grad_bias, void* grad_conv_bias
    ) const {
        constexpr int L = lanes<A>;
        for (int64_t c = 0; c < channels; ++c) {
            double d = 0, dn = 0;
            for (int i = 0; i < threads; ++i) {
                const double* const at = reinterpret_cast<double*>(memory + i * per_thread) + c / L * 2 * L + c % L;
                d += at[0];
                dn += at[L];
            }
            if (grad_weight) static_cast<A*>(grad_weight)[c] = static_cast<A>(dn);
            if (grad_bias) static_cast<A*>(grad_bias)[c] = static_cast<A>(d);
            // A shift of its input does not change what is normalised by its own statistics.
            if (grad_conv_bias)
                static_cast<A*>(grad_conv_bias)[c] = norm.batch_statistics ? A(0) : static_cast<A>(d) * scale[c];
            if (norm.batch_statistics) {
                average_d[c] = static_cast<A>(d / static_cast<double>(count));
                average_dn[c] = static_cast<A>(dn / static_cast<double>(count));
            }
        }
    }
};

template <class T>
void backward(const GcsaBackward& q) {
    using A = accumulator<T>;
    constexpr int L = lanes<A>;
    const GcsaForward& p = q.forward;
    Geometry<T> g(p);
    const int64_t N = g.N, C = g.C, h = g.h, k = g.k, C_blocks = g.blocks(C), h_blocks = g.blocks(h);
    const int64_t most_blocks = std::max(C_blocks, h_blocks);  // h may be more than C
    const bool want_gate = q.grad_w1 != nullptr, want_z = want_gate || q.grad_x;
    // From the second convolution's output to its input, from the first's output to its input. All threads work together.
    const PlannedConvolution<T> c2 = plan<T>(N, C, h, g.H, g.W, k, g.threads, false, true);
    const PlannedConvolution<T> c1 = plan<T>(N, h, C, g.H, g.W, k, g.threads, false, true);
    const auto mirrored2 = Taps<A>::backward(p.conv2.weight, p.conv2.layout, C, h, k);
    const auto mirrored1 = Taps<A>::backward(p.conv1.weight, p.conv1.layout, h, C, k);
    const PerceptronWeights<T> weights(p.gate);

    using S = Pieces<A>;
    const int64_t spectra_size = std::max(gradient_workspace_size(c1), gradient_workspace_size(c2));
    const auto sums_size = [](const PlannedConvolution<T>& c, const void* wanted) { return wanted ? unit_sums_size(c) : 0; };
    const int64_t unit_sums = S::size(std::max(sums_size(c1, q.grad_conv1), sums_size(c2, q.grad_conv2)));
    const int64_t unit = S::size(std::max(unit_size(c1), unit_size(c2)));
    const int64_t gate_size = std::max(GateGradient<A>::size(C, h, want_gate), BlockedGate<T>::scratch_size(C, h));
    const int64_t packed = S::size(BlockedGate<T>::packed_size(C, h));
    const int64_t per_thread = S::size(std::max(c1.scratch_size(), c2.scratch_size())) + S::size(gate_size) + unit +
                               S::size(ChannelSums<A>::size(most_blocks));
    // The gradient of u2 is done with before that of x is written: where it fits, it comes in its place.
    const bool in_grad_x = q.grad_x && std::is_same_v<T, A> && C % L == 0;
    const int64_t grad_u2_size = in_grad_x ? 0 : S::size(g.map_size(C, N));
    const int64_t total = NormGradient<A>::size(C) + NormGradient<A>::size(h) + 2 * S::size(g.map_size(C, N)) +
                          grad_u2_size + S::size(g.map_size(h, N)) + packed + spectra_size + unit_sums +
                          g.threads * per_thread;
    const Scratch memory(total * static_cast<int64_t>(sizeof(A)));
    S pieces(static_cast<A*>(memory.data()));
    NormGradient<A> norm2(p.norm2, C, pieces.take(NormGradient<A>::size(C)));
    NormGradient<A> norm1(p.norm1, h, pieces.take(NormGradient<A>::size(h)));
    const BlockedMap<A> z = g.map(pieces.take(g.map_size(C, N)), C);
    const BlockedMap<A> grad_z = g.map(pieces.take(g.map_size(C, N)), C);
    const BlockedMap<A> grad_u2 = g.map(in_grad_x ? static_cast<A*>(q.grad_x) : pieces.take(grad_u2_size), C);
    // The gradient of u1 comes in a1's place: the spectra of a group of tiles are taken before its gradients are written.
    const BlockedMap<A> a1 = g.map(pieces.take(g.map_size(h, N)), h), grad_u1 = a1;
    const BlockedGate<T> gate(p.gate, weights.get(), pieces.take(packed));
    A* const spectra = pieces.take(spectra_size);
    A* const unit_memory = unit_sums ? pieces.take(unit_sums) : nullptr;
    A* const thread_memory = pieces.take(g.threads * per_thread);
    // Of each thread: sums over channels, the gate's gradient, then scratch.
    const int64_t after_sums = S::size(ChannelSums<A>::size(most_blocks)), after_gate = after_sums + S::size(gate_size);
    const auto sums_of = [&](int thread) {
        return ChannelSums<A>{reinterpret_cast<double*>(thread_memory + thread * per_thread)};
    };
    const T *u1 = static_cast<const T*>(p.u1), *u2 = static_cast<const T*>(p.u2);
    for (int i = 0; i < g.threads; ++i) sums_of(i).clear(most_blocks);

    parallel_team(g.threads, [&](const Team& team) {
        A* const own = thread_memory + team.rank * per_thread;
        const ChannelSums<A> sums = sums_of(team.rank);
        A* const unit_buffer = own + after_gate;
        A* const scratch = unit_buffer + unit;
        gate.pack(team);
        team.barrier();
        gate.run(team, 0, N, z, own + after_sums);
        team.barrier();

        // Through the product and the second normalisation, as far as that goes without the sums over the batch.
        team.for_each(block_ranges(N, C_blocks, g.P), [&](int64_t i) {
            const BlockRange r = block_range(i, C_blocks, g.P);
            const auto norm = norm2.block(r.block);
            const int64_t offset = (r.image * C_blocks + r.block) * g.P * L;
            const Sigmoid<A> sigmoid;
            vec<A> sum_d{}, sum_dn{};
            read_block<T>(p.gate.map, static_cast<const T*>(q.grad_out), r, [&](int64_t position, vec<A> grad) {
                const int64_t at = offset + position * L;
                const vec<A> u = load(u2 + at, Full<T>{}), s = sigmoid(norm.value(u));
                const vec<A> d = grad * load(z.data + at, Full<A>{}) * s * (A(1) - s);
                sum_d += d;
                sum_dn += d * norm.normalised(u);
                store(grad_u2.data + at, d, Full<A>{});
                store(grad_z.data + at, grad * s, Full<A>{});
            });
            sums.add(r.block, sum_d, sum_dn);
        });
        // What d of a normalisation becomes, in place.
        const auto through_norm = [&](const BatchNorm& norm, const NormGradient<A>& gradient, int64_t blocks, const T* u,
                                      const BlockedMap<A>& grad) {
            team.for_each(block_ranges(N, blocks, g.P), [&](int64_t i) {
                const BlockRange r = block_range(i, blocks, g.P);
                const auto n = gradient.block(r.block);
                const int64_t offset = ((r.image * blocks + r.block) * g.P + r.begin) * L;
                for (int64_t at = offset; at < offset + r.count * L; at += L) {
                    vec<A> d = load(grad.data + at, Full<A>{});
                    // Without the averages the normalised value must stay out of it: an infinite one times 0 is NaN.
                    if (norm.batch_statistics) d -= n.average_d + n.normalised(load(u + at, Full<T>{})) * n.average_dn;
                    store(grad.data + at, d * n.weight_inverse, Full<A>{});
                }
            });
        };
        team.barrier();
        if (team.rank == 0)
            norm2.finish(
                p.norm2, thread_memory, per_thread, team.size, C, N * g.P, q.grad_norm2_weight, q.grad_norm2_bias,
                q.grad_conv2_bias
            );
        team.for_each(block_ranges(N, h_blocks, g.P), [&](int64_t i) {
            const BlockRange r = block_range(i, h_blocks, g.P);
            const auto n = norm1.block(r.block);
            const int64_t offset = ((r.image * h_blocks + r.block) * g.P + r.begin) * L;
            for (int64_t at = offset; at < offset + r.count * L; at += L)
                store(a1.data + at, relu<A>(n.value(load(u1 + at, Full<T>{}))), Full<A>{});
        });
        team.barrier();
        through_norm(p.norm2, norm2, C_blocks, u2, grad_u2);
        sums.clear(most_blocks);
        team.barrier();

        convolve_backward(
            team, c2, grad_u2, mirrored2, spectra, unit_buffer, scratch,
            {q.grad_conv2 ? &a1 : nullptr, static_cast<A*>(q.grad_conv2), p.conv2.layout, unit_memory}, true,
            [&](int64_t image, int64_t block, int64_t at, int64_t count, const A* run, int64_t step) {
                const auto n = norm1.block(block);
                const int64_t offset = ((image * h_blocks + block) * g.P + at) * L;
                vec<A> sum_d{}, sum_dn{};
                for (int64_t i = 0; i < count; ++i) {
                    const int64_t e = offset + i * L;
                    const vec<A> value = load(run + i * step, Full<A>{});
                    const vec<A> d = load(a1.data + e, Full<A>{}) <= 0 ? vec<A>{} : value;
                    sum_d += d;
                    sum_dn += d * n.normalised(load(u1 + e, Full<T>{}));
                    store(grad_u1.data + e, d, Full<A>{});
                }
                sums.add(block, sum_d, sum_dn);
            }
        );
        if (team.rank == 0)
            norm1.finish(
                p.norm1, thread_memory, per_thread, team.size, h, N * g.P, q.grad_norm1_weight, q.grad_norm1_bias,
                q.grad_conv1_bias
            );
        team.barrier();
        through_norm(p.norm1, norm1, h_blocks, u1, grad_u1);
        team.barrier();
        if (want_z || q.grad_conv1)
            convolve_backward(
                team, c1, grad_u1, mirrored1, spectra, unit_buffer, scratch,
                {q.grad_conv1 ? &z : nullptr, static_cast<A*>(q.grad_conv1), p.conv1.layout, unit_memory}, want_z,
                [&](int64_t image, int64_t block, int64_t at, int64_t count, const A* run, int64_t step) {
                    A* const to = grad_z.block(image, block) + at * L;
                    for (int64_t i = 0; i < count; ++i)
                        store(to + i * L, load(to + i * L, Full<A>{}) + load(run + i * step, Full<A>{}), Full<A>{});
                }
            );
        if (!want_z) return;

        const ChannelShuffle plain{1, C}, shuffle{p.gate.groups, C / p.gate.groups};
        GateGradient<A> gradient(own + after_sums, C, h, want_gate);
        gradient.clear_sums();
        const auto [begin, end] = team.share((N * g.P + L - 1) / L);
        for_each_tile<A>(begin, end, N * g.P, block_vectors, [&](TileRange range, int64_t columns) {
            load_tile(p.gate.map, static_cast<const T*>(p.gate.x), range, columns, gradient.x, plain);
            load_tile(grad_z, range, columns, gradient.grad, shuffle);
            gradient.run(weights.get(), p.gate.sigmoid, columns, range.count, q.grad_x != nullptr);
            if (q.grad_x) store_tile(p.gate.map, static_cast<T*>(q.grad_x), range, columns, gradient.grad, plain);
        });
        team.barrier();
        if (team.rank == 0 && want_gate) {
            for (int i = 1; i < team.size; ++i)
                gradient.add_sums(GateGradient<A>(thread_memory + i * per_thread + after_sums, C, h, true));
            gradient.store_sums(
                static_cast<T*>(q.grad_w1), static_cast<T*>(q.grad_b1), static_cast<T*>(q.grad_w2),
                static_cast<T*>(q.grad_b2)
            );
        }
    });
}

template <class T>
void run(const GcsaForward& p) {
    const bool batch = p.norm1.batch_statistics || p.norm2.batch_statistics;
    batch || p.u1 ? forward<T>(p) : infer<T>(p);
}

}  // namespace

#ifdef GCSA_EXT_MATRIX_REGISTERS
void gcsa_forward(const GcsaForward& p) {
    if (!uses_registers(p.gate.map, p.width, p.mixed)) return avx512::gcsa_forward(p);
    p.gate.map.dtype == DType::bfloat16 ? run<bfloat16>(p) : run<float>(p);
}

void gcsa_backward(const GcsaBackward& q) {
    const GcsaForward& p = q.forward;
    if (!uses_registers(p.gate.map, p.width, p.mixed)) return avx512::gcsa_backward(q);
    p.gate.map.dtype == DType::bfloat16 ? backward<bfloat16>(q) : backward<float>(q);
}
#else
void gcsa_forward(const GcsaForward& p) {
    switch (p.gate.map.dtype) {
        case DType::float32: return run<float>(p);
        case DType::float64: return run<double>(p);
        case DType::bfloat16: return run<bfloat16>(p);
    }
}

void gcsa_backward(const GcsaBackward& q) {
    switch (q.forward.gate.map.dtype) {
        case DType::float32: return backward<float>(q);
        case DType::float64: return backward<double>(q);
        case DType::bfloat16: return backward<bfloat16>(q);
    }
}
#endif

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
