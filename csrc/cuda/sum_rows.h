// Rows of partial sums into their sum, always in the same order, so that two runs give the same bits.
#pragma once

#include <cstdint>

#include "plan.h"
#include "vector.h"

namespace gcsa_ext::cuda {

struct SumRows {
    int64_t rows, width;
    const float* partial;  // (rows, width)
    float* sums;           // (width), or null: not wanted
    // Which vectors a row consists of, one behind the other.
    struct Piece {
        int64_t end;    // where in a row it ends
        Vector vector;  // where its sums go; or null: not wanted
    } pieces[4];
};

Plan plan_sum_rows(const SumRows& call);
void sum_rows(const SumRows& call, Stream stream);

}  // namespace gcsa_ext::cuda
