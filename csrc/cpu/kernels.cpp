// The table of this instruction set's kernels.

#include "kernels.h"

#define GCSA_EXT_STRINGIFY(name) #name
#define GCSA_EXT_NAME_OF(name) GCSA_EXT_STRINGIFY(name)

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

extern const Kernels table;
#ifdef GCSA_EXT_MATRIX_REGISTERS
// What does not use the registers is as for AVX-512.
const Kernels table = [] {
    Kernels all = avx512::table;
    all.isa = GCSA_EXT_NAME_OF(GCSA_EXT_ISA);
    all.convolution_forward = convolution_forward;
    all.convolution_backward = convolution_backward;
    all.gcsa_forward = gcsa_forward;
    all.gcsa_backward = gcsa_backward;
    return all;
}();
#else
const Kernels table = {
    GCSA_EXT_NAME_OF(GCSA_EXT_ISA),
    channel_gate_forward,
    channel_gate_backward,
    norm_gate_forward,
    norm_gate_backward,
    convolution_forward,
    convolution_backward,
    frequency_mask,
    gcsa_forward,
    gcsa_backward,
    fma_peak,
    core_round_trip,
    product_rate,
    time_products,
    time_reading,
};
#endif

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
