// The sum of rows of partial sums, always in the same order, so that two runs give the same bits.
#pragma once

#include <cstdint>

#include "plan.h"
#include "vector.h"

namespace gcsa_ext::cuda {

struct SumRows {
    int64_t rows, width;
    const float* partial;  // (rows, width)
    float* sums;           // (width), or null: not wanted
    // The vectors that a row consists of, one behind the other.
    struct Piece {
        int64_t end;    // its end in the row
        Vector vector;  // where its sums are written, or null: not wanted
    } pieces[4];
};

Plan plan_sum_rows(const SumRows& call);
void sum_rows(const SumRows& call, Stream stream);

}  // namespace gcsa_ext::cuda
