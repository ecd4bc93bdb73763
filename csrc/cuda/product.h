// Matrix products of a warp, in tiles of 16 x 16 x 16 with float32 sums: result (m x n) += left (m x k) right (k x n).
//
// A lane holds eight elements of every tile. With group = lane / 4, pair = lane % 4 and i, j, e in {0, 1}, element 4j + 2i +
// e of a result or of a left tile is at row group + 8i, column 2 * pair + e + 8j. `Mma<T>` multiplies on tensor cores,
// bfloat16 and float16 exactly and float as tf32; `Fma` multiplies float exactly, without tensor cores. Both have the same
// functions, so that a kernel is written once:
//
// clang-format off
//   Left, left(rows, stride)               from memory in which rows of m follow each other, k is contiguous
//   left_transposed(rows, stride)          rows of k follow each other, m is contiguous
//   left_of_rows(row)                      row[r] is where row lane_row(r) of the tile begins, for r < lane_rows
//   left_of_elements(value)                value(i, k) is the element of row lane / 4 + 8i and column k
//   right(rows, stride)                    rows of n follow each other, k is contiguous
//   right_transposed(rows, stride)         rows of k follow each other, n is contiguous
//   right_strided(first, n_stride, k_stride)
// clang-format on
//
// Rows lie in shared memory on multiples of 16 bytes, except for right_strided. Strides of `step * n + pad` elements, where
// step is 16, meet no bank conflicts.
#pragma once

#include "element.h"

namespace gcsa_ext::cuda {

constexpr int step = 16;

struct Result {
    float at[8];
};

__device__ inline int lane_number() { return int(threadIdx.x % 32); }

// Calls function(index, row, column) for the elements of a tile that the lane holds.
template <class Function>
__device__ inline void for_lane_elements(const Function& function) {
    const int group = lane_number() / 4, pair = lane_number() % 4;
#pragma unroll
    for (int index = 0; index < 8; ++index) {
        function(index, group + index / 2 % 2 * 8, 2 * pair + index % 2 + index / 4 * 8);
    }
}

__device__ inline void clear(Result& result) {
#pragma unroll
    for (int i = 0; i < 8; ++i) result.at[i] = 0.0f;
}

__device__ inline uint32_t bits_of(bfloat16 x) { return *reinterpret_cast<const uint16_t*>(&x); }
__device__ inline uint32_t bits_of(float16 x) { return *reinterpret_cast<const uint16_t*>(&x); }

template <class T>
struct Mma {
    using Element = T;
    static constexpr int pad = 8, unrolled = 2;

    struct Left {
        uint32_t at[4];
    };
    struct Right {
        uint32_t at[4];  // the halves of k for columns n < 8, then those for the others
    };

    static constexpr int lane_rows = 1;
    __device__ static int lane_row(int) { return lane_number() / 8 % 2 * 8 + lane_number() % 8; }

    __device__ static Left left(const T* rows, int stride) {
        Left tile;
        load_matrices(tile.at, rows + along(0) * stride + across(0));
        return tile;
    }
    __device__ static Left left_transposed(const T* rows, int stride) {
        Left tile;
        load_matrices_transposed(tile.at, rows + along(1) * stride + across(1));
        return tile;
    }
    __device__ static Left left_of_rows(const T* const (&row)[lane_rows]) {
        Left tile;
        load_matrices(tile.at, row[0] + across(0));
        return tile;
    }
    template <class Value>
    __device__ static Left left_of_elements(const Value& value) {
        Left tile;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int k = lane_number() % 4 * 2 + i / 2 * 8;
            tile.at[i] = bits_of(value(i % 2, k)) | bits_of(value(i % 2, k + 1)) << 16;
        }
        return tile;
    }
    __device__ static Right right(const T* rows, int stride) {
        Right tile;
        load_matrices(tile.at, rows + along(1) * stride + across(1));
        return tile;
    }
    __device__ static Right right_transposed(const T* rows, int stride) {
        Right tile;
        load_matrices_transposed(tile.at, rows + along(0) * stride + across(0));
        return tile;
    }
    __device__ static Right right_strided(const T* first, int n_stride, int k_stride) {
        const T* const of_lane = first + lane_number() / 4 * n_stride + lane_number() % 4 * 2 * k_stride;
        Right tile;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const T* const at = of_lane + i / 2 * 8 * n_stride + i % 2 * 8 * k_stride;
            tile.at[i] = bits_of(at[0]) | bits_of(at[k_stride]) << 16;
        }
        return tile;
    }
    __device__ static void multiply_add(Result& result, const Left& left, const Right& right) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t columns[2] = {right.at[2 * half], right.at[2 * half + 1]};
            cuda::multiply_add(reinterpret_cast<float (&)[4]>(result.at[4 * half]), left.at, columns, T());
        }
    }

   private:
    // The row and the element of it, of 16 x 16 elements in memory, whose address the lane passes. The 8 x 8 matrices are in
    // the order of registers: down the rows first (order 0) or along them (order 1).
    __device__ static int along(int order) { return lane_number() / (order ? 16 : 8) % 2 * 8 + lane_number() % 8; }
    __device__ static int across(int order) { return lane_number() / (order ? 8 : 16) % 2 * 8; }
};

