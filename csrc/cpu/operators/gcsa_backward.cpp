// The backward pass of the attention. Nothing but the convolutions' results u1 and u2 was saved: the gated map z and a1 =
// relu(norm1(u1)) are computed again.

#include "cpu/kernels.h"
#include "cpu/operators/channel_statistics.h"
#include "cpu/operators/gcsa.h"
#include "memory/scratch.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {
namespace {

// What the gradient of a normalisation's input u needs. With n = (u - mean) / sqrt(var + eps) and d the gradient of
// n * weight + bias,
//
//   grad_weight = sum d n,  grad_bias = sum d,  grad_u = weight / sqrt(var + eps) (d - [average d + n average (d n)])
//
// the bracket only with statistics of the batch.
template <class A>
class NormGradient {
    static constexpr int L = lanes<A>;

   public:
    NormGradient(const BatchNorm& norm, int64_t channels, Pieces<A>& pieces) : norm_(norm), channels_(channels) {
        const int64_t padded = round_up(channels, L);
        for (A** vector : {&mean_, &inverse_, &scale_, &shift_, &average_d_, &average_dn_}) {
            *vector = pieces.take(padded);
            for (int64_t c = 0; c < padded; ++c) (*vector)[c] = 0;
        }
        for (int64_t c = 0; c < channels; ++c) {
            mean_[c] = static_cast<const A*>(norm.mean)[c];
            inverse_[c] = inverse_deviation<A>(norm, c);
            scale_[c] = inverse_[c] * value_or<A>(norm.weight, c, 1);
            shift_[c] = value_or<A>(norm.bias, c, 0);
        }
    }
    static int64_t size(int64_t channels) { return 6 * Pieces<A>::size(round_up(channels, L)); }

    // The values of one block of channels, in registers.
    struct Block {
        vec<A> mean, inverse, scale, shift, average_d, average_dn;
        vec<A> normalised(vec<A> u) const { return (u - mean) * inverse; }   // n
        vec<A> value(vec<A> u) const { return (u - mean) * scale + shift; }  // n * weight + bias
    };
    Block block(int64_t b) const {
        const auto at = [&](const A* v) { return load(v + b * L, Full<A>{}); };
        return {at(mean_), at(inverse_), at(scale_), at(shift_), at(average_d_), at(average_dn_)};
    }

    // Adds up the sums of d and d n that each of `threads` threads has made over `count` positions in all; sums_of(i) are
    // those of thread i. Called by one thread. The gradients may be null.
    template <class SumsOf>
    void finish(
        int threads, const SumsOf& sums_of, int64_t count, void* grad_weight, void* grad_bias, void* grad_conv_bias
    ) const {
        for (int64_t c = 0; c < channels_; ++c) {
            double d = 0, dn = 0;
            for (int i = 0; i < threads; ++i) {
                d += sums_of(i).first(c);
                dn += sums_of(i).second(c);
            }
            if (grad_weight) static_cast<A*>(grad_weight)[c] = static_cast<A>(dn);
            if (grad_bias) static_cast<A*>(grad_bias)[c] = static_cast<A>(d);
            // Statistics of the batch cancel a shift of u, so the bias of the convolution has no gradient.
            if (grad_conv_bias)
                static_cast<A*>(grad_conv_bias)[c] = norm_.batch_statistics ? A(0) : static_cast<A>(d) * scale_[c];
            if (norm_.batch_statistics) {
                average_d_[c] = static_cast<A>(d / static_cast<double>(count));
                average_dn_[c] = static_cast<A>(dn / static_cast<double>(count));
            }
        }
    }

    // grad_u from d, in its place, for a range of positions of one block of channels.
    template <class T>
    void apply(int64_t block_number, int64_t count, const T* u, A* grad) const {
        const Block n = block(block_number);
        const bool batch = norm_.batch_statistics;
        for (int64_t at = 0; at < count * L; at += L) {
            vec<A> d = load(grad + at, Full<A>{});
            // Without averages n must stay out of the sum: an infinite n times 0 is NaN.
            if (batch) d -= n.average_d + n.normalised(load(u + at, Full<T>{})) * n.average_dn;
            store(grad + at, d * n.scale, Full<A>{});
        }
    }

