// Batch normalisation and what follows it: the gate z * sigmoid(...), or relu(...).
//
//   xhat = (u + offset - mean) / sqrt(var + eps),   v = weight * xhat + bias
//   out  = z * sigmoid(v)   or, without z, relu(v);   or that added to what out holds
//
// u, z and out are maps (N, C, H, W); the vectors have C values, and `offset` is the bias of the convolution that made u,
// which is left to these kernels. Everything between loads and stores is float32.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "map.h"
#include "plan.h"
#include "vector.h"

namespace gcsa_ext::cuda {

// How the values of a map are shared out. An access has `width` values: of one channel at as many positions (contiguous), or
// of as many channels at one position (channels_last). Blocks along x have other channels, blocks along y take turns with
// the accesses of the same ones; a block's threads are `channel_lanes` accesses wide and as many rows high as threads there
// are. Where a contiguous map's rows of positions do not begin on multiples of 16 bytes (`ragged`), their first and last
// accesses also have values of other rows, which are left alone.
struct Share {
    int width;
    bool ragged;
    int channel_lanes;        // 1 if contiguous
    int64_t accesses;         // that the rows of all blocks with the same channels share
    int64_t per_plane;        // accesses of one channel of one image (contiguous)
    int64_t stride;           // from one access of a thread to its next
    int64_t stride_in_plane;  // what of it is left when whole planes are taken out (contiguous)
    int64_t stride_elements;  // the same in memory; contiguous: of whole planes
    // Of a tile that is transposed, where one map is contiguous and another is not.
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
    float* partial;  // (3, parts, C): means without origin and offset, sums of squares about them, counts
};

struct NormForward {
    Map map;
    bool last;      // u is channels_last
    bool z_last;    // z is; as `last`, or false where that is true
    bool out_last;  // out is; likewise, but not both z and out are otherwise
    bool add;       // to what out holds, in its layout, which then is that of u
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
// where the last two terms are there with batch statistics only.
struct NormBackward {
    NormForward forward;  // out_last is of grad; z_last as `last`; out and add are not used
    const void* grad;
    void* grad_u;       // or null: not wanted
    void* grad_z;       // or null: not wanted
    const float* sums;  // (2, C): grad_weight and grad_bias of the batch statistics, or null: mean and var are constants
    float* partial;     // (parts, 2, C): of each block grad_weight and grad_bias, or null: not wanted
};

// With how many blocks along y sums are made: rows of `partial`. It does not depend on the device. `mixed`: grad or out is
// contiguous while u is channels_last.
int64_t norm_parts(const Map& map, bool last, bool mixed);

Plan plan_norm_statistics(const NormStatistics& call, Share& share);
Plan plan_norm_forward(const NormForward& call, Share& share);
Plan plan_norm_backward(const NormBackward& call, Share& share);

void norm_statistics(const NormStatistics& call, Stream stream);
void norm_forward(const NormForward& call, Stream stream);
void norm_backward(const NormBackward& call, Stream stream);

}  // namespace gcsa_ext::cuda
