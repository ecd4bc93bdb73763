// What follows a convolution in the forward pass of the attention: its bias, then the normalisation.
#pragma once

#include "cpu/operators/gcsa.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// Vectors with a value per channel, padded with zeros to whole blocks.
template <class A>
class Affine {
   public:
    Affine(Pieces<A>& pieces, int64_t channels)
        : channels_(channels),
          padded_(round_up(channels, lanes<A>)),
          bias_(pieces.take(padded_)),
          scale_(pieces.take(padded_)),
          shift_(pieces.take(padded_)) {}
    static int64_t size(int64_t channels) { return 3 * Pieces<A>::size(round_up(channels, lanes<A>)); }

    void set_bias(const Convolution2d& conv) const {
        for (int64_t c = 0; c < padded_; ++c) bias_[c] = c < channels_ ? value_or<A>(conv.bias, c, 0) : 0;
    }
    // From the normalisation's mean and variance.
    void set_norm(const BatchNorm& norm) const {
        for (int64_t c = 0; c < padded_; ++c) {
            const bool exists = c < channels_;
            scale_[c] = exists ? value_or<A>(norm.weight, c, 1) * inverse_deviation<A>(norm, c) : 0;
            shift_[c] = exists ? value_or<A>(norm.bias, c, 0) - static_cast<const A*>(norm.mean)[c] * scale_[c] : 0;
        }
    }

    // The values of one block of channels, in registers.
    struct Block {
        vec<A> bias, scale, shift;
        vec<A> biased(vec<A> value) const { return value + bias; }
        vec<A> normalised(vec<A> value) const { return value * scale + shift; }
    };
    Block block(int64_t b) const {
        const auto at = [&](const A* v) { return load(v + b * lanes<A>, Full<A>{}); };
        return {at(bias_), at(scale_), at(shift_)};
    }

   private:
    int64_t channels_, padded_;
    A *bias_, *scale_, *shift_;
};

// How both convolutions of the forward pass are carried out.
template <class T>
struct ForwardPlan {
    using A = accumulator<T>;
    GroupedWeights<A> weights1, weights2;
    PlannedConvolution<T> conv1, conv2;
    bool split_batch;  // every thread works on images of its own
    int teams;         // of threads that work together

    ForwardPlan(const GcsaForward& p, const GcsaShape<T>& s)
        : weights1(p.conv1, s.m, s.C, false),
          weights2(p.conv2, s.C, s.m, false),
          conv1(plan1_(p, s, false)),
          conv2(plan2_(p, s, false)) {
        const PlannedConvolution<T> split1 = plan1_(p, s, true), split2 = plan2_(p, s, true);
        split_batch = better_split(split1, conv1, s.threads) && better_split(split2, conv2, s.threads);
        if (split_batch) conv1 = split1, conv2 = split2;
        teams = split_batch ? s.threads : 1;
    }

    int64_t weights_size() const { return weights1.size() + weights2.size(); }
    int64_t workspace_size() const { return std::max(conv1.workspace_size(), conv2.workspace_size()); }  // of a team
    int64_t scratch_size() const { return std::max(conv1.scratch_size(), conv2.scratch_size()); }        // of a thread
    Team team(const Team& all) const { return split_batch ? Team{0, 1} : all; }
    int64_t team_number(const Team& all) const { return split_batch ? all.rank : 0; }
    Team::Share images(const Team& all, int64_t N) const { return split_batch ? all.share(N) : Team::Share{0, N}; }

   private:
    static Border border_(const GcsaForward& p) { return p.replicate ? Border::replicate : Border::zeros; }
    PlannedConvolution<T> plan1_(const GcsaForward& p, const GcsaShape<T>& s, bool split) const {
        return plan<T>(s.N, s.C, s.m, s.H, s.W, p.conv1.kernel, s.threads, split, false, weights1.groups(), border_(p));
    }
    PlannedConvolution<T> plan2_(const GcsaForward& p, const GcsaShape<T>& s, bool split) const {
        return plan<T>(s.N, s.m, s.C, s.H, s.W, p.conv2.kernel, s.threads, split, false, weights2.groups(), border_(p));
    }
};

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
