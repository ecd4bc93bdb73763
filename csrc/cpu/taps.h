// The weights of a convolution and their gradient.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/blocked.h"
#include "cpu/transforms/spectral_product.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// Where an element (output, input, tap) of a convolution's weights lies.
struct TapStrides {
    int64_t output, input, tap;

    // Of (outputs, inputs, kernel, kernel), or of their gradient.
    static TapStrides of(Layout layout, int64_t inputs, int64_t kernel) {
        const int64_t size = kernel * kernel;
        if (layout == Layout::channels_last) return {inputs * size, 1, inputs};
        return {inputs * size, size, 1};
    }
    TapStrides exchanged() const { return {input, output, tap}; }
    int64_t at(int64_t o, int64_t i, int64_t t) const { return o * output + i * input + t * tap; }
};

// The weights of a convolution in groups of channels: there are only those of an input and an output of the same group.
template <class A>
struct Taps {
    const A* data;
    int64_t outputs, inputs;  // of all groups
    TapStrides strides;
    int64_t kernel;
    bool mirrored;       // false: out[p] = sum_d w[d] in[p + d]; true: w[d] in[p - d], the gradient of the former's input
    int64_t groups = 1;  // with several, each has whole blocks of outputs

    // The taps of a convolution with weights in this layout, and of the one from its output's gradient to its input's.
    static Taps forward(
        const void* data, Layout layout, int64_t outputs, int64_t inputs, int64_t kernel, int64_t groups = 1
    ) {
        const TapStrides strides = TapStrides::of(layout, inputs / groups, kernel);
        return {static_cast<const A*>(data), outputs, inputs, strides, kernel, false, groups};
    }
    static Taps backward(
        const void* data, Layout layout, int64_t outputs, int64_t inputs, int64_t kernel, int64_t groups = 1
    ) {
        const TapStrides strides = TapStrides::of(layout, inputs / groups, kernel).exchanged();
        return {static_cast<const A*>(data), inputs, outputs, strides, kernel, true, groups};
    }
    int64_t group_inputs() const { return inputs / groups; }
    int64_t group_blocks() const { return (outputs / groups + lanes<A> - 1) / lanes<A>; }
    // The group of a block of outputs, and the first input of that group.
    int64_t group(int64_t block) const { return block / group_blocks(); }
    int64_t first_input(int64_t block) const { return group(block) * group_inputs(); }
    // The taps of the first output of a block and of an input of its group. The weights lie in memory as (outputs, inputs of
    // a group, kernel, kernel), where inputs and outputs are exchanged for mirrored taps.
    const A* at(int64_t block, int64_t input) const {
        const int64_t first = group(block);
        const int64_t missing =
            mirrored ? first * (outputs / groups) * strides.output : first * group_inputs() * strides.input;
        return data + strides.at(block * lanes<A>, input, 0) - missing;
    }
    int64_t size() const { return kernel * kernel; }
    int64_t outputs_in(int64_t block) const { return std::min<int64_t>(outputs - block * lanes<A>, lanes<A>); }
};

// Where the gradient of a convolution's weights goes, and its second operand beside the output's gradient g.
template <class A>
struct WeightGradient {
    const BlockedMap<A>* input;  // of the convolution; null if no gradient of the weights is wanted
    A* grad;                     // (channels of g, channels of input / groups, kernel, kernel)
    Layout layout;               // of grad
    A* sums;                     // memory for unit_sums_size elements, or null where that is 0
    int64_t groups = 1;
};

// A rectangle of a grouped convolution's weights: inputs and outputs [begin, end).
struct WeightRectangle {
    int64_t first_input, end_input, first_output, end_output;
};
// The sizes of one group of channels of a convolution.
struct GroupSizes {
    int64_t inputs, outputs;

    // True if an input and an output of the rectangle are in the same group.
    bool has_weights(WeightRectangle r) const { return first_(r) < end_(r); }
    // Calls body(group, rectangle) for each group that has inputs and outputs of the rectangle, with these.
    template <class Body>
    void for_each_part(WeightRectangle r, const Body& body) const {
        for (int64_t group = first_(r); group < end_(r); ++group)
            body(
                group, WeightRectangle{
                           std::max(r.first_input, group * inputs), std::min(r.end_input, (group + 1) * inputs),
                           std::max(r.first_output, group * outputs), std::min(r.end_output, (group + 1) * outputs)
                       }
            );
    }

   private:
    int64_t first_(WeightRectangle r) const { return std::max(r.first_input / inputs, r.first_output / outputs); }
    int64_t end_(WeightRectangle r) const { return std::min((r.end_input - 1) / inputs, (r.end_output - 1) / outputs) + 1; }
};

