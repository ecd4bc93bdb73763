// The convolution of a map of elements T: by Fourier transforms or, where the kernels for the processor's matrix registers
// are compiled, directly in bfloat16.
#pragma once

#ifdef GCSA_EXT_MATRIX_REGISTERS
#include "cpu/matrix/direct_gradient.h"
#else
#include "cpu/transforms/fft_gradient.h"
#include "cpu/transforms/fft_plan.h"
#include "cpu/transforms/weight_spectra.h"
#endif

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

#ifdef GCSA_EXT_MATRIX_REGISTERS
template <class T>
using PlannedConvolution = DirectConvolution;

// Whether a call is for them: of bfloat16, or of float32 that may be rounded to it, with maps that fill the registers.
inline bool uses_registers(const FeatureMap& map, int64_t width, bool mixed) {
    return (map.dtype == DType::bfloat16 || (mixed && map.dtype == DType::float32)) && map.batch * width >= 8;
}

// They take weights as they are: there is nothing to keep.
template <class A>
class WeightSpectra {
   public:
    WeightSpectra(const DirectConvolution&, const Taps<A>& taps, const void*) : taps_(taps) {}
    void check(const Team&) const {}
    bool fill(const Team&, A*) const { return false; }
    void keep() const {}
    Taps<A> taps() const { return taps_; }

   private:
    Taps<A> taps_;
};
#else
template <class T>
using PlannedConvolution = Convolution<accumulator<T> >;
#endif

// See plan_convolution.
template <class T, class... Arguments>
inline PlannedConvolution<T> plan(const Arguments&... arguments) {
#ifdef GCSA_EXT_MATRIX_REGISTERS
    return plan_direct(arguments...);
#else
    return plan_convolution<accumulator<T> >(arguments...);
#endif
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