   private:
    const BatchNorm& norm_;
    int64_t channels_;
    A *mean_, *inverse_, *scale_, *shift_, *average_d_, *average_dn_;  // per channel, padded with zeros
};

// How the backward pass is carried out, and the memory that it needs, in elements. All threads work together.
template <class T>
struct BackwardPlan {
    using A = accumulator<T>;
    using S = Pieces<A>;

    GroupedWeights<A> weights1, weights2;
    PlannedConvolution<T> conv1, conv2;  // from the gradient of each convolution's output to that of its input
    bool want_gate, want_z;              // gradients of the gate's weights, and of the gated map
    int64_t padded_size;                 // of the gradient of a map with the values that replicate its edges
    bool u2_in_grad_x;                   // the gradient of u2 is stored in grad_x, which is written after its last use
    int64_t z_size, a1_size, packed_size, spectra_size, unit_sums_size;
    int64_t sums_size, gate_size, unit_size, scratch_size;  // of each thread

    BackwardPlan(const GcsaBackward& q, const GcsaShape<T>& s)
        : weights1(q.forward.conv1, s.m, s.C, true),
          weights2(q.forward.conv2, s.C, s.m, true),
          conv1(plan_(q.forward, s, s.m, s.C, q.forward.conv1.kernel, weights1.groups())),
          conv2(plan_(q.forward, s, s.C, s.m, q.forward.conv2.kernel, weights2.groups())),
          want_gate(q.grad_w1 != nullptr),
          want_z(want_gate || q.grad_x),
          padded_size(S::size(std::max(padded_size_(q.forward, s, conv1), padded_size_(q.forward, s, conv2)))),
          u2_in_grad_x(q.grad_x && std::is_same_v<T, A> && s.C % lanes<A> == 0),
          z_size(S::size(s.map_size(s.C, s.N))),
          a1_size(S::size(s.map_size(s.m, s.N))),
          packed_size(S::size(BlockedGate<T>::packed_size(s.C, s.h))),
          spectra_size(std::max(gradient_workspace_size(conv1), gradient_workspace_size(conv2))),
          unit_sums_size(
              S::size(
                  std::max(
                      q.grad_conv1 ? GCSA_EXT_ISA::unit_sums_size(conv1) : 0,
                      q.grad_conv2 ? GCSA_EXT_ISA::unit_sums_size(conv2) : 0
                  )
              )
          ),
          sums_size(S::size(ChannelSums<A>::size(s.most_blocks()))),
          gate_size(S::size(std::max(GateGradient<A>::size(s.C, s.h, want_gate), BlockedGate<T>::scratch_size(s.C, s.h)))),
          unit_size(S::size(std::max(GCSA_EXT_ISA::unit_size(conv1), GCSA_EXT_ISA::unit_size(conv2)))),
          scratch_size(S::size(std::max(conv1.scratch_size(), conv2.scratch_size()))) {}

    int64_t per_thread() const { return sums_size + gate_size + unit_size + scratch_size; }
    int64_t total(const GcsaShape<T>& s) const {
        return NormGradient<A>::size(s.C) + NormGradient<A>::size(s.m) + (u2_in_grad_x ? 2 : 3) * z_size + a1_size +
               padded_size + packed_size + weights1.size() + weights2.size() + spectra_size + unit_sums_size +
               s.threads * per_thread();
    }

