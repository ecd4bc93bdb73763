// Batch normalisation and what follows it: the gate z * sigmoid(...), or relu(...).
//
//   xhat = (u + offset - mean) / sqrt(var + eps),   v = weight * xhat + bias
//   out  = z * sigmoid(v)   or, without z, relu(v);   or that added to what out holds
//
// u, z and out are maps (N, C, H, W); the vectors have C values. `offset` is the bias of the convolution that made u, which
// these kernels add. Everything between loads and stores is float32.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "map.h"
#include "plan.h"
#include "vector.h"

namespace gcsa_ext::cuda {

// How the values of a map are divided among threads. An access has `width` values: of one channel at as many positions
// (contiguous), or of as many channels at one position (channels_last). Blocks along x have different channels; blocks along
// y have the same channels and alternate in their accesses. The threads of a block form rows of `channel_lanes` accesses.
// Where a contiguous map's rows of positions do not begin on multiples of 16 bytes (`ragged`), their first and last accesses
// also touch values of other rows, which are not changed.
struct Share {
    int width;
    bool ragged;
    int channel_lanes;        // 1 if contiguous
    int64_t accesses;         // of the same channels, divided among the rows of all blocks along y
    int64_t per_plane;        // accesses of one channel of one image (contiguous)
    int64_t stride;           // from one access of a thread to its next
    int64_t stride_in_plane;  // the rest of it beside whole planes (contiguous)
    int64_t stride_elements;  // the same in elements of memory; contiguous: of the whole planes
    // The tile that is transposed where one map is contiguous and another is not.
    int tile_positions;
    bool whole_images;
};

struct NormStatistics {
    Map map;
    bool last;  // u is channels_last
    const void* u;
    Vector offset;   // or null: 0
    float* mean;     // (C), with the offset
    float* var;      // (C), biased
    float* partial;  // (3, parts, C): means relative to the origin (norm_statistics.cu), sums of squares about them, counts
};

struct NormForward {
    Map map;
    bool last;      // u is channels_last
    bool z_last;    // z is channels_last: as `last`, or false where u is channels_last
    bool out_last;  // out is channels_last: likewise, but z or out has the layout of u
    bool add;       // the result is added to out, which then has the layout of u
    float eps;
    const void* u;
    const void* z;      // or null: relu
    Vector weight;      // or null: 1
    Vector bias;        // or null: 0
    Vector offset;      // or null: 0
    const float* mean;  // (C)
    const float* var;   // (C)
    void* out;
};

//   s = sigmoid(v),   gv = grad * z * s (1 - s),   grad_z = grad * s       or gv = (v > 0) grad without z
//   grad_weight = sum gv * xhat,   grad_bias = sum gv
//   grad_u = weight / sqrt(var + eps) * (gv - grad_bias / count - xhat * grad_weight / count)
//
// The last two terms exist with batch statistics only.
struct NormBackward {
    NormForward forward;  // out_last is the layout of grad; z_last equals `last`; out and add are not used
    const void* grad;
    void* grad_u;       // or null: not wanted
    void* grad_z;       // or null: not wanted
    const float* sums;  // (2, C): grad_weight and grad_bias of the batch statistics, or null: mean and var are constants
    float* partial;     // (parts, 2, C): grad_weight and grad_bias of each block along y, or null: not wanted
};

// The rows of `partial`: blocks along y that make sums. It does not depend on the device. `mixed`: grad or out is contiguous
// while u is channels_last.
int64_t norm_parts(const Map& map, bool last, bool mixed);

Plan plan_norm_statistics(const NormStatistics& call, Share& share);
Plan plan_norm_forward(const NormForward& call, Share& share);
Plan plan_norm_backward(const NormBackward& call, Share& share);

void norm_statistics(const NormStatistics& call, Stream stream);
void norm_forward(const NormForward& call, Stream stream);
void norm_backward(const NormBackward& call, Stream stream);

}  // namespace gcsa_ext::cuda
