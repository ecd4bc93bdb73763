// Convolution with a 1x1 kernel: a matrix product at every position of a blocked map (blocked.h).
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/blocked.h"
#include "cpu/matmul.h"
#include "cpu/taps.h"
#include "cpu/team.h"
#include "cpu/workspace.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// Positions at a time: their sums stay in the L1 cache while the blocks of inputs are added.
constexpr int64_t pointwise_positions = 96;

// Memory of each thread, in elements: the weights of one block of outputs as vectors of all outputs, the vectors gathered
// at a time, and the sums of one run of positions.
template <class A>
inline int64_t pointwise_scratch(int64_t inputs) {
    return (inputs + lanes<A> + pointwise_positions) * lanes<A>;
}

struct ImageRangeOfBatch {
    int64_t first, count;
};

// Convolves some images. epilogue(image, block, first position, count, vectors, step between vectors) takes runs of the
// result, and finish(range) the same positions after that. Afterwards all threads of the team see the result.
template <class A, class Epilogue, class Finish>
inline void convolve_pointwise(
    const Team& team, const BlockedMap<A>& in, ImageRangeOfBatch images, const Taps<A>& taps, A* scratch,
    const Epilogue& epilogue, const Finish& finish
) {
    constexpr int64_t L = lanes<A>;
    const int64_t inputs = taps.group_inputs(), positions = in.positions();
    const int64_t runs = (positions + pointwise_positions - 1) / pointwise_positions, per_block = images.count * runs;
    A *const weights = scratch, *const gathered = weights + inputs * L, *const sums = gathered + L * L;
    int64_t block_of_weights = -1;
    team.for_each(taps.groups * taps.group_blocks() * per_block, [&](int64_t unit) {
        const int64_t block = unit / per_block, image = images.first + unit % per_block / runs;
        const int64_t at = unit % runs * pointwise_positions, count = std::min(pointwise_positions, positions - at);
        const int64_t first = taps.first_input(block), end = first + inputs;
        if (block != block_of_weights) {
            const TapLines<A>* const none = nullptr;
            for_each_taps(taps, block, first, inputs, none, gathered, [&](int64_t i, const A* vector) {
                store(weights + i * L, load(vector, Full<A>{}), Full<A>{});
            });
            block_of_weights = block;
        }
        for (int64_t input = first, some; input < end; input += some) {
            some = std::min(L - input % L, end - input);
            const MatrixView<A> values{in.block(image, input / L) + at * L + input % L, L, 1};
            matmul<A>(count, L, some, values, weights + (input - first) * L, L, sums, L, input > first);
        }
        epilogue(image, block, at, count, sums, L);
        finish(BlockRange{image, block, at, count});
    });
    team.barrier();
}

// The gradient of the weights from the gradient g of the output, over `batch` images. `sums` is scratch of each thread for
// the gradient of one block of inputs and one of outputs.
template <class A>
inline void pointwise_weight_gradient(
    const Team& team, int64_t batch, const BlockedMap<A>& g, const WeightGradient<A>& weights, A* sums
) {
    constexpr int64_t L = lanes<A>;
    const BlockedMap<A>& x = *weights.input;
    const GroupSizes group{x.channels / weights.groups, g.channels / weights.groups};
    const TapStrides strides = TapStrides::of(weights.layout, group.inputs, 1);
    const auto rectangle = [&](int64_t unit) -> WeightRectangle {
        const int64_t input = unit % x.blocks() * L, output = unit / x.blocks() * L;
        return {input, std::min(input + L, x.channels), output, std::min(output + L, g.channels)};
    };
    team.for_each_chosen(
        x.blocks() * g.blocks(), [&](int64_t unit) { return group.has_weights(rectangle(unit)); },
        [&](int64_t unit) {
            const WeightRectangle all = rectangle(unit);
            // A sum of the sums of ranges has fewer rounding errors than one of all positions.
            for (int64_t i = 0; i < block_ranges(batch, 1, x.positions()); ++i) {
                const BlockRange range = block_range(i, 1, x.positions());
                const MatrixView<A> values{x.block(range.image, all.first_input / L) + range.begin * L, 1, L};
                const A* const gradients = g.block(range.image, all.first_output / L) + range.begin * L;
                matmul<A>(L, L, range.count, values, gradients, L, sums, L, i > 0);
            }
            group.for_each_part(all, [&](int64_t number, WeightRectangle part) {
                for (int64_t input = part.first_input; input < part.end_input; ++input)
                    for (int64_t output = part.first_output; output < part.end_output; ++output)
                        weights.grad[strides.at(output, input - number * group.inputs, 0)] =
                            sums[(input - all.first_input) * L + output - all.first_output];
            });
        }
    );
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
