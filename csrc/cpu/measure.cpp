// The measurements of measure.h. Products of spectra have the memory traffic that they have in a convolution, but no
// transforms of the weights between them.

#include "params/measure.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>

#include "cpu/kernels.h"
#include "cpu/transforms/fft_plan.h"
#include "cpu/workspace.h"
#include "memory/scratch.h"

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

template <>
double run(const FmaPeak& p) {
    constexpr int chains = 12, steps = 200000;  // a product and a sum take 4 or 5 cycles, two are begun in each
    return best_rate(p.threads, p.seconds, 2. * chains * lanes<float> * steps * p.threads, [](const Team&) {
        vec<float> sum[chains];
        const vec<float> factor = broadcast(0.999f);
        for (int i = 0; i < chains; ++i) sum[i] = broadcast(static_cast<float>(i));
        for (int step = 0; step < steps; ++step)
            for (int i = 0; i < chains; ++i) sum[i] = sum[i] * factor + factor;
        for (int i = 1; i < chains; ++i) sum[0] += sum[i];
        asm volatile("" : : "m"(sum[0]));
    });
}

// The least of short series. Two cores under one last-level cache need about 50 ns, two that meet in memory several times as
// many. All threads of the pool take part in the parallel region, since OpenMP would end the others.
template <>
double run(const CoreRoundTrip& p) {
    struct alignas(128) Line {
        std::atomic<int64_t> turn{0};
    } line;
    double time = std::numeric_limits<double>::infinity();
    int threads = 2;
#ifdef _OPENMP
    threads = std::max(threads, omp_get_max_threads());
#endif
    parallel_team(threads, [&](const Team& team) {
        if (team.size < 2 || team.rank > 1) return;
        constexpr int64_t end = -1;
        if (team.rank == 1) {
            for (int64_t seen = 0; (seen = line.turn.load(std::memory_order_acquire)) != end;)
                if (seen % 2) line.turn.compare_exchange_strong(seen, seen + 1, std::memory_order_acq_rel);
            return;
        }
        constexpr int series = 20;
        const double begin = now();
        int64_t turns = 0;
        for (double before = begin, after = begin; after < begin + p.seconds; before = after) {
            for (int i = 0; i < series; ++i, ++turns) {
                line.turn.store(2 * turns + 1, std::memory_order_release);
                while (line.turn.load(std::memory_order_acquire) != 2 * turns + 2) {
                }
            }
            after = now();
            time = std::min(time, (after - before) / series);
        }
        line.turn.store(end, std::memory_order_release);
    });
    return time;
}

template <>
double run(const ProductRate& p) {
    using A = float;
    const Convolution<A> c =
        plan_convolution<A>(p.batch, p.inputs, p.outputs, p.height, p.width, p.kernel, p.threads, false);
    using S = Pieces<A>;
    const int64_t weights = S::size(p.outputs * p.inputs * p.kernel * p.kernel), per_thread = S::size(c.scratch_size());
    const int64_t in_size = c.input_size(c.inputs), out_size = c.output_size(c.outputs);
    const int64_t count = weights + in_size + out_size + p.threads * per_thread;
    const Scratch memory(count * static_cast<int64_t>(sizeof(A)));
    S pieces(static_cast<A*>(memory.data()));
    for (int64_t i = 0; i < count; ++i) static_cast<A*>(memory.data())[i] = static_cast<A>(i % 7 - 3) / 4;
    const auto taps = Taps<A>::forward(pieces.take(weights), Layout::contiguous, p.outputs, p.inputs, p.kernel);
    const InputSpectra<A> in = c.input_spectra(pieces.take(in_size), c.inputs);
    const OutputSpectra<A> out = c.output_spectra(pieces.take(out_size), c.outputs);
    A* const scratch = pieces.take(p.threads * per_thread);
    // Two frequencies are of two real products each, half as many operations as a complex one.
    const double products =
        static_cast<double>(c.group * (c.tiling.frequencies() - 1) * p.inputs) * static_cast<double>(p.outputs);
    return best_rate(p.threads, p.seconds, 8 * products, [&](const Team& team) {
        const Multiplication<A, false> multiplication(c.tiling, taps, scratch + team.rank * per_thread);
        multiply_spectra(team, multiplication, c.group, in, 0, c.inputs, out);
    });
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
