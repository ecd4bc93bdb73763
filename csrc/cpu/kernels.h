// Every kernel for the CPU, as compiled for one instruction set.
#pragma once

#include "params/channel_gate.h"
#include "params/convolution.h"
#include "params/frequency_mask.h"
#include "params/gcsa.h"
#include "params/measure.h"
#include "params/norm_gate.h"

namespace gcsa_ext::cpu {

struct Kernels {
    const char* isa;
    void (*channel_gate_forward)(const ChannelGateForward&);
    void (*channel_gate_backward)(const ChannelGateBackward&);
    void (*norm_gate_forward)(const NormGateForward&);
    void (*norm_gate_backward)(const NormGateBackward&);
    void (*convolution_forward)(const ConvolutionForward&);
    void (*convolution_backward)(const ConvolutionBackward&);
    void (*frequency_mask)(const FrequencyMask&);
    void (*gcsa_forward)(const GcsaForward&);
    void (*gcsa_backward)(const GcsaBackward&);
    double (*fma_peak)(int threads, double seconds);
    double (*core_round_trip)(double seconds);
    double (*product_rate)(const ProductRate&);
};

#ifdef GCSA_EXT_ISA
#define GCSA_EXT_DECLARE_KERNELS(isa)                       \
    namespace isa {                                         \
    void channel_gate_forward(const ChannelGateForward&);   \
    void channel_gate_backward(const ChannelGateBackward&); \
    void norm_gate_forward(const NormGateForward&);         \
    void norm_gate_backward(const NormGateBackward&);       \
    void convolution_forward(const ConvolutionForward&);    \
    void convolution_backward(const ConvolutionBackward&);  \
    void frequency_mask(const FrequencyMask&);              \
    void gcsa_forward(const GcsaForward&);                  \
    void gcsa_backward(const GcsaBackward&);                \
    double fma_peak(int threads, double seconds);           \
    double core_round_trip(double seconds);                 \
    double product_rate(const ProductRate&);                \
    }
GCSA_EXT_DECLARE_KERNELS(GCSA_EXT_ISA)
#ifdef GCSA_EXT_MATRIX_REGISTERS
GCSA_EXT_DECLARE_KERNELS(avx512)
#endif
#undef GCSA_EXT_DECLARE_KERNELS
#endif

}  // namespace gcsa_ext::cpu