   private:
    static PlannedConvolution<T> plan_(
        const GcsaForward& p, const GcsaShape<T>& s, int64_t inputs, int64_t outputs, int64_t kernel, int64_t groups
    ) {
        const Border border = p.replicate ? Border::full : Border::zeros;
        return plan<T>(s.N, inputs, outputs, s.H, s.W, kernel, s.threads, false, true, groups, border);
    }
    static int64_t padded_size_(const GcsaForward& p, const GcsaShape<T>& s, const PlannedConvolution<T>& conv) {
        const int64_t margin = conv.kernel - 1;
        if (!p.replicate || margin == 0) return 0;
        return s.N * BlockedMap<A>{nullptr, conv.outputs, s.H + margin, s.W + margin}.image_size();
    }
};

// Adds the values in a margin of `radius` points around each image of a map to the nearest point inside of it. Then calls
// epilogue(image, block, first position, count, vectors, step between vectors) for every row of the inside.
template <class A, class Epilogue>
void fold_margin(const Team& team, int64_t images, const BlockedMap<A>& map, int64_t radius, const Epilogue& epilogue) {
    constexpr int64_t L = lanes<A>;
    const int64_t height = map.height - 2 * radius, width = map.width - 2 * radius;
    const auto add = [](A* to, const A* from) { store(to, load(to, Full<A>{}) + load(from, Full<A>{}), Full<A>{}); };
    team.for_each(images * map.blocks() * height, [&](int64_t unit) {
        const int64_t image = unit / height / map.blocks(), block = unit / height % map.blocks(), y = unit % height;
        A* const first = map.block(image, block);
        A* const row = first + (y + radius) * map.width * L;
        const auto add_row = [&](int64_t other) {
            for (int64_t x = 0; x < map.width; ++x) add(row + x * L, first + (other * map.width + x) * L);
        };
        for (int64_t d = 0; d < radius; ++d) {
            if (y == 0) add_row(d);
            if (y == height - 1) add_row(height + radius + d);
        }
        A *const left = row + radius * L, *const right = left + (width - 1) * L;
        for (int64_t d = 1; d <= radius; ++d) {
            add(left, left - d * L);
            add(right, right + d * L);
        }
        epilogue(image, block, y * width, width, left, L);
    });
}

template <class T>
class BackwardPass {
    using A = accumulator<T>;
    static constexpr int L = lanes<A>;

   public:
    explicit BackwardPass(const GcsaBackward& q)
        : q_(q),
          p_(q.forward),
          s_(p_),
          shuffle_(s_.C, p_.gate_groups, s_.P),
          plan_(q, s_),
          weights_(p_.gate),
          memory_(plan_.total(s_) * static_cast<int64_t>(sizeof(A))),
          pieces_(static_cast<A*>(memory_.data())),
          norm1_(p_.norm1, s_.m, pieces_),
          norm2_(p_.norm2, s_.C, pieces_),
          u1_(static_cast<const T*>(p_.u1)),
          u2_(static_cast<const T*>(p_.u2)),
          z_(s_.map(pieces_.take(plan_.z_size), s_.C)),
          grad_z_(s_.map(pieces_.take(plan_.z_size), s_.C)),
          grad_u2_(s_.map(plan_.u2_in_grad_x ? static_cast<A*>(q.grad_x) : pieces_.take(plan_.z_size), s_.C)),
          a1_(s_.map(pieces_.take(plan_.a1_size), s_.m)),
          grad_u1_(a1_),
          padded_(pieces_.take(plan_.padded_size)),
          expanded1_(pieces_.take(plan_.weights1.size())),
          expanded2_(pieces_.take(plan_.weights2.size())),
          gate_(p_.gate, weights_.get(), pieces_.take(plan_.packed_size)),
          spectra_(pieces_.take(plan_.spectra_size)),
          unit_sums_(pieces_.take(plan_.unit_sums_size)),
          thread_memory_(pieces_.take(s_.threads * plan_.per_thread())) {}

    void run() const {
        parallel_team(s_.threads, [&](const Team& team) { run_(team); });
    }

   private:
    // The memory of one thread.
    ChannelSums<A> sums_(int thread) const { return ChannelSums<A>(thread_memory_ + thread * plan_.per_thread()); }
    A* gate_memory_(int thread) const { return thread_memory_ + thread * plan_.per_thread() + plan_.sums_size; }

