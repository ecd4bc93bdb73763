// The channel shuffle of the spatial gate: its channel d is multiplied by channel shuffle.to(d) of the gated map, and the
// product is that channel of the result.
#pragma once

#include "cpu/blocked.h"
#include "cpu/workspace.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

template <class A>
class GateShuffle {
    static constexpr int L = lanes<A>;

   public:
    GateShuffle(int64_t channels, int64_t groups, int64_t positions)
        : shuffle_{groups, channels / groups},
          channels_(channels),
          moves_(groups > 1 && groups < channels),
          offsets_(moves_ ? round_up(channels, L) : 0) {
        if (!moves_) return;
        for (int64_t d = 0; d < round_up(channels, L); ++d) {
            const int64_t c = channel(d);
            offsets_.data()[d] = c / L * positions * L + c % L;
        }
    }

    // False if every channel stays in its place.
    bool moves() const { return moves_; }
    // The channel of the gated map that belongs to channel d of the gate. Lanes without a channel stay in their place.
    int64_t channel(int64_t d) const { return d < channels_ ? shuffle_.to(d) : d; }

    // The values of the gated map, a blocked map, that belong to one position of a block of the gate: read and written.
    vec<A> gather(const A* image, int64_t block, int64_t position) const {
        const int64_t* const offset = offsets_.data() + block * L;
        const A* const at = image + position * L;
        A lane[L];
        for (int i = 0; i < L; ++i) lane[i] = at[offset[i]];
        return load(lane, Full<A>{});
    }
    void scatter(A* image, int64_t block, int64_t position, vec<A> value) const {
        const int64_t* const offset = offsets_.data() + block * L;
        A* const at = image + position * L;
        for (int i = 0; i < L; ++i) at[offset[i]] = value[i];
    }

   private:
    ChannelShuffle shuffle_;
    int64_t channels_;
    bool moves_;
    Workspace<int64_t> offsets_;  // of the lanes that belong to those of the gate, from those of a position of block 0
};

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