// From a row of `count` scalars for each output to vectors of all outputs.
template <class A>
inline void gather_rows(const A* from, int64_t output_stride, int64_t outputs, int64_t count, A* to) {
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
// The way back, times a factor. Stores that cross a cache line take several times as long: where all rows can then be
// aligned, the first few scalars of each are stored separately.
template <class A>
inline void scatter_rows(const A* from, int64_t output_stride, int64_t outputs, int64_t count, A factor, A* to) {
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

// From the taps of `outputs` outputs and `inputs` inputs, each at most as many as a vector has lanes, to vectors of all
// outputs, [input][tap]. One of the three strides is 1.
template <class A>
inline void gather_taps(const A* from, TapStrides strides, int64_t outputs, int64_t inputs, int64_t taps, A* to) {
    constexpr int L = lanes<A>;
    if (strides.tap == 1 && strides.input == taps) {
        gather_rows(from, strides.output, outputs, inputs * taps, to);
    } else if (strides.tap == 1) {
        for (int64_t i = 0; i < inputs; ++i)
            gather_rows(from + i * strides.input, strides.output, outputs, taps, to + i * taps * L);
    } else if (strides.output == 1) {
        for (int64_t i = 0; i < inputs; ++i)
            for (int64_t t = 0; t < taps; ++t) {
                const A* const at = from + strides.at(0, i, t);
                const vec<A> value = outputs == L ? load(at, Full<A>{}) : load(at, static_cast<int>(outputs));
                store(to + (i * taps + t) * L, value, Full<A>{});
            }
    } else {
        for (int64_t t = 0; t < taps; ++t)
            transpose_rows(from + t * strides.tap, strides.output, outputs, inputs, [&](int i, vec<A> value) {
                store(to + (i * taps + t) * L, value, Full<A>{});
            });
    }
}
// The way back, times a factor.
template <class A>
inline void scatter_taps(const A* from, TapStrides strides, int64_t outputs, int64_t inputs, int64_t taps, A factor, A* to) {
    constexpr int L = lanes<A>;
    const auto vector = [&](int64_t i, int64_t t) { return load(from + (i * taps + t) * L, Full<A>{}) * factor; };
    if (strides.tap == 1 && strides.input == taps) {
        scatter_rows(from, strides.output, outputs, inputs * taps, factor, to);
    } else if (strides.tap == 1) {
        for (int64_t i = 0; i < inputs; ++i)
            scatter_rows(from + i * taps * L, strides.output, outputs, taps, factor, to + i * strides.input);
    } else if (strides.output == 1) {
        for (int64_t i = 0; i < inputs; ++i)
            for (int64_t t = 0; t < taps; ++t) store(to + strides.at(0, i, t), vector(i, t), static_cast<int>(outputs));
    } else {
        for (int64_t t = 0; t < taps; ++t)
            transpose_square<A>(
                inputs, outputs, [&](int i) { return vector(i, t); },
                [&](int o, vec<A> value) { store(to + strides.at(o, 0, t), value, static_cast<int>(inputs)); }
            );
    }
}
// Prefetches the memory that a later scatter_taps writes.
template <class A>
inline void prefetch_taps_to_write(TapStrides strides, int64_t outputs, int64_t inputs, int64_t taps, A* to) {
    if (strides.tap == 1) {
        for (int64_t o = 0; o < outputs; ++o) prefetch_to_write(to + o * strides.output, inputs * taps);
    } else {
        for (int64_t o = 0; o < outputs; ++o)
            for (int64_t t = 0; t < taps; ++t) prefetch_to_write(to + strides.at(o, 0, t), 1);
    }
}

// The weights of one block of outputs and `count` inputs as cache lines, to be prefetched step by step. A step has one line
// for each input, and all steps together have all lines.
template <class A>
class TapLines {
    static constexpr int64_t L = lanes<A>, line = cache_line / static_cast<int64_t>(sizeof(A));

   public:
    TapLines(const Taps<A>& taps, const A* first, int64_t count) : first_(first), count_(count) {
        // Mirrored taps lie in one run per input, others in one run per output.
        const TapStrides& strides = taps.strides;
        const int64_t segments = taps.mirrored ? 1 : (count + L - 1) / L, run = (taps.mirrored ? L : count) * taps.size();
        stride_ = taps.mirrored ? strides.input : strides.output;
        segment_stride_ = taps.mirrored ? L * stride_ : strides.tap == 1 ? line : L;
        step_ = strides.tap == 1 ? segments * line : strides.tap;
        steps_ = strides.tap == 1 ? run / step_ + 1 : taps.size();
    }
    // The lines of step i; from the last step on always the same.
    Lines<A> step(int64_t i) const { return {first_ + std::min(i, steps_ - 1) * step_, stride_, segment_stride_}; }
    // Prefetches the lines of one of `shares` shares of the steps.
    GCSA_EXT_INLINE void prefetch_share(int64_t share, int64_t shares) const {
        for (int64_t row = 0; row < std::min(count_, L); ++row)
            for (int64_t i = steps_ * share / shares; i < steps_ * (share + 1) / shares; ++i)
                for (int64_t at = row; at < count_; at += L)
                    prefetch(first_ + i * step_ + at / L * segment_stride_ + row * stride_, 1);
    }

   private:
    const A* first_;
    int64_t count_, stride_, segment_stride_, step_, steps_;
};

// Calls take(i, vectors) for the taps of inputs first ... first + count and one block of outputs, i counted from `first`: a
// vector of all outputs for each tap. `gathered` is scratch for kernel^2 vectors of as many inputs as a vector has lanes.
// The lines of `later`, which may be null, are prefetched between the calls.
template <class A, class Take>
inline void for_each_taps(
    const Taps<A>& taps, int64_t block, int64_t first, int64_t count, const TapLines<A>* later, A* gathered, const Take& take
) {
    constexpr int L = lanes<A>;
    const TapStrides strides = taps.strides;
    const int64_t outputs = taps.outputs_in(block), size = taps.size();
    const A* const from = taps.at(block, first);
    // Inputs that follow each other in memory are gathered together: as many as a vector has lanes or, where their taps
    // follow each other, a quarter of that, whose full squares stay in the L1 cache until they are transformed.
    const int64_t together = strides.input == 1 ? L : strides.input == size ? std::max(L / 4, 1) : 1;
    for (int64_t i = 0; i < count; i += together) {
        const int64_t inputs = std::min(together, count - i);
        gather_taps(from + i * strides.input, strides, outputs, inputs, size, gathered);
        for (int64_t j = 0; j < inputs; ++j) {
            if (later) later->prefetch_share(i + j, count);
            take(i + j, gathered + j * size * L);
        }
    }
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
