// The channel gate on one tile of positions, an array [channels][tile_columns] in the cache.
#pragma once

#include "cpu/matmul.h"
#include "cpu/sigmoid.h"
#include "cpu/tile.h"
#include "cpu/workspace.h"
#include "params/channel_gate.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

template <class A>
constexpr int64_t tile_columns = block_vectors * lanes<A>;

// The perceptron's weights as accumulators.
template <class A>
struct Perceptron {
    const A *w1, *b1, *w2, *b2;
};

// The perceptron's weights of a call: converted copies where the map is bfloat16, the call's memory otherwise.
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

// hidden (h, columns) = relu(w1 x + b1), x being (C, columns) with its rows `stride` apart
template <class A>
inline void first_layer(
    const Perceptron<A>& mlp, int64_t C, int64_t h, int64_t columns, const A* x, int64_t stride, A* hidden
) {
    matmul<A>(h, columns, C, {mlp.w1, C, 1}, x, stride, hidden, columns, false);
    for (int64_t i = 0; i < h; ++i)
        for (int64_t j = 0; j < columns; j += lanes<A>) {
            A* at = hidden + i * columns + j;
            store(at, relu<A>(load(at, Full<A>{}) + mlp.b1[i]), Full<A>{});
        }
}

// Calls row(c, gate before its activation (columns)) for every channel; `block` holds block_rows rows.
template <class A, class Row>
inline void second_layer(
    const Perceptron<A>& mlp, int64_t C, int64_t h, int64_t columns, const A* hidden, A* block, const Row& row
) {
    for (int64_t c = 0; c < C; c += block_rows) {
        const int64_t rows = C - c < block_rows ? C - c : block_rows;
        matmul<A>(rows, columns, h, {mlp.w2 + c * h, h, 1}, hidden, columns, block, columns, false);
        for (int64_t i = 0; i < rows; ++i) row(c + i, block + i * columns);
    }
}

// x (C, P) *= gate(x), with P at most tile_columns. `scratch` has gate_scratch elements.
template <class A>
constexpr int64_t gate_scratch(int64_t h) {
    return Pieces<A>::size(h * tile_columns<A>) + Pieces<A>::size(block_rows * tile_columns<A>);
}
template <class A>
inline void gate_tile(const Perceptron<A>& mlp, int64_t C, int64_t h, bool with_sigmoid, int64_t P, A* x, A* scratch) {
    Pieces<A> pieces(scratch);
    A* const hidden = pieces.take(h * P);
    A* const block = pieces.take(block_rows * P);
    first_layer(mlp, C, h, P, x, P, hidden);
    second_layer(mlp, C, h, P, hidden, block, [&](int64_t c, const A* gate) {
        const Sigmoid<A> sigmoid;
        for (int64_t j = 0; j < P; j += lanes<A>) {
            vec<A> a = load(gate + j, Full<A>{}) + mlp.b2[c];
            if (with_sigmoid) a = sigmoid(a);
            A* at = x + c * P + j;
            store(at, load(at, Full<A>{}) * a, Full<A>{});
        }
    });
}

// Rows (rows, columns) to their transpose (columns, out_stride); rows from `rows` to out_stride become zero.
template <class A>
inline void transpose_tile(const A* from, int64_t rows, int64_t columns, A* to, int64_t out_stride) {
    constexpr int L = lanes<A>;
    for (int64_t i = 0; i < out_stride; i += L)
        for (int64_t j = 0; j < columns; j += L)
            transpose_rows(from + i * columns + j, columns, rows - i, L, [&](int k, vec<A> value) {
                store(to + (j + k) * out_stride + i, value, Full<A>{});
            });
}

// Columns from `begin` on become zero.
template <class A>
inline void clear_columns(A* tile, int64_t rows, int64_t begin, int64_t columns) {
    if (begin == columns) return;
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = begin; j < columns; ++j) tile[i * columns + j] = 0;
}

template <class A>
inline A sum_row(const A* row, int64_t columns) {
    vec<A> sum{};
    for (int64_t j = 0; j < columns; j += lanes<A>) sum += load(row + j, Full<A>{});
    A total = 0;
    for (int i = 0; i < lanes<A>; ++i) total += sum[i];
    return total;
}

// The backward pass of one thread, tile by tile, and its sums of the weights' gradients.
template <class A>
class GateGradient {
    static constexpr int64_t widest = tile_columns<A>;