// tf32: the lane holds the same elements as of 16-bit tiles. The instruction numbers its k differently, which does not
// matter as long as both operands agree.
template <>
struct Mma<float> {
    using Element = float;
    static constexpr int pad = 8, unrolled = 2;

    struct Left {
        uint32_t at[8];
    };
    struct Right {
        uint32_t at[8];  // of column group + 8 * (index / 4), element of k: 2 * pair + index % 2 + index / 2 % 2 * 8
    };

    static constexpr int lane_rows = 2;
    __device__ static int lane_row(int r) { return lane_number() / 4 + 8 * r; }

    __device__ static Left left(const float* rows, int stride) {
        const float* const row[2] = {rows + lane_row(0) * stride, rows + lane_row(1) * stride};
        return left_of_rows(row);
    }
    __device__ static Left left_transposed(const float* rows, int stride) {
        Left tile;
        for_lane_elements([&](int index, int m, int k) { tile.at[index] = to_tf32(rows[k * stride + m]); });
        return tile;
    }
    __device__ static Left left_of_rows(const float* const (&row)[lane_rows]) {
        Left tile;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const auto pack = load_pack<float, 2>(row[i % 2] + lane_number() % 4 * 2 + i / 2 * 8);
            tile.at[2 * i] = to_tf32(pack.at[0]);
            tile.at[2 * i + 1] = to_tf32(pack.at[1]);
        }
        return tile;
    }
    template <class Value>
    __device__ static Left left_of_elements(const Value& value) {
        Left tile;
#pragma unroll
        for (int index = 0; index < 8; ++index) {
            tile.at[index] = to_tf32(value(index / 2 % 2, lane_number() % 4 * 2 + index % 2 + index / 4 * 8));
        }
        return tile;
    }
    __device__ static Right right(const float* rows, int stride) {
        Right tile;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int n = lane_number() / 4 + i / 2 * 8, k = lane_number() % 4 * 2 + i % 2 * 8;
            const auto pack = load_pack<float, 2>(rows + n * stride + k);
            tile.at[2 * i] = to_tf32(pack.at[0]);
            tile.at[2 * i + 1] = to_tf32(pack.at[1]);
        }
        return tile;
    }
    __device__ static Right right_transposed(const float* rows, int stride) { return right_strided(rows, 1, stride); }
    __device__ static Right right_strided(const float* first, int n_stride, int k_stride) {
        Right tile;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int n = lane_number() / 4 + i / 4 * 8, k = lane_number() % 4 * 2 + i % 2 + i / 2 % 2 * 8;
            tile.at[i] = to_tf32(first[n * n_stride + k * k_stride]);
        }
        return tile;
    }
    __device__ static void multiply_add(Result& result, const Left& left, const Right& right) {
#pragma unroll
        for (int half_n = 0; half_n < 2; ++half_n) {
#pragma unroll
            for (int half_k = 0; half_k < 2; ++half_k) {
                const uint32_t* const l = left.at + 4 * half_k;
                const uint32_t rows[4] = {l[0], l[2], l[1], l[3]};
                const uint32_t columns[2] = {right.at[4 * half_n + 2 * half_k], right.at[4 * half_n + 2 * half_k + 1]};
                cuda::multiply_add(reinterpret_cast<float (&)[4]>(result.at[4 * half_n]), rows, columns, 0.0f);
            }
        }
    }
};

// float32 products and sums. A lane reads all of the rows and columns whose products it sums.
struct Fma {
    using Element = float;
    static constexpr int pad = 4, unrolled = 1;

    struct Left {
        float at[2][step];  // rows group and group + 8
    };

    static constexpr int lane_rows = 2;
    __device__ static int lane_row(int r) { return lane_number() / 4 + 8 * r; }

