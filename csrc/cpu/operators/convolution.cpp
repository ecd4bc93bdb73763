// Convolution on the CPU: maps are brought into the blocked layout (blocked.h), convolved there and brought back.

#include "params/convolution.h"

#include "cpu/elastic_team.h"
#include "cpu/kernels.h"
#include "cpu/plan.h"
#include "memory/scratch.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {
namespace {

template <class T>
void pack(const Team& team, const FeatureMap& map, const T* from, const BlockedMap<accumulator<T>>& to) {
    using A = accumulator<T>;
    team.for_each(block_ranges(map.batch, to.blocks(), map.positions), [&](int64_t i) {
        const BlockRange range = block_range(i, to.blocks(), map.positions);
        A* const at = to.block(range.image, range.block);
        read_block<T>(map, from, range, [&](int64_t p, vec<A> value) { store(at + p * lanes<A>, value, Full<A>{}); });
    });
}
template <class T>
void unpack(const Team& team, const FeatureMap& map, const BlockedMap<accumulator<T>>& from, T* to) {
    using A = accumulator<T>;
    team.for_each(block_ranges(map.batch, from.blocks(), map.positions), [&](int64_t i) {
        const BlockRange range = block_range(i, from.blocks(), map.positions);
        const A* const at = from.block(range.image, range.block);
        write_block<T>(map, to, range, [&](int64_t p) { return load(at + p * lanes<A>, Full<A>{}); });
    });
}

template <class T>
void forward(const ConvolutionForward& p) {
    using A = accumulator<T>;
    constexpr int L = lanes<A>;
    const int64_t N = p.map.batch, k = p.kernel, inputs = p.map.channels;
    const int threads = p.map.threads;
    FeatureMap out_map = p.map;
    out_map.channels = p.outputs;
    const PlannedConvolution<T> c = plan<T>(N, inputs, p.outputs, p.height, p.width, k, threads, false);
    const auto taps = Taps<A>::forward(p.weight, Layout::contiguous, p.outputs, inputs, k);

    using S = Pieces<A>;
    BlockedMap<A> in{nullptr, inputs, p.height, p.width}, out{nullptr, p.outputs, p.height, p.width};
    const int64_t per_thread = S::size(c.scratch_size());
    const Scratch memory(
        (S::size(N * in.image_size()) + S::size(N * out.image_size()) + c.workspace_size() + threads * per_thread) *
        static_cast<int64_t>(sizeof(A))
    );
    S pieces(static_cast<A*>(memory.data()));
    in.data = pieces.take(N * in.image_size());
    out.data = pieces.take(N * out.image_size());
    A* const spectra = pieces.take(c.workspace_size());
    A* const thread_memory = pieces.take(threads * per_thread);

    elastic_team(threads, [&](const Team& team) {
        A* const scratch = thread_memory + team.rank * per_thread;
        pack(team, p.map, static_cast<const T*>(p.x), in);
        team.barrier();
        convolve(
            team, c, in, c.images(0, N), taps, spectra, scratch,
            [&](int64_t image, int64_t block, int64_t at, int64_t count, const A* run, int64_t step) {
                vec<A> bias{};
                if (p.bias) {
                    const A* const from = static_cast<const A*>(p.bias) + block * L;
                    const int64_t left = p.outputs - block * L;
                    bias = left >= L ? load(from, Full<A>{}) : load(from, static_cast<int>(left));
                }
                A* const to = out.block(image, block) + at * L;
                for (int64_t i = 0; i < count; ++i) store(to + i * L, load(run + i * step, Full<A>{}) + bias, Full<A>{});
            },
            [&](BlockRange range) {
                const A* const from = out.block(range.image, range.block);
                write_block<T>(out_map, static_cast<T*>(p.out), range, [&](int64_t at) {
                    return load(from + at * L, Full<A>{});
                });
            }
        );
    });
}

template <class T>
void backward(const ConvolutionBackward& q) {
    using A = accumulator<T>;
    constexpr int L = lanes<A>;
    const ConvolutionForward& p = q.forward;
    const int64_t N = p.map.batch, k = p.kernel, inputs = p.map.channels, outputs = p.outputs;
    const int threads = p.map.threads;
    FeatureMap out_map = p.map;
    out_map.channels = outputs;
    const PlannedConvolution<T> c = plan<T>(N, outputs, inputs, p.height, p.width, k, threads, false, true);
    const auto mirrored = Taps<A>::backward(p.weight, Layout::contiguous, outputs, inputs, k);

    using S = Pieces<A>;
    BlockedMap<A> x{nullptr, inputs, p.height, p.width}, grad{nullptr, outputs, p.height, p.width}, grad_x = x;
    const int64_t x_size = q.grad_weight ? S::size(N * x.image_size()) : 0;
    const int64_t grad_x_size = q.grad_x ? S::size(N * x.image_size()) : 0;
    const int64_t unit = S::size(unit_size(c)), per_thread = S::size(c.scratch_size()) + unit;
    const int64_t sums_size = q.grad_weight ? S::size(unit_sums_size(c)) : 0;
    const Scratch memory(
        (x_size + grad_x_size + S::size(N * grad.image_size()) + sums_size + gradient_workspace_size(c) +
         threads * per_thread) *
        static_cast<int64_t>(sizeof(A))
    );
    S pieces(static_cast<A*>(memory.data()));
    x.data = pieces.take(x_size);
    grad_x.data = pieces.take(grad_x_size);
    grad.data = pieces.take(N * grad.image_size());
    A* const sums = sums_size ? pieces.take(sums_size) : nullptr;
    A* const spectra = pieces.take(gradient_workspace_size(c));
    A* const thread_memory = pieces.take(threads * per_thread);

    parallel_team(threads, [&](const Team& team) {
        A* const unit_memory = thread_memory + team.rank * per_thread;
        A* const scratch = unit_memory + unit;
        pack(team, out_map, static_cast<const T*>(q.grad_out), grad);
        if (q.grad_weight) pack(team, p.map, static_cast<const T*>(p.x), x);
        team.barrier();
        convolve_backward(
            team, c, grad, mirrored, spectra, unit_memory, scratch,
            {q.grad_weight ? &x : nullptr, static_cast<A*>(q.grad_weight), Layout::contiguous, sums}, q.grad_x != nullptr,
            [&](int64_t image, int64_t block, int64_t at, int64_t count, const A* run, int64_t step) {
                A* const to = grad_x.block(image, block) + at * L;
                for (int64_t i = 0; i < count; ++i) store(to + i * L, load(run + i * step, Full<A>{}), Full<A>{});
            }
        );
        if (q.grad_x) unpack(team, p.map, grad_x, static_cast<T*>(q.grad_x));
    });
}

}  // namespace

template <>
void run(const ConvolutionForward& p) {
    with_planned_element(p, p.map, p.width, false, true, [&](auto element) { forward<decltype(element)>(p); });
}

template <>
void run(const ConvolutionBackward& q) {
    const ConvolutionForward& p = q.forward;
    with_planned_element(q, p.map, p.width, false, true, [&](auto element) { backward<decltype(element)>(q); });
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