    // All phases of one thread.
    void run_(const Team& team) const {
        A* const gate_memory = gate_memory_(team.rank);
        A* const unit = gate_memory + plan_.gate_size;
        A* const scratch = unit + plan_.unit_size;
        const ChannelSums<A> sums = sums_(team.rank);
        const auto sums_of = [&](int thread) { return sums_(thread); };
        const int64_t count = s_.N * s_.P;

        sums.clear(s_.blocks(s_.C));
        gate_.pack(team);
        plan_.weights1.expand(team, expanded1_);
        plan_.weights2.expand(team, expanded2_);
        team.barrier();
        gate_.run(team, 0, s_.N, z_, gate_memory);
        team.barrier();
        differentiate_product_(team, sums);
        team.barrier();
        if (team.rank == 0)
            norm2_.finish(team.size, sums_of, count, q_.grad_norm2_weight, q_.grad_norm2_bias, q_.grad_conv2_bias);
        activate_(team);
        team.barrier();
        differentiate_norm_(team, norm2_, s_.blocks(s_.C), u2_, grad_u2_);
        sums.clear(s_.blocks(s_.m));
        team.barrier();
        differentiate_conv2_(team, sums, unit, scratch);
        if (team.rank == 0)
            norm1_.finish(team.size, sums_of, count, q_.grad_norm1_weight, q_.grad_norm1_bias, q_.grad_conv1_bias);
        team.barrier();
        differentiate_norm_(team, norm1_, s_.blocks(s_.m), u1_, grad_u1_);
        team.barrier();
        if (plan_.want_z || q_.grad_conv1) differentiate_conv1_(team, unit, scratch);
        if (plan_.want_z) differentiate_gate_(team);
    }

    // Through out = z * activation(v) with v = norm2(u2): the gradient of v into grad_u2, its sums for the normalisation,
    // and the first part of the gradient of z.
    void differentiate_product_(const Team& team, const ChannelSums<A>& sums) const {
        const int64_t blocks = s_.blocks(s_.C);
        team.for_each(block_ranges(s_.N, blocks, s_.P), [&](int64_t i) {
            const BlockRange r = block_range(i, blocks, s_.P);
            const auto norm = norm2_.block(r.block);
            const int64_t offset = (r.image * blocks + r.block) * s_.P * L;
            const T* const u2 = u2_ + offset;
            A* const grad_u2 = grad_u2_.data + offset;
            const T* const grad_out = static_cast<const T*>(q_.grad_out);
            vec<A> sum_d{}, sum_dn{};
            with_constant(p_.gate_sigmoid, [&](auto with_sigmoid) {
                const Sigmoid<A> sigmoid;
                // Returns the gradient of a vector of z.
                const auto differentiate = [&](int64_t position, vec<A> grad, vec<A> z) {
                    const int64_t at = position * L;
                    const vec<A> u = load(u2 + at, Full<T>{}), v = norm.value(u), s = with_sigmoid ? sigmoid(v) : v;
                    const vec<A> d = with_sigmoid ? grad * z * s * (A(1) - s) : grad * z;
                    sum_d += d;
                    sum_dn += d * norm.normalised(u);
                    store(grad_u2 + at, d, Full<A>{});
                    return grad * s;
                };
                if (shuffle_.moves()) {
                    const A* const z = z_.block(r.image, 0);
                    A* const grad_z = grad_z_.block(r.image, 0);
                    read_block<T>(
                        p_.gate.map, grad_out, r,
                        [&](int64_t at, vec<A> grad) {
                            const vec<A> value = differentiate(at, grad, shuffle_.gather(z, r.block, at));
                            shuffle_.scatter(grad_z, r.block, at, value);
                        },
                        [&](int64_t d) { return shuffle_.channel(d); }
                    );
                } else {
                    const A* const z = z_.data + offset;
                    A* const grad_z = grad_z_.data + offset;
                    read_block<T>(p_.gate.map, grad_out, r, [&](int64_t at, vec<A> grad) {
                        store(grad_z + at * L, differentiate(at, grad, load(z + at * L, Full<A>{})), Full<A>{});
                    });
                }
            });
            sums.add(r.block, sum_d, sum_dn);
        });
    }

