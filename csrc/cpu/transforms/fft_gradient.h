// The backward pass of a convolution by Fourier transforms (fft_convolution.h).
//
// The gradient of the input is a convolution of the output's gradient g with the mirrored weights. That of a weight at
// offset d is sum_q in[q] g[q - d]: at every frequency the product of the input's spectrum and the conjugate of g's, summed
// over the tiles. Each point of the input counts once, so its tiles have no halo, while g's tiles are the same as for the
// first gradient.
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
    if (c.pointwise()) return 0;
    return c.tiling.frequencies() * unit_stride<A>;
}
// The sums of all units, or 0 where one group has all tiles: then one unit after the other is summed and done.
template <class A>
inline int64_t unit_sums_size(const Convolution<A>& c) {
    if (c.pointwise()) return 0;
    return c.group < c.tiles() ? weight_gradient_units<A>(c.outputs, c.inputs) * unit_size(c) : 0;
}

// Spectra of both maps, and those of results, in elements.
template <class A>
inline int64_t gradient_workspace_size(const Convolution<A>& c) {
    if (c.pointwise()) return 0;
    return c.by_outputs() ? c.input_size(c.inputs) + std::max(c.turn_size(c.outputs), c.team * c.output_size(lanes<A>))
                          : c.input_size(c.outputs) + c.turn_size(c.inputs) + c.output_size(c.outputs);
}

// One step of the gradient of the weights: sums over a group of tiles, and after the last group the gradient itself.
// Sizes have the names of the forward convolution; `c` is the convolution back, which takes its outputs and gives its
// inputs.
template <class A>
class WeightSums {
    static constexpr int L = lanes<A>, rows = static_cast<int>(inputs_per_unit<A>);

   public:
    // Of each thread: `unit` has unit_size elements, `scratch` as many as the convolution's.
    WeightSums(const Convolution<A>& c, const WeightGradient<A>& weights, A* unit, A* scratch)
        : c_(c),
          weights_(weights),
          transform_(c.tiling.y.length, c.tiling.x.length, c.kernel),
          group_{c.outputs / weights.groups, c.inputs / weights.groups},
          strides_(TapStrides::of(weights.layout, group_.inputs, c.kernel)),
          unit_(unit),
          scratch_(scratch) {}

    // Adds a group of tiles for some inputs and outputs: x and g are their spectra, from first_input and first_output on.
    void add(
        const Team& team, TileRangeOfBatch group, const InputSpectra<A>& x, int64_t first_input, const InputSpectra<A>& g,
        int64_t first_output
    ) const {
        const int64_t inputs = c_.outputs, strips = (inputs + rows - 1) / rows;
        const int64_t strips_here = std::min(x.blocks * L / rows, strips - first_input / rows);
        const bool last = group.first + group.count == c_.tiles();
        const auto input_of = [&](int64_t i) { return first_input + i % strips_here * rows; };
        const auto block_of = [&](int64_t i) { return first_output / L + i / strips_here; };
        const auto has_weights = [&](int64_t i) { return group_.has_weights(rectangle_(block_of(i), input_of(i))); };
        team.for_each_chosen(strips_here * g.blocks, has_weights, [&](int64_t i) {
            const int64_t x_row = i % strips_here * rows, input = input_of(i);
            const int64_t g_block = i / strips_here, block = block_of(i);
            const int64_t unit = block * strips + input / rows;
            A* const sums = weights_.sums ? weights_.sums + unit * unit_size(c_) : unit_;
            for (int64_t f = 0; f < c_.tiling.frequencies(); ++f) {
                const auto multiply = c_.tiling.holds_two(f) ? product<RealSums<A>, ChannelsByTiles<A>>
                                                             : product<Sum<A, true>, ChannelsByTiles<A>>;
                multiply(
                    rows, group.count, {x.at(x_row / L, f) + x_row % L}, g.at(g_block, f), g.tile_stride,
                    sums + f * unit_stride<A>, 2 * L, group.first > 0
                );
            }
            if (last) store_(sums, block, input);
        });
    }

