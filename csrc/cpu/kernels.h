// Every kernel for the CPU, as compiled for one instruction set.
#pragma once

#include "params/channel_gate.h"
#include "params/convolution.h"
#include "params/gcsa.h"
#include "params/measure.h"
#include "params/norm_gate.h"
#include "params/spectrogram_mask.h"

namespace gcsa_ext::cpu {

template <class Call, class Result = void>
using Kernel = Result (*)(const Call&);

// The kernels of one instruction set. Every member behind `isa` points to the specialisation of `run` (below) for its type
// of call: kernels.cpp fills the table from the members' types.
struct Kernels {
    const char* isa;
    Kernel<ChannelGateForward> channel_gate_forward;
    Kernel<ChannelGateBackward> channel_gate_backward;
    Kernel<NormGateForward> norm_gate_forward;
    Kernel<NormGateBackward> norm_gate_backward;
    Kernel<ConvolutionForward> convolution_forward;
    Kernel<ConvolutionBackward> convolution_backward;
    Kernel<SpectrogramMask> spectrogram_mask;
    Kernel<GcsaForward> gcsa_forward;
    Kernel<GcsaBackward> gcsa_backward;
    Kernel<CoreRoundTrip, double> core_round_trip;
};

#ifdef GCSA_EXT_ISA
namespace GCSA_EXT_ISA {
// The kernel for a type of call, specialised in the operator's file.
template <class Result, class Call>
Result run(const Call&);
}  // namespace GCSA_EXT_ISA
#endif
#ifdef GCSA_EXT_MATRIX_REGISTERS
namespace avx512 {  // takes the calls that cannot use the matrix registers
template <class Result, class Call>
Result run(const Call&);
}  // namespace avx512
#endif

}  // namespace gcsa_ext::cpu
