// The weights of a convolution and their gradient.
#pragma once

#include <algorithm>
#include <cstdint>

#include "blocked.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// The weights of a convolution: element (output, input, tap) at output * output_stride + input * input_stride + tap.
template <class A>
struct Taps {
    const A* data;
    int64_t outputs, inputs, output_stride, input_stride, kernel;
    bool mirrored;  // false: out[p] = sum_d w[d] in[p + d]; true: w[d] in[p - d], the gradient of the former's input

    const A* at(int64_t output, int64_t input) const { return data + output * output_stride + input * input_stride; }
};

// What a gradient of the weights needs, with the convolution of the output's gradient g to the gradient of the input.
template <class A>
struct WeightGradient {
    const BlockedMap<A>* input;  // of the convolution whose backward pass this is
    A* grad;                     // (channels of g, channels of input, kernel, kernel)
    A* sums;                     // memory for all units if there is more than one group, else null
};

// Between a block of outputs' taps, `count` scalars in a row per output, and vectors of all outputs for each.
template <class A>
inline void gather_taps(const A* from, int64_t output_stride, int64_t outputs, int64_t count, A* to) {
    constexpr int L = lanes<A>;
    constexpr int64_t few = L / 4;
    for (int64_t tap = 0; tap < count; tap += L) {
        const int64_t left = count - tap;
        if (outputs == L && left <= few) {
            for (int64_t j = tap; j < count; ++j)
                for (int i = 0; i < L; ++i) to[j * L + i] = from[i * output_stride + j];
            return;
        }
        transpose_rows(from + tap, output_stride, outputs, std::min<int64_t>(left, L), [&](int i, vec<A> value) {
            store(to + (tap + i) * L, value, Full<A>{});
        });
    }
}
// Stores that cross a cache line take several times as long: the first few scalars are stored on their own where the others
// of all rows can then be aligned.
template <class A>
inline void scatter_taps(const A* from, int64_t output_stride, int64_t outputs, int64_t count, A factor, A* to) {
    constexpr int L = lanes<A>;
    const auto address = reinterpret_cast<uintptr_t>(to) / sizeof(A);
    const int64_t head = output_stride % L == 0 ? L - static_cast<int64_t>(address % L) : L;
    for (int64_t tap = 0, taps; tap < count; tap += taps) {
        taps = std::min<int64_t>(tap ? L : head, count - tap);
        const auto row = [&](int i) { return load(from + (tap + i) * L, Full<A>{}) * factor; };
        if (taps == L)
            transpose_square<A>(L, outputs, row, [&](int i, vec<A> value) {
                store(to + i * output_stride + tap, value, Full<A>{});
            });
        else
            transpose_square<A>(taps, outputs, row, [&](int i, vec<A> value) {
                store(to + i * output_stride + tap, value, static_cast<int>(taps));
            });
    }
}

// Calls take(i, vectors) for the taps of inputs first ... first + count and one block of outputs, i counted from `first`: a
// vector of all outputs for each tap. `gathered` is scratch for kernel^2 vectors of as many inputs as a vector has lanes.
// `next` is where the first weights of the next call are.
template <class A, class Take>
inline void for_each_taps(
    const Taps<A>& taps, int64_t block, int64_t first, int64_t count, const A* next, A* gathered, const Take& take
) {
    constexpr int L = lanes<A>;
    const int64_t outputs = std::min<int64_t>(taps.outputs - block * L, L), size = taps.kernel * taps.kernel;
    const A* const from = taps.at(block * L, first);
    // Inputs that follow each other in memory are gathered together, in full squares.
    const int64_t together = taps.input_stride == size ? L : 1;
    for (int64_t i = 0; i < count; i += together) {
        const int64_t inputs = std::min(together, count - i);
        gather_taps(from + i * taps.input_stride, taps.output_stride, outputs, inputs * size, gathered);
        for (int64_t j = 0; j < inputs; ++j) {
            // As many streams as lanes are more than the processor's own prefetching follows.
            for (int64_t k = 0; k < outputs; ++k)
                for (int64_t tap = 0; tap < size; tap += cache_line / static_cast<int64_t>(sizeof(A)))
                    __builtin_prefetch(next + k * taps.output_stride + (i + j) * taps.input_stride + tap, 0, 2);
            take(i + j, gathered + j * size * L);
        }
    }
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