    // a1 = relu(norm1(u1))
    void activate_(const Team& team) const {
        const int64_t blocks = s_.blocks(s_.m);
        team.for_each(block_ranges(s_.N, blocks, s_.P), [&](int64_t i) {
            const BlockRange r = block_range(i, blocks, s_.P);
            const auto norm = norm1_.block(r.block);
            const int64_t offset = ((r.image * blocks + r.block) * s_.P + r.begin) * L;
            const T* const u1 = u1_ + offset;
            A* const a1 = a1_.data + offset;
            for (int64_t at = 0; at < r.count * L; at += L)
                store(a1 + at, relu<A>(norm.value(load(u1 + at, Full<T>{}))), Full<A>{});
        });
    }

    // Through a normalisation: its gradient d becomes that of u, in place.
    void differentiate_norm_(
        const Team& team, const NormGradient<A>& norm, int64_t blocks, const T* u, const BlockedMap<A>& grad
    ) const {
        team.for_each(block_ranges(s_.N, blocks, s_.P), [&](int64_t i) {
            const BlockRange r = block_range(i, blocks, s_.P);
            const int64_t offset = ((r.image * blocks + r.block) * s_.P + r.begin) * L;
            norm.apply(r.block, r.count, u + offset, grad.data + offset);
        });
    }

    A* unit_sums_of_(const PlannedConvolution<T>& conv) const { return unit_sums_size(conv) ? unit_sums_ : nullptr; }

    // convolve_backward, where the epilogue takes the gradient of the convolution's input whatever its border is.
    template <class Epilogue>
    void convolve_back_(
        const Team& team, const PlannedConvolution<T>& conv, const BlockedMap<A>& g, const Taps<A>& taps, A* unit,
        A* scratch, const WeightGradient<A>& weights, bool want_input, const Epilogue& epilogue
    ) const {
        const int64_t radius = conv.kernel / 2;
        if (!p_.replicate || radius == 0)
            return convolve_backward(team, conv, g, taps, spectra_, unit, scratch, weights, want_input, epilogue);
        const BlockedMap<A> padded{padded_, conv.outputs, s_.H + 2 * radius, s_.W + 2 * radius};
        convolve_backward(
            team, conv, g, taps, spectra_, unit, scratch, weights, want_input,
            [&](int64_t image, int64_t block, int64_t at, int64_t count, const A* run, int64_t step) {
                A* const to = padded.block(image, block) + at * L;
                for (int64_t i = 0; i < count; ++i) store(to + i * L, load(run + i * step, Full<A>{}), Full<A>{});
            }
        );
        if (want_input) fold_margin(team, s_.N, padded, radius, epilogue);
        team.barrier();
    }

    // Through the second convolution and the relu. The gradient of norm1's result overwrites a1: the spectra of a group of
    // tiles are computed before the gradients of these tiles are written.
    void differentiate_conv2_(const Team& team, const ChannelSums<A>& sums, A* unit, A* scratch) const {
        const auto taps = plan_.weights2.taps(expanded2_);
        const WeightGradient<A> weights{
            q_.grad_conv2 ? &a1_ : nullptr, static_cast<A*>(q_.grad_conv2), p_.conv2.layout, unit_sums_of_(plan_.conv2),
            p_.conv2.groups
        };
        convolve_back_(
            team, plan_.conv2, grad_u2_, taps, unit, scratch, weights, true,
            [&](int64_t image, int64_t block, int64_t at, int64_t count, const A* run, int64_t step) {
                const auto norm = norm1_.block(block);
                A* const a1 = a1_.block(image, block) + at * L;
                const T* const u1 = u1_ + (a1 - a1_.data);
                vec<A> sum_d{}, sum_dn{};
                for (int64_t i = 0; i < count; ++i) {
                    const vec<A> value = load(run + i * step, Full<A>{});
                    const vec<A> d = load(a1 + i * L, Full<A>{}) <= 0 ? vec<A>{} : value;
                    sum_d += d;
                    sum_dn += d * norm.normalised(load(u1 + i * L, Full<T>{}));
                    store(a1 + i * L, d, Full<A>{});
                }
                sums.add(block, sum_d, sum_dn);
            }
        );
    }