   public:
    static int64_t size(int64_t C, int64_t h, bool want_weights) {
        return (want_weights ? sums_size(C, h) : 0) + 3 * Pieces<A>::size(C * widest) + 2 * Pieces<A>::size(h * widest) +
               Pieces<A>::size(block_rows * widest) + Pieces<A>::size(round_up(h, lanes<A>) * widest);
    }
    GateGradient(A* memory, int64_t C, int64_t h, bool want_weights)
        : C_(C), h_(h), padded_h_(round_up(h, lanes<A>)), want_weights_(want_weights) {
        Pieces<A> pieces(memory);
        if (want_weights) {
            sums_ = memory;
            sum_w2_ = pieces.take(C * padded_h_);
            sum_w1_ = pieces.take(C * padded_h_);
            sum_b2_ = pieces.take(C);
            sum_b1_ = pieces.take(h);
        }
        x = pieces.take(C * widest);
        grad = pieces.take(C * widest);
        grad_pre_ = pieces.take(C * widest);
        hidden_ = pieces.take(h * widest);
        grad_hidden_ = pieces.take(h * widest);
        block_ = pieces.take(block_rows * widest);
        transposed_ = pieces.take(padded_h_ * widest);
    }
    void clear_sums() {
        if (want_weights_) __builtin_memset(sums_, 0, sums_size(C_, h_) * sizeof(A));
    }

    A *x, *grad;  // tiles that the caller fills: x, and the gradient of x * gate, which becomes that of x

    // `count` of P columns hold a position; P is at most tile_columns.
    void run(const Perceptron<A>& mlp, bool with_sigmoid, int64_t P, int64_t count, bool want_x) {
        first_layer(mlp, C_, h_, P, x, P, hidden_);
        second_layer(mlp, C_, h_, P, hidden_, block_, [&](int64_t c, const A* gate) {
            const Sigmoid<A> sigmoid;
            for (int64_t j = 0; j < P; j += lanes<A>) {
                const int64_t at = c * P + j;
                const vec<A> g = load(grad + at, Full<A>{}), pre = load(gate + j, Full<A>{}) + mlp.b2[c];
                const vec<A> a = with_sigmoid ? sigmoid(pre) : pre;
                const vec<A> slope = with_sigmoid ? a * (A(1) - a) : broadcast(A(1));
                store(grad_pre_ + at, g * load(x + at, Full<A>{}) * slope, Full<A>{});
                store(grad + at, g * a, Full<A>{});
            }
        });
        // Columns without a position must not reach the sums: infinite weights make them NaN.
        clear_columns(grad_pre_, C_, count, P);
        clear_columns(hidden_, h_, count, P);
        // Through the second layer and the relu.
        matmul<A>(h_, P, C_, {mlp.w2, 1, h_}, grad_pre_, P, grad_hidden_, P, false);
        for (int64_t i = 0; i < h_ * P; i += lanes<A>) {
            const vec<A> g = load(grad_hidden_ + i, Full<A>{});
            store(grad_hidden_ + i, load(hidden_ + i, Full<A>{}) <= 0 ? vec<A>{} : g, Full<A>{});
        }
        clear_columns(grad_hidden_, h_, count, P);
        if (want_x) matmul<A>(C_, P, h_, {mlp.w1, 1, C_}, grad_hidden_, P, grad, P, true);
        if (want_weights_) {
            transpose_tile(hidden_, h_, P, transposed_, padded_h_);
            matmul<A>(C_, padded_h_, P, {grad_pre_, P, 1}, transposed_, padded_h_, sum_w2_, padded_h_, true);
            transpose_tile(grad_hidden_, h_, P, transposed_, padded_h_);
            matmul<A>(C_, padded_h_, P, {x, P, 1}, transposed_, padded_h_, sum_w1_, padded_h_, true);
            for (int64_t c = 0; c < C_; ++c) sum_b2_[c] += sum_row(grad_pre_ + c * P, P);
            for (int64_t i = 0; i < h_; ++i) sum_b1_[i] += sum_row(grad_hidden_ + i * P, P);
        }
    }

    void add_sums(const GateGradient& other) {
        for (int64_t i = 0; i < sums_size(C_, h_); i += lanes<A>)
            store(sums_ + i, load(sums_ + i, Full<A>{}) + load(other.sums_ + i, Full<A>{}), Full<A>{});
    }
    // The sums as gradients of (w1, b1, w2, b2).
    template <class T>
    void store_sums(T* grad_w1, T* grad_b1, T* grad_w2, T* grad_b2) {
        store_row(grad_b2, C_, sum_b2_);
        store_row(grad_b1, h_, sum_b1_);
        for (int64_t c = 0; c < C_; ++c) store_row(grad_w2 + c * h_, h_, sum_w2_ + c * padded_h_);
        for (int64_t i = 0; i < h_; ++i) {
            for (int64_t c = 0; c < C_; ++c) grad_pre_[c] = sum_w1_[c * padded_h_ + i];
            store_row(grad_w1 + i * C_, C_, grad_pre_);
        }
    }

   private:
    static int64_t sums_size(int64_t C, int64_t h) {
        return 2 * Pieces<A>::size(C * round_up(h, lanes<A>)) + Pieces<A>::size(C) + Pieces<A>::size(h);
    }

    int64_t C_, h_, padded_h_;
    bool want_weights_;
    // (C, padded h) for w2 and for w1 transposed
    A *sums_ = nullptr, *sum_w2_ = nullptr, *sum_w1_ = nullptr, *sum_b2_ = nullptr, *sum_b1_ = nullptr;
    A *grad_pre_, *hidden_, *grad_hidden_, *block_, *transposed_;
};

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
