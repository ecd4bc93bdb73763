// Floating-point operations per second: of products and sums in registers, which nothing exceeds, and of the products of
// spectra, with the memory traffic that they have in a convolution but without the transforms of the weights between them.

#include "../measure.h"

#include <algorithm>
#include <chrono>

#include "../scratch.h"
#include "fft_plan.h"
#include "kernels.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The best of runs of body(team), which performs `operations` in all.
template <class Body>
double best_rate(int threads, double seconds, double operations, const Body& body) {
    double best = 0;
    for (const double end = now() + seconds; best == 0 || now() < end;) {
        const double begin = now();
        parallel_team(threads, body);
        best = std::max(best, operations / (now() - begin));
    }
    return best;
}

}  // namespace

double fma_peak(int threads, double seconds) {
    constexpr int chains = 12, steps = 200000;  // a product and a sum take 4 or 5 cycles, two are begun in each
    return best_rate(threads, seconds, 2. * chains * lanes<float> * steps * threads, [](const Team&) {
        vec<float> sum[chains];
        const vec<float> factor = broadcast(0.999f);
        for (int i = 0; i < chains; ++i) sum[i] = broadcast(static_cast<float>(i));
        for (int step = 0; step < steps; ++step)
            for (int i = 0; i < chains; ++i) sum[i] = sum[i] * factor + factor;
        for (int i = 1; i < chains; ++i) sum[0] += sum[i];
        asm volatile("" : : "m"(sum[0]));
    });
}

double product_rate(const ProductRate& p) {
    using A = float;
    const Convolution<A> c =
        plan_convolution<A>(p.batch, p.inputs, p.outputs, p.height, p.width, p.kernel, p.threads, false);
    using S = Pieces<A>;
    const int64_t weights = S::size(p.outputs * p.inputs * p.kernel * p.kernel), per_thread = S::size(c.scratch_size());
    const int64_t count = weights + S::size(c.input_size()) + S::size(c.output_size()) + p.threads * per_thread;
    const Scratch memory(count * static_cast<int64_t>(sizeof(A)));
    S pieces(static_cast<A*>(memory.data()));
    for (int64_t i = 0; i < count; ++i) static_cast<A*>(memory.data())[i] = static_cast<A>(i % 7 - 3) / 4;
    const int64_t kk = p.kernel * p.kernel;
    const Taps<A> taps{pieces.take(weights), p.outputs, p.inputs, p.inputs * kk, kk, p.kernel, false};
    const InputSpectra<A> in(pieces.take(c.input_size()), p.inputs, c.group, c.tiling.frequencies());
    const OutputSpectra<A> out(pieces.take(c.output_size()), p.outputs, c.group, c.tiling.frequencies());
    A* const scratch = pieces.take(p.threads * per_thread);
    const double products =
        static_cast<double>(c.group * c.tiling.frequencies() * p.inputs) * static_cast<double>(p.outputs);
    return best_rate(p.threads, p.seconds, 8 * products, [&](const Team& team) {
        multiply_spectra<A, false>(team, c.tiling, c.group, in, taps, out, scratch + team.rank * per_thread);
    });
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
