// The table of this instruction set's kernels.

#include "cpu/kernels.h"

#define GCSA_EXT_STRINGIFY(name) #name
#define GCSA_EXT_NAME_OF(name) GCSA_EXT_STRINGIFY(name)

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

#ifdef GCSA_EXT_MATRIX_REGISTERS
namespace others = avx512;  // what does not use the registers
#else
namespace others = GCSA_EXT_ISA;
#endif

// Constant: code that filled it when the module is loaded would run on every machine.
extern const Kernels table;
constexpr Kernels table = {
    GCSA_EXT_NAME_OF(GCSA_EXT_ISA),
    others::channel_gate_forward,
    others::channel_gate_backward,
    others::norm_gate_forward,
    others::norm_gate_backward,
    convolution_forward,
    convolution_backward,
    others::frequency_mask,
    gcsa_forward,
    gcsa_backward,
    others::fma_peak,
    others::core_round_trip,
    others::product_rate,
};

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
