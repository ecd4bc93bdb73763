// Channel gate on the CPU. Work is cut into tiles of positions; of a tile all channels are at hand, so that both layers of
// the perceptron, the product and the shuffle happen between one load and one store of the map.

#include "../channel_gate.h"

#include "kernels.h"
#include "matmul.h"
#include "parallel.h"
#include "tile.h"
#include "workspace.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {
namespace {

template <class A>
constexpr int64_t tile_columns = block_vectors * lanes<A>;

// The perceptron's weights as accumulators.
template <class A>
struct Perceptron {
    const A *w1, *b1, *w2, *b2;
};

// Converts the weights where the map is bfloat16; passes the pointers on otherwise.
template <class T>
class PerceptronWeights {
    using A = accumulator<T>;

   public:
    explicit PerceptronWeights(const ChannelGateForward& p)
        : converted_(std::is_same_v<T, A> ? 0 : 2 * p.hidden * p.map.channels + p.hidden + p.map.channels) {
        const int64_t C = p.map.channels, h = p.hidden;
        A* next = converted_.data();
        const auto convert = [&](const void* from, int64_t count) -> const A* {
            if constexpr (std::is_same_v<T, A>) return static_cast<const A*>(from);
            load_row(static_cast<const T*>(from), count, next);
            next += count;
            return next - count;
        };
        weights_ = {convert(p.w1, h * C), convert(p.b1, h), convert(p.w2, C * h), convert(p.b2, C)};
    }
    const Perceptron<A>& get() const { return weights_; }

   private:
    Workspace<A> converted_;
    Perceptron<A> weights_;
};

// hidden (h, columns) = relu(w1 x + b1)
template <class A>
void first_layer(const Perceptron<A>& mlp, int64_t C, int64_t h, int64_t columns, const A* x, A* hidden) {
    matmul<A>(h, columns, C, {mlp.w1, C, 1}, x, columns, hidden, columns, false);
    for (int64_t i = 0; i < h; ++i)
        for (int64_t j = 0; j < columns; j += lanes<A>) {
            A* at = hidden + i * columns + j;
            store(at, relu<A>(load(at, Full<A>{}) + mlp.b1[i]), Full<A>{});
        }
}

// Calls row(c, gate before its activation (columns)) for every channel; `block` holds block_rows rows.
template <class A, class Row>
void second_layer(
    const Perceptron<A>& mlp, int64_t C, int64_t h, int64_t columns, const A* hidden, A* block, const Row& row
) {
    for (int64_t c = 0; c < C; c += block_rows) {
        const int64_t rows = C - c < block_rows ? C - c : block_rows;
        matmul<A>(rows, columns, h, {mlp.w2 + c * h, h, 1}, hidden, columns, block, columns, false);
        for (int64_t i = 0; i < rows; ++i) row(c + i, block + i * columns);
    }
}

template <class T>
void forward(const ChannelGateForward& p) {
    using A = accumulator<T>;
    constexpr int64_t P = tile_columns<A>;
    const int64_t C = p.map.channels, h = p.hidden, total = p.map.batch * p.map.positions;
    const ChannelShuffle plain{1, C}, shuffle{p.groups, C / p.groups};
    const PerceptronWeights<T> weights(p);
    const Perceptron<A> mlp = weights.get();

    const int64_t per_thread = Pieces<A>::size(C * P) + Pieces<A>::size(h * P) + Pieces<A>::size(block_rows * P);
    const int64_t tiles = (total + P - 1) / P;
    const Workspace<A> workspace(per_thread * useful_threads(p.map.threads, tiles));
    parallel_for(p.map.threads, tiles, [&](int thread, int64_t begin, int64_t end) {
        Pieces<A> pieces(workspace.data() + thread * per_thread);
        A* x = pieces.take(C * P);
        A* hidden = pieces.take(h * P);
        A* block = pieces.take(block_rows * P);
        for (int64_t tile = begin; tile < end; ++tile) {
            const TileRange range{tile * P, total - tile * P < P ? total - tile * P : P};
            load_tile(p.map, static_cast<const T*>(p.x), range, P, x, plain);
            first_layer(mlp, C, h, P, x, hidden);
            second_layer(mlp, C, h, P, hidden, block, [&](int64_t c, const A* gate) {
                for (int64_t j = 0; j < P; j += lanes<A>) {
                    vec<A> a = load(gate + j, Full<A>{}) + mlp.b2[c];
                    if (p.sigmoid) a = sigmoid<A>(a);
                    A* at = x + c * P + j;
                    store(at, load(at, Full<A>{}) * a, Full<A>{});
                }
            });
            store_tile(p.map, static_cast<T*>(p.out), range, P, x, shuffle);
        }
    });
}

// Rows (rows, columns) to their transpose (columns, out_stride); rows from `rows` to out_stride become zero.
template <class A>
void transpose_tile(const A* from, int64_t rows, int64_t columns, A* to, int64_t out_stride) {
    constexpr int L = lanes<A>;
    for (int64_t i = 0; i < out_stride; i += L)
        for (int64_t j = 0; j < columns; j += L) {
            vec<A> square[L] = {};
            for (int k = 0; k < L && i + k < rows; ++k) square[k] = load(from + (i + k) * columns + j, Full<A>{});
            transpose<A>(square);
            for (int k = 0; k < L; ++k) store(to + (j + k) * out_stride + i, square[k], Full<A>{});
        }
}

// Columns from `begin` on become zero.
template <class A>
void clear_columns(A* tile, int64_t rows, int64_t begin, int64_t columns) {
    if (begin == columns) return;
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = begin; j < columns; ++j) tile[i * columns + j] = 0;
}

