// The weights of a convolution in groups of channels, as the convolution reads them.
//
// It computes whole blocks of outputs, each from whole blocks of inputs or a part of one. Where groups do not fit that,
// several neighbouring groups are computed as one, with zeros for the weights between them.
#pragma once

#include "cpu/taps.h"
#include "cpu/team.h"
#include "cpu/workspace.h"
#include "params/gcsa.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// The number of groups after groups were put together, where needed.
template <class A>
inline int64_t computed_groups(int64_t groups, int64_t inputs, int64_t outputs) {
    constexpr int64_t L = lanes<A>;
    for (int64_t merged = 1; merged < groups; ++merged) {
        if (groups % merged != 0) continue;
        const int64_t in = inputs / groups * merged, out = outputs / groups * merged;
        if (out % L == 0 && (in % L == 0 || L % in == 0)) return groups / merged;
    }
    return 1;
}

template <class A>
class GroupedWeights {
   public:
    // Of the convolution itself or, with `back`, of that from its output's gradient to its input's.
    GroupedWeights(const Convolution2d& conv, int64_t outputs, int64_t inputs, bool back)
        : conv_(conv),
          outputs_(outputs),
          inputs_(inputs),
          back_(back),
          groups_(computed_groups<A>(conv.groups, back ? outputs : inputs, back ? inputs : outputs)) {}

    int64_t groups() const { return groups_; }
    // The weights with zeros between the groups that are computed as one, in elements: 0 where there are none.
    int64_t size() const {
        return groups_ == conv_.groups ? 0 : Pieces<A>::size(outputs_ * (inputs_ / groups_) * conv_.kernel * conv_.kernel);
    }
    // Fills memory of that size.
    void expand(const Team& team, A* to) const {
        if (size() == 0) return;
        const int64_t inputs = inputs_ / conv_.groups, outputs = outputs_ / conv_.groups;
        const int64_t merged = conv_.groups / groups_, taps = conv_.kernel * conv_.kernel, row = merged * inputs * taps;
        const TapStrides strides = TapStrides::of(conv_.layout, inputs, conv_.kernel);
        const A* const weight = static_cast<const A*>(conv_.weight);
        team.for_each(outputs_, [&](int64_t output) {
            A* const all = to + output * row;
            std::fill(all, all + row, A(0));
            A* const own = all + output / outputs % merged * inputs * taps;
            for (int64_t i = 0; i < inputs; ++i)
                for (int64_t t = 0; t < taps; ++t) own[i * taps + t] = weight[strides.at(output, i, t)];
        });
    }
    // Of the expanded weights, if there are any.
    Taps<A> taps(const A* expanded) const {
        const void* const data = size() ? expanded : conv_.weight;
        const Layout layout = size() ? Layout::contiguous : conv_.layout;
        return back_ ? Taps<A>::backward(data, layout, outputs_, inputs_, conv_.kernel, groups_)
                     : Taps<A>::forward(data, layout, outputs_, inputs_, conv_.kernel, groups_);
    }

   private:
    Convolution2d conv_;
    int64_t outputs_, inputs_;
    bool back_;
    int64_t groups_;
};

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