   private:
    // The inputs and outputs of one unit.
    WeightRectangle rectangle_(int64_t block, int64_t input) const {
        return {
            input, std::min<int64_t>(input + rows, c_.outputs), block * L, std::min<int64_t>((block + 1) * L, c_.inputs)
        };
    }
    // The gradient for one block of outputs and the inputs of one unit, from the spectra of its taps.
    void store_(const A* sums, int64_t block, int64_t input) const {
        const WeightRectangle unit = rectangle_(block, input);
        const int64_t taps = c_.kernel * c_.kernel;
        const auto for_each_part = [&](const auto& body) {
            group_.for_each_part(unit, [&](int64_t group, WeightRectangle r) {
                A* const grad = weights_.grad + strides_.at(r.first_output, r.first_input - group * group_.inputs, 0);
                body(r, r.end_output - r.first_output, r.end_input - r.first_input, grad);
            });
        };
        for_each_part([&](WeightRectangle, int64_t outputs, int64_t inputs, A* grad) {
            prefetch_taps_to_write(strides_, outputs, inputs, taps, grad);
        });
        A* const row_spectra = scratch_ + rows * taps * L;
        for (int64_t i = 0; i < unit.end_input - input; ++i)
            transform_.backward(sums + i * 2 * L, unit_stride<A>, scratch_ + i * taps * L, row_spectra);
        for_each_part([&](WeightRectangle r, int64_t outputs, int64_t inputs, A* grad) {
            // The vectors of the part begin with the lane of its first output.
            const A* const from = scratch_ + (r.first_input - input) * taps * L + (r.first_output - block * L);
            scatter_taps(from, strides_, outputs, inputs, taps, transform_.backward_scale(), grad);
        });
    }

    const Convolution<A>& c_;
    const WeightGradient<A>& weights_;
    TapTransform<A> transform_;
    GroupSizes group_;
    TapStrides strides_;
    A *unit_, *scratch_;
};

// Both gradients for the tiles of a batch. `c` is the convolution of g with the mirrored weights. Without want_input its
// epilogue is never called, without weights.input no gradient of the weights is computed. The map with fewer channels is
// transformed as a whole, the other one turn by turn.
template <class A, class Epilogue>
inline void convolve_backward(
    const Team& team, const Convolution<A>& c, const BlockedMap<A>& g, const Taps<A>& taps, A* spectra, A* unit, A* scratch,
    const WeightGradient<A>& weights, bool want_input, const Epilogue& epilogue
) {
    if (c.pointwise()) {
        if (weights.input) pointwise_weight_gradient(team, c.batch, g, weights, scratch);
        team.barrier();
        if (want_input) convolve_pointwise(team, g, {0, c.batch}, taps, scratch, epilogue, NoFinish{});
        return;
    }
    const WeightSums<A> weight_sums(c, weights, unit, scratch);
    const Multiplication<A> multiplication(c.tiling, taps, scratch);
    const int64_t inputs = c.outputs, outputs = c.inputs;  // of the forward convolution
    for (int64_t done = 0; done < c.tiles(); done += c.group) {
        const TileRangeOfBatch group{done, std::min(c.tiles() - done, c.group)};
        if (c.by_outputs()) {
            const InputSpectra<A> all = c.input_spectra(spectra, outputs);
            A* const others = spectra + c.input_size(outputs);
            transform_tiles(team, g, c.tiling, group, true, all, scratch);
            if (weights.input)
                c.for_each_turn(
                    team, *weights.input, group, false, others, scratch,
                    [&](const InputSpectra<A>& x, int64_t begin, int64_t) { weight_sums.add(team, group, x, begin, all, 0); }
                );
            team.barrier();
            if (want_input) {
                A* const block = others + team.rank * c.output_size(lanes<A>);
                multiply_and_transform_back(
                    team, multiplication, c.tiling, group, all, c.output_spectra(block, lanes<A>), epilogue, NoFinish{},
                    scratch
                );
            }
        } else {
            const InputSpectra<A> all = c.input_spectra(spectra, inputs);
            A* const others = spectra + c.input_size(inputs);
            const OutputSpectra<A> out = c.output_spectra(others + c.turn_size(outputs), inputs);
            if (weights.input) transform_tiles(team, *weights.input, c.tiling, group, false, all, scratch);
            c.for_each_turn(
                team, g, group, true, others, scratch, [&](const InputSpectra<A>& some, int64_t begin, int64_t end) {
                    if (weights.input) weight_sums.add(team, group, all, 0, some, begin);
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