template <class A>
A sum_row(const A* row, int64_t columns) {
    vec<A> sum{};
    for (int64_t j = 0; j < columns; j += lanes<A>) sum += load(row + j, Full<A>{});
    A total = 0;
    for (int i = 0; i < lanes<A>; ++i) total += sum[i];
    return total;
}

template <class T>
void backward(const ChannelGateBackward& q) {
    using A = accumulator<T>;
    constexpr int64_t P = tile_columns<A>;
    const ChannelGateForward& p = q.forward;
    const bool want_weights = q.grad_w1 != nullptr;
    const int64_t C = p.map.channels, h = p.hidden, total = p.map.batch * p.map.positions;
    const int64_t padded_h = round_up(h, lanes<A>);
    const ChannelShuffle plain{1, C}, shuffle{p.groups, C / p.groups};
    const PerceptronWeights<T> weights(p);
    const Perceptron<A> mlp = weights.get();

    // Of each thread: its sums of the weights' gradients, (C, padded_h) for w2 and for w1 transposed, then scratch.
    const int64_t matrix = Pieces<A>::size(C * padded_h), sums = 2 * matrix + Pieces<A>::size(C) + Pieces<A>::size(h);
    const int64_t per_thread = (want_weights ? sums : 0) + 3 * Pieces<A>::size(C * P) + 2 * Pieces<A>::size(h * P) +
                               Pieces<A>::size(block_rows * P) + Pieces<A>::size(padded_h * P);
    const int64_t tiles = (total + P - 1) / P;
    const int threads = useful_threads(p.map.threads, tiles);
    const Workspace<A> workspace(per_thread * threads);
    if (want_weights)
        for (int thread = 0; thread < threads; ++thread)
            __builtin_memset(workspace.data() + thread * per_thread, 0, sums * sizeof(A));

    parallel_for(threads, tiles, [&](int thread, int64_t begin, int64_t end) {
        Pieces<A> pieces(workspace.data() + thread * per_thread);
        A *sum_w2 = nullptr, *sum_w1 = nullptr, *sum_b2 = nullptr, *sum_b1 = nullptr;
        if (want_weights) {
            sum_w2 = pieces.take(C * padded_h);
            sum_w1 = pieces.take(C * padded_h);
            sum_b2 = pieces.take(C);
            sum_b1 = pieces.take(h);
        }
        A* x = pieces.take(C * P);
        A* grad = pieces.take(C * P);      // of the product, then of x
        A* grad_pre = pieces.take(C * P);  // of the gate before its activation
        A* hidden = pieces.take(h * P);
        A* grad_hidden = pieces.take(h * P);
        A* block = pieces.take(block_rows * P);
        A* transposed = pieces.take(padded_h * P);

        for (int64_t tile = begin; tile < end; ++tile) {
            const TileRange range{tile * P, total - tile * P < P ? total - tile * P : P};
            load_tile(p.map, static_cast<const T*>(p.x), range, P, x, plain);
            load_tile(p.map, static_cast<const T*>(q.grad_out), range, P, grad, shuffle);
            first_layer(mlp, C, h, P, x, hidden);
            second_layer(mlp, C, h, P, hidden, block, [&](int64_t c, const A* gate) {
                for (int64_t j = 0; j < P; j += lanes<A>) {
                    const int64_t at = c * P + j;
                    const vec<A> g = load(grad + at, Full<A>{}), pre = load(gate + j, Full<A>{}) + mlp.b2[c];
                    const vec<A> a = p.sigmoid ? sigmoid<A>(pre) : pre;
                    const vec<A> slope = p.sigmoid ? a * (A(1) - a) : broadcast(A(1));
                    store(grad_pre + at, g * load(x + at, Full<A>{}) * slope, Full<A>{});
                    store(grad + at, g * a, Full<A>{});
                }
            });
            // Columns behind the tile's end hold no position. Infinite weights make NaN of them, which no sum may meet.
            clear_columns(grad_pre, C, range.count, P);
            clear_columns(hidden, h, range.count, P);
            // Through the second layer and the relu.
            matmul<A>(h, P, C, {mlp.w2, 1, h}, grad_pre, P, grad_hidden, P, false);
            for (int64_t i = 0; i < h * P; i += lanes<A>) {
                const vec<A> g = load(grad_hidden + i, Full<A>{});
                store(grad_hidden + i, load(hidden + i, Full<A>{}) <= 0 ? vec<A>{} : g, Full<A>{});
            }
            clear_columns(grad_hidden, h, range.count, P);
            if (q.grad_x) {
                matmul<A>(C, P, h, {mlp.w1, 1, C}, grad_hidden, P, grad, P, true);
                store_tile(p.map, static_cast<T*>(q.grad_x), range, P, grad, plain);
            }
            if (want_weights) {
                transpose_tile(hidden, h, P, transposed, padded_h);
                matmul<A>(C, padded_h, P, {grad_pre, P, 1}, transposed, padded_h, sum_w2, padded_h, true);
                transpose_tile(grad_hidden, h, P, transposed, padded_h);
                matmul<A>(C, padded_h, P, {x, P, 1}, transposed, padded_h, sum_w1, padded_h, true);
                for (int64_t c = 0; c < C; ++c) sum_b2[c] += sum_row(grad_pre + c * P, P);
                for (int64_t i = 0; i < h; ++i) sum_b1[i] += sum_row(grad_hidden + i * P, P);
            }
        }
    });
    if (!want_weights) return;

    // Add up the threads in their order: the same number of threads gives the same bits.
    A* first = workspace.data();
    for (int thread = 1; thread < threads; ++thread) {
        const A* other = first + thread * per_thread;
        for (int64_t i = 0; i < sums; i += lanes<A>)
            store(first + i, load(first + i, Full<A>{}) + load(other + i, Full<A>{}), Full<A>{});
    }
    Pieces<A> pieces(first);
    const A* sum_w2 = pieces.take(C * padded_h);
    const A* sum_w1 = pieces.take(C * padded_h);
    store_row(static_cast<T*>(q.grad_b2), C, pieces.take(C));
    store_row(static_cast<T*>(q.grad_b1), h, pieces.take(h));
    for (int64_t c = 0; c < C; ++c) store_row(static_cast<T*>(q.grad_w2) + c * h, h, sum_w2 + c * padded_h);
    const Workspace<A> row(C);
    for (int64_t i = 0; i < h; ++i) {
        for (int64_t c = 0; c < C; ++c) row.data()[c] = sum_w1[c * padded_h + i];
        store_row(static_cast<T*>(q.grad_w1) + i * C, C, row.data());
    }
}

}  // namespace

void channel_gate_forward(const ChannelGateForward& p) {
    switch (p.map.dtype) {
        case DType::float32: return forward<float>(p);
        case DType::float64: return forward<double>(p);
        case DType::bfloat16: return forward<bfloat16>(p);
    }
}

void channel_gate_backward(const ChannelGateBackward& p) {
    switch (p.forward.map.dtype) {
        case DType::float32: return backward<float>(p);
        case DType::float64: return backward<double>(p);
        case DType::bfloat16: return backward<bfloat16>(p);
    }
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
