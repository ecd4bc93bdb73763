// sums[i] = sum over r of partial[r, i], without atomic additions. A block has 32 columns. Each of its 8 warps adds every
// eighth row, then the first one adds these eight sums.
#include "sum_rows.h"
#include "vector_device.h"

namespace gcsa_ext::cuda {

namespace {

constexpr int columns = 32, turns = 8;

__global__ void __launch_bounds__(columns* turns) sum(const SumRows call) {
    auto* const sums = reinterpret_cast<float*>(shared_memory());
    const int column = int(threadIdx.x) % columns, turn = int(threadIdx.x) / columns;
    const int64_t at = int64_t(blockIdx.x) * columns + column;
    float sum = 0.0f;
    if (at < call.width) {
#pragma unroll 4
        for (int64_t row = turn; row < call.rows; row += turns) sum += call.partial[row * call.width + at];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (turn > 0 || at >= call.width) return;
    for (int i = 1; i < turns; ++i) sum += sums[i * columns + column];
    if (call.sums) call.sums[at] = sum;
    int64_t begin = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const auto& piece = call.pieces[i];
        if (at >= begin && at < piece.end) store(piece.vector, at - begin, sum);
        begin = piece.end;
    }
}

}  // namespace

Plan plan_sum_rows(const SumRows& call) {
    return {"sum_rows", ceil_div(call.width, columns), 1, 1, columns * turns, columns * turns * int64_t(sizeof(float))};
}

void sum_rows(const SumRows& call, Stream stream) { launch(sum, plan_sum_rows(call), stream, call); }

}  // namespace gcsa_ext::cuda
