// The convolution of a map of elements T: by Fourier transforms or, where the kernels for the processor's matrix registers
// are compiled, directly in bfloat16.
#pragma once

#include "cpu/border.h"
#include "cpu/kernels.h"
#ifdef GCSA_EXT_MATRIX_REGISTERS
#include "cpu/matrix/direct_gradient.h"
#else
#include "cpu/transforms/fft_gradient.h"
#include "cpu/transforms/fft_plan.h"
#endif

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

#ifdef GCSA_EXT_MATRIX_REGISTERS
template <class T>
using PlannedConvolution = DirectConvolution;

// True for a call that the registers serve: of bfloat16, or of float32 that may be rounded to it, with maps that fill them.
inline bool uses_registers(const FeatureMap& map, int64_t width, bool mixed) {
    return (map.dtype == DType::bfloat16 || (mixed && map.dtype == DType::float32)) && map.batch * width >= 8;
}
#else
template <class T>
using PlannedConvolution = Convolution<accumulator<T> >;
#endif

// See plan_convolution. The matrix registers take neither groups nor borders other than zeros.
template <class T>
inline PlannedConvolution<T> plan(
    int64_t batch, int64_t inputs, int64_t outputs, int64_t height, int64_t width, int64_t kernel, int threads,
    bool split_batch, bool with_gradient = false, [[maybe_unused]] int64_t groups = 1,
    [[maybe_unused]] Border border = Border::zeros
) {
#ifdef GCSA_EXT_MATRIX_REGISTERS
    return plan_direct(batch, inputs, outputs, height, width, kernel, threads, split_batch, with_gradient);
#else
    return plan_convolution<accumulator<T> >(
        batch, inputs, outputs, height, width, kernel, threads, split_batch, with_gradient, groups, border
    );
#endif
}

// Calls body(element) with a value of the element type of a call's map. A call that the matrix registers do not serve, as
// one whose convolutions are not `plain` never is, goes to AVX-512's kernel instead.
template <class Call, class Body>
inline void with_planned_element(
    [[maybe_unused]] const Call& call, const FeatureMap& map, [[maybe_unused]] int64_t width, [[maybe_unused]] bool mixed,
    [[maybe_unused]] bool plain, const Body& body
) {
#ifdef GCSA_EXT_MATRIX_REGISTERS
    if (!plain || !uses_registers(map, width, mixed)) return avx512::run<void>(call);
    map.dtype == DType::bfloat16 ? body(bfloat16{}) : body(float{});
#else
    with_element(map.dtype, body);
#endif
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