    __device__ static Left left(const float* rows, int stride) {
        const float* const row[2] = {rows + lane_row(0) * stride, rows + lane_row(1) * stride};
        return left_of_rows(row);
    }
    __device__ static Left left_transposed(const float* rows, int stride) {
        Left tile;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
            for (int k = 0; k < step; ++k) tile.at[r][k] = rows[k * stride + lane_row(r)];
        }
        return tile;
    }
    __device__ static Left left_of_rows(const float* const (&row)[lane_rows]) {
        Left tile;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
            for (int k = 0; k < step; k += 4) {
                const auto pack = load_pack<float, 4>(row[r] + k);
#pragma unroll
                for (int e = 0; e < 4; ++e) tile.at[r][k + e] = pack.at[e];
            }
        }
        return tile;
    }

    template <class Value>
    __device__ static Left left_of_elements(const Value& value) {
        Left tile;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
            for (int k = 0; k < step; ++k) tile.at[r][k] = value(r, k);
        }
        return tile;
    }

    struct Rows {
        const float* first;
        int stride;
    };
    struct Strided {
        const float* first;
        int n_stride, k_stride;
    };
    __device__ static Rows right(const float* rows, int stride) { return {rows, stride}; }
    __device__ static Strided right_transposed(const float* rows, int stride) { return {rows, 1, stride}; }
    __device__ static Strided right_strided(const float* first, int n_stride, int k_stride) {
        return {first, n_stride, k_stride};
    }

    __device__ static void multiply_add(Result& result, const Left& left, const Rows& right) {
#pragma unroll
        for (int column = 0; column < 4; ++column) {
            const int n = lane_number() % 4 * 2 + column % 2 + column / 2 * 8;
#pragma unroll
            for (int k = 0; k < step; k += 4) {
                const auto pack = load_pack<float, 4>(right.first + n * right.stride + k);
#pragma unroll
                for (int e = 0; e < 4; ++e) add(result, left, column, k + e, pack.at[e]);
            }
        }
    }
    __device__ static void multiply_add(Result& result, const Left& left, const Strided& right) {
#pragma unroll
        for (int column = 0; column < 4; ++column) {
            const float* const at = right.first + (lane_number() % 4 * 2 + column % 2 + column / 2 * 8) * right.n_stride;
#pragma unroll
            for (int k = 0; k < step; ++k) add(result, left, column, k, at[k * right.k_stride]);
        }
    }

   private:
    __device__ static void add(Result& result, const Left& left, int column, int k, float right) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            float& sum = result.at[column / 2 * 4 + row * 2 + column % 2];
            sum = fmaf(left.at[row][k], right, sum);
        }
    }
};

// Rounds a result and writes it to rows of memory, whose pairs of elements are aligned.
template <class T>
__device__ inline void store_result(T* rows, int stride, const Result& result) {
    T* const of_lane = rows + lane_number() / 4 * stride + lane_number() % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const Pack<T, 2> pair{{from_float<T>(result.at[2 * i]), from_float<T>(result.at[2 * i + 1])}};
        store_pack(of_lane + i % 2 * 8 * stride + i / 2 * 8, pair);
    }
}

// results += left times rows of n (transposed: rows of k) in shared memory; left(k) is the left tile from column k on.
template <class Math, int depth, bool transposed, int tiles, class Left>
__device__ inline void accumulate(
    Result (&results)[tiles], const Left& left, const typename Math::Element* rows, int stride
) {
#pragma unroll Math::unrolled
    for (int k = 0; k < depth; k += step) {
        const auto left_tile = left(k);
#pragma unroll
        for (int tile = 0; tile < tiles; ++tile) {
            if constexpr (transposed) {
                Math::multiply_add(
                    results[tile], left_tile, Math::right_transposed(rows + k * stride + tile * step, stride)
                );
            } else {
                Math::multiply_add(results[tile], left_tile, Math::right(rows + tile * step * stride + k, stride));
            }
        }
    }
}

// Calls function(Math()) with the Mma or Fma for a map's elements.
template <class Function>
void with_units(DType dtype, bool tf32, const Function& function) {
    switch (dtype) {
        case DType::float32: return tf32 ? function(Mma<float>()) : function(Fma());
        case DType::bfloat16: return function(Mma<bfloat16>());
        case DType::float16: return function(Mma<float16>());
        case DType::float64: return;  // refused by the bindings
    }
}

}  // namespace gcsa_ext::cuda
