// Channel gate on the CPU. The map is cut into tiles of positions with all channels, so that both layers of the perceptron,
// the product and the shuffle happen between one load and one store of the map.

#include "cpu/kernels.h"
#include "cpu/operators/gate_tile.h"
#include "cpu/parallel.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {
namespace {

template <class T>
void forward(const ChannelGateForward& p) {
    using A = accumulator<T>;
    constexpr int64_t P = tile_columns<A>;
    const int64_t C = p.map.channels, h = p.hidden, total = p.map.batch * p.map.positions;
    const ChannelShuffle plain{1, C}, shuffle{p.groups, C / p.groups};
    const PerceptronWeights<T> weights(p);

    const int64_t per_thread = Pieces<A>::size(C * P) + gate_scratch<A>(h);
    const int64_t vectors = (total + lanes<A> - 1) / lanes<A>;
    const Workspace<A> workspace(per_thread * useful_threads(p.map.threads, vectors));
    parallel_for(p.map.threads, vectors, [&](int thread, int64_t begin, int64_t end) {
        Pieces<A> pieces(workspace.data() + thread * per_thread);
        A* x = pieces.take(C * P);
        A* scratch = pieces.take(gate_scratch<A>(h));
        for_each_tile<A>(begin, end, total, block_vectors, [&](TileRange range, int64_t columns) {
            load_tile(p.map, static_cast<const T*>(p.x), range, columns, x, plain);
            gate_tile(weights.get(), C, h, p.sigmoid, columns, x, scratch);
            store_tile(p.map, static_cast<T*>(p.out), range, columns, x, shuffle);
        });
    });
}

template <class T>
void backward(const ChannelGateBackward& q) {
    using A = accumulator<T>;
    const ChannelGateForward& p = q.forward;
    const bool want_weights = q.grad_w1 != nullptr;
    const int64_t C = p.map.channels, h = p.hidden, total = p.map.batch * p.map.positions;
    const ChannelShuffle plain{1, C}, shuffle{p.groups, C / p.groups};
    const PerceptronWeights<T> weights(p);

    const int64_t per_thread = GateGradient<A>::size(C, h, want_weights);
    const int64_t vectors = (total + lanes<A> - 1) / lanes<A>;
    const int threads = useful_threads(p.map.threads, vectors);
    const Workspace<A> workspace(per_thread * threads);
    const auto gradient_of = [&](int thread) {
        return GateGradient<A>(workspace.data() + thread * per_thread, C, h, want_weights);
    };
    for (int thread = 0; thread < threads; ++thread) gradient_of(thread).clear_sums();
    parallel_for(threads, vectors, [&](int thread, int64_t begin, int64_t end) {
        GateGradient<A> gradient = gradient_of(thread);
        for_each_tile<A>(begin, end, total, block_vectors, [&](TileRange range, int64_t columns) {
            load_tile(p.map, static_cast<const T*>(p.x), range, columns, gradient.x, plain);
            load_tile(p.map, static_cast<const T*>(q.grad_out), range, columns, gradient.grad, shuffle);
            gradient.run(weights.get(), p.sigmoid, columns, range.count, q.grad_x != nullptr);
            if (q.grad_x) store_tile(p.map, static_cast<T*>(q.grad_x), range, columns, gradient.grad, plain);
        });
    });
    if (!want_weights) return;
    // The threads' sums are added in order: the same number of threads gives the same bits.
    GateGradient<A> sum = gradient_of(0);
    for (int thread = 1; thread < threads; ++thread) sum.add_sums(gradient_of(thread));
    sum.store_sums(
        static_cast<T*>(q.grad_w1), static_cast<T*>(q.grad_b1), static_cast<T*>(q.grad_w2), static_cast<T*>(q.grad_b2)
    );
}

}  // namespace

template <>
void run(const ChannelGateForward& p) {
    with_element(p.map.dtype, [&](auto element) { forward<decltype(element)>(p); });
}

template <>
void run(const ChannelGateBackward& p) {
    with_element(p.forward.map.dtype, [&](auto element) { backward<decltype(element)>(p); });
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
