// The backward pass of a convolution by Fourier transforms (fft_convolution.h).
//
// The gradient of the input is a convolution of the output's gradient g with the mirrored weights. That of a weight at
// offset d is sum_q in[q] g[q - d]: at every frequency the product of the input's spectrum and the conjugate of g's, summed
// over the tiles. Each point of the input counts once, so its tiles are taken without what they share with others, while g's
// tiles are the same as for the first gradient.
#pragma once

#include "cpu/transforms/fft_convolution.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// Sums over the tiles for a few inputs and one block of outputs, all frequencies: one unit of the weights' gradient.
template <class A>
constexpr int64_t inputs_per_unit = product_rows < lanes<A> ? product_rows : lanes<A>;
template <class A>
constexpr int64_t unit_stride = (inputs_per_unit<A> | 1) * 2 * lanes<A>;  // between frequencies

template <class A>
inline int64_t weight_gradient_units(int64_t inputs, int64_t outputs) {
    return (inputs + inputs_per_unit<A> - 1) / inputs_per_unit<A> * ((outputs + lanes<A> - 1) / lanes<A>);
}
template <class A>
inline int64_t unit_size(const Convolution<A>& c) {
    return c.tiling.frequencies() * unit_stride<A>;
}
// Of all units if they are needed at the same time.
template <class A>
inline int64_t unit_sums_size(const Convolution<A>& c) {
    return c.group < c.tiles() ? weight_gradient_units<A>(c.outputs, c.inputs) * unit_size(c) : 0;
}

// The gradient of the weights needs the spectra of two maps.
template <class A>
inline int64_t gradient_workspace_size(const Convolution<A>& c) {
    return c.by_outputs() ? c.input_size(c.inputs) + std::max(c.turn_size(c.outputs), c.team * c.output_size(lanes<A>))
                          : c.input_size(c.outputs) + c.turn_size(c.inputs) + c.output_size(c.outputs);
}

// Both gradients for the tiles of a batch. `c` is the convolution of g with the mirrored weights; without want_input its
// epilogue is never called, without weights.input no gradient of the weights is computed. Of the two maps the one with fewer
// channels is transformed as a whole, the other turn by turn.
template <class A, class Epilogue>
inline void convolve_backward(
    const Team& team, const Convolution<A>& c, const BlockedMap<A>& g, const Taps<A>& taps, A* spectra, A* unit_buffer,
    A* scratch, const WeightGradient<A>& weights, bool want_input, const Epilogue& epilogue
) {
    constexpr int L = lanes<A>, rows = static_cast<int>(inputs_per_unit<A>);
    const TapTransform<A> transform(c.tiling.y.length, c.tiling.x.length, c.kernel);
    const Multiplication<A> multiplication(c.tiling, taps, scratch);
    const int64_t F = c.tiling.frequencies(), tiles = c.tiles();
    // From here on with the names of the forward convolution: c takes its outputs and gives its inputs.
    const int64_t inputs = c.outputs, outputs = c.inputs, kk = c.kernel * c.kernel, strips = (inputs + rows - 1) / rows;
    for (int64_t done = 0; done < tiles; done += c.group) {
        const TileRangeOfBatch group{done, tiles - done < c.group ? tiles - done : c.group};
        const bool first = done == 0, last = done + group.count == tiles;

        // For some inputs and outputs, of which x and g are the spectra, from first_input and first_output on.
        const auto weight_gradient = [&](const InputSpectra<A>& x, int64_t first_input, const InputSpectra<A>& g,
                                         int64_t first_output) {
            const int64_t strips_here = std::min(x.blocks * L / rows, strips - first_input / rows);
            team.for_each(strips_here * g.blocks, [&](int64_t i) {
                const int64_t x_row = i % strips_here * rows, input = first_input + x_row;
                const int64_t g_block = i / strips_here, block = first_output / L + g_block;
                const int64_t unit = block * strips + input / rows;
                A* const sums = weights.sums ? weights.sums + unit * unit_size(c) : unit_buffer;
                for (int64_t f = 0; f < F; ++f) {
                    const auto multiply = c.tiling.holds_two(f) ? product<RealSums<A>, ChannelsByTiles<A>>
                                                                : product<Sum<A, true>, ChannelsByTiles<A>>;
                    multiply(
                        rows, group.count, {x.at(x_row / L, f) + x_row % L}, g.at(g_block, f), g.tile_stride,
                        sums + f * unit_stride<A>, 2 * L, !first
                    );
                }
                if (!last) return;
                const int64_t lanes_used = std::min<int64_t>(outputs - block * L, L),
                              count = std::min<int64_t>(rows, inputs - input);
                const TapStrides strides = TapStrides::of(weights.layout, inputs, c.kernel);
                A* const grad = weights.grad + strides.at(block * L, input, 0);
                prefetch_taps_to_write(strides, lanes_used, count, kk, grad);
                A* const row_spectra = scratch + rows * kk * L;
                for (int64_t i = 0; i < count; ++i)
                    transform.backward(sums + i * 2 * L, unit_stride<A>, scratch + i * kk * L, row_spectra);
                scatter_taps(scratch, strides, lanes_used, count, kk, transform.backward_scale(), grad);
            });
        };

        if (c.by_outputs()) {
            const InputSpectra<A> all = c.input_spectra(spectra, outputs);
            A* const others = spectra + c.input_size(outputs);
            transform_tiles(team, g, c.tiling, group, true, all, scratch);
            if (weights.input)
                c.for_each_turn(
                    team, *weights.input, group, false, others, scratch,
                    [&](const InputSpectra<A>& x, int64_t begin, int64_t) { weight_gradient(x, begin, all, 0); }
                );
            team.barrier();
            if (want_input) {
                const OutputSpectra<A> own = c.output_spectra(others + team.rank * c.output_size(L), L);
                multiply_and_transform_back(team, multiplication, c.tiling, group, all, own, epilogue, NoFinish{}, scratch);
            }
        } else {
            const InputSpectra<A> all = c.input_spectra(spectra, inputs);
            A* const others = spectra + c.input_size(inputs);
            const OutputSpectra<A> out = c.output_spectra(others + c.turn_size(outputs), inputs);
            if (weights.input) transform_tiles(team, *weights.input, c.tiling, group, false, all, scratch);
            c.for_each_turn(
                team, g, group, true, others, scratch, [&](const InputSpectra<A>& some, int64_t begin, int64_t end) {
                    if (weights.input) weight_gradient(all, 0, some, begin);
                    if (want_input) multiply_spectra(team, multiplication, group.count, some, begin, end, out);
                }
            );
            team.barrier();
            if (want_input) transform_back(team, out, c.tiling, group, epilogue, NoFinish{}, scratch);
        }
        team.barrier();
    }
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
