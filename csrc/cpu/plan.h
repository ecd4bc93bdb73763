// The convolution of a map of elements T: by Fourier transforms or, where the kernels for the processor's matrix registers
// are compiled, directly in bfloat16.
#pragma once

#ifdef GCSA_EXT_MATRIX_REGISTERS
#include "direct_gradient.h"
#else
#include "fft_gradient.h"
#include "fft_plan.h"
#endif

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

#ifdef GCSA_EXT_MATRIX_REGISTERS
template <class T>
using PlannedConvolution = DirectConvolution;

// Whether maps of this width fill the registers: if not, the kernels for AVX-512 are called.
inline bool fills_registers(const FeatureMap& map, int64_t width) { return map.batch * width >= 8; }
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
