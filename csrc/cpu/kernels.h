// Every kernel for the CPU, as compiled for one instruction set.
#pragma once

#include "../channel_gate.h"
#include "../convolution.h"
#include "../frequency_mask.h"
#include "../gcsa.h"
#include "../measure.h"
#include "../norm_gate.h"

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
    ProductsTime (*time_products)(const Products&);
    double (*time_reading)(const void* data, int64_t bytes, int threads);
};

#ifdef GCSA_EXT_MATRIX_REGISTERS
namespace avx512 {
extern const Kernels table;
}
#endif

#ifdef GCSA_EXT_ISA
namespace GCSA_EXT_ISA {
void channel_gate_forward(const ChannelGateForward&);
void channel_gate_backward(const ChannelGateBackward&);
void norm_gate_forward(const NormGateForward&);
void norm_gate_backward(const NormGateBackward&);
void convolution_forward(const ConvolutionForward&);
void convolution_backward(const ConvolutionBackward&);
void frequency_mask(const FrequencyMask&);
void gcsa_forward(const GcsaForward&);
void gcsa_backward(const GcsaBackward&);
double fma_peak(int threads, double seconds);
double core_round_trip(double seconds);
double product_rate(const ProductRate&);
ProductsTime time_products(const Products&);
double time_reading(const void* data, int64_t bytes, int threads);
}  // namespace GCSA_EXT_ISA
#endif

}  // namespace gcsa_ext::cpu
