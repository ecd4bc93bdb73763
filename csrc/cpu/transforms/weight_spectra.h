// The spectra of a convolution's weights that calls keep for each other (../kept_spectra.h).
#pragma once

#include <atomic>
#include <memory>

#include "cpu/transforms/fft_convolution.h"
#include "memory/kept_spectra.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// One call's share in it. The second call that finds the same weights transforms and keeps them, later ones use that, and
// every other one does as if there were nothing to keep. All threads of a call take part, step by step: check, a barrier,
// fill and, where that was needed, another barrier; in the end comes keep.
template <class A>
class WeightSpectra {
   public:
    WeightSpectra(const Convolution<A>& c, const Taps<A>& taps, const void* source) : tiling_(c.tiling), taps_(taps) {
        constexpr int64_t element = sizeof(A);
        bytes_ = taps.outputs * taps.inputs * taps.size() * element;
        const SpectraUnits<A> units(tiling_, taps);
        const int64_t spectra_bytes = units.count * units.unit_size * element;
        wanted_ = worth_keeping(bytes_, spectra_bytes);
        if (!wanted_) return;
        key_ = {source,      element,     taps.strides.tap, taps.outputs,
                taps.inputs, taps.kernel, tiling_.y.length, tiling_.x.length};
        kept_ = find_spectra(key_);
        same_ = kept_ != nullptr;
        if (!kept_) return;
        spectra_ = kept_->spectra;
        if (!spectra_) spectra_ = std::make_shared<Scratch>(spectra_bytes, Scratch::Use::lasting);
    }
    WeightSpectra(const WeightSpectra&) = delete;
    WeightSpectra& operator=(const WeightSpectra&) = delete;

    // Whether the weights are the same.
    void check(const Team& team) {
        if (!same_) return;
        const auto [begin, end] = team.share(bytes_);
        const char* const now = reinterpret_cast<const char*>(taps_.data);
        if (__builtin_memcmp(now + begin, kept_->weights.data() + begin, end - begin) != 0) same_ = false;
    }
    // Whether there was anything to transform. It is the copy that was compared, since others may write to the weights at
    // any time.
    bool fill(const Team& team, A* scratch) const {
        if (!same_ || kept_->spectra) return false;
        Taps<A> copy = taps_;
        copy.data = reinterpret_cast<const A*>(kept_->weights.data());
        const Multiplication<A> product(tiling_, copy, scratch);
        A* const to = static_cast<A*>(spectra_->data());
        team.for_each(SpectraUnits<A>(tiling_, copy).count, [&](int64_t unit) { product.make_unit(unit, to); });
        return true;
    }
    Taps<A> taps() const {
        Taps<A> taps = taps_;
        if (same_) taps.spectra = static_cast<const A*>(spectra_->data());
        return taps;
    }
    // At the end, by one thread.
    void keep() const {
        if (!wanted_ || (same_ && kept_->spectra)) return;
        if (same_)
            keep_spectra(key_, kept_->weights.data(), bytes_, spectra_);
        else
            keep_spectra(key_, taps_.data, bytes_, nullptr);
    }

   private:
    Tiling tiling_;
    Taps<A> taps_;
    int64_t bytes_;
    bool wanted_;
    WeightsKey key_;
    std::shared_ptr<const KeptSpectra> kept_;
    std::shared_ptr<const Scratch> spectra_;
    std::atomic<bool> same_{false};
};

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