    // Through the first convolution: adds the second part of the gradient of z.
    void differentiate_conv1_(const Team& team, A* unit, A* scratch) const {
        const auto taps = plan_.weights1.taps(expanded1_);
        const WeightGradient<A> weights{
            q_.grad_conv1 ? &z_ : nullptr, static_cast<A*>(q_.grad_conv1), p_.conv1.layout, unit_sums_of_(plan_.conv1),
            p_.conv1.groups
        };
        convolve_back_(
            team, plan_.conv1, grad_u1_, taps, unit, scratch, weights, plan_.want_z,
            [&](int64_t image, int64_t block, int64_t at, int64_t count, const A* run, int64_t step) {
                A* const to = grad_z_.block(image, block) + at * L;
                for (int64_t i = 0; i < count; ++i)
                    store(to + i * L, load(to + i * L, Full<A>{}) + load(run + i * step, Full<A>{}), Full<A>{});
            }
        );
    }

    // Through the channel gate.
    void differentiate_gate_(const Team& team) const {
        const int64_t C = s_.C, h = s_.h, positions = s_.N * s_.P;
        const ChannelShuffle plain{1, C}, shuffle{p_.gate.groups, C / p_.gate.groups};
        GateGradient<A> gradient(gate_memory_(team.rank), C, h, plan_.want_gate);
        gradient.clear_sums();
        const auto [begin, end] = team.share((positions + L - 1) / L);
        for_each_tile<A>(begin, end, positions, block_vectors, [&](TileRange range, int64_t columns) {
            load_tile(p_.gate.map, static_cast<const T*>(p_.gate.x), range, columns, gradient.x, plain);
            load_tile(grad_z_, range, columns, gradient.grad, shuffle);
            gradient.run(weights_.get(), p_.gate.sigmoid, columns, range.count, q_.grad_x != nullptr);
            if (q_.grad_x) store_tile(p_.gate.map, static_cast<T*>(q_.grad_x), range, columns, gradient.grad, plain);
        });
        team.barrier();
        if (team.rank != 0 || !plan_.want_gate) return;
        for (int i = 1; i < team.size; ++i) gradient.add_sums(GateGradient<A>(gate_memory_(i), C, h, true));
        gradient.store_sums(
            static_cast<T*>(q_.grad_w1), static_cast<T*>(q_.grad_b1), static_cast<T*>(q_.grad_w2),
            static_cast<T*>(q_.grad_b2)
        );
    }

    const GcsaBackward& q_;
    const GcsaForward& p_;
    GcsaShape<T> s_;
    GateShuffle<A> shuffle_;
    BackwardPlan<T> plan_;
    PerceptronWeights<T> weights_;
    Scratch memory_;
    Pieces<A> pieces_;
    NormGradient<A> norm1_, norm2_;
    const T *u1_, *u2_;
    BlockedMap<A> z_, grad_z_, grad_u2_, a1_, grad_u1_;
    A *padded_, *expanded1_, *expanded2_;
    BlockedGate<T> gate_;
    A *spectra_, *unit_sums_, *thread_memory_;
};

}  // namespace

template <>
void run(const GcsaBackward& q) {
    const GcsaForward& p = q.forward;
    with_planned_element(q, p.gate.map, p.width, p.mixed, is_plain(p), [&](auto element) {
        BackwardPass<decltype(element)>(q).run();
    });
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
