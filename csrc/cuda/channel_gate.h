// The channel gate, a two-layer perceptron over the channels of every position, with the product and the shuffle of
// channels.
#pragma once

#include <cstdint>

#include "map.h"
#include "plan.h"
#include "vector.h"

namespace gcsa_ext::cuda {

// The most hidden units that the kernels take. With more, products take nearly all of the time.
constexpr int64_t largest_gate_hidden = 256;

// All tensors of the map's element type; weights contiguous.
struct ChannelGate {
    Map map;
    int64_t hidden;  // h, at most largest_gate_hidden
    int64_t groups;  // divides C
    bool sigmoid;    // false: the gate has no sigmoid
    bool tf32;       // multiply float32 on tensor cores
    bool x_last;     // x is channels_last
    bool out_last;   // out is channels_last
    const void* x;   // (N, C, P)
    const void* w1;  // (h, C)
    const void* b1;  // (h,)
    const void* w2;  // (C, h)
    const void* b2;  // (C,)
    void* out;       // (N, C, P)
};

struct ChannelGatePlan {
    Plan kernel;
    int x_bytes, out_bytes;  // of an access to these maps
};

// Throws std::invalid_argument where a block's shared memory does not hold all channels of 16 positions.
ChannelGatePlan plan_channel_gate(const ChannelGate& call, const Device& device);
void channel_gate(const ChannelGate& call, const Device& device, Stream stream);

// The workspace and grad_x have the map's element type. A part of the workspace that the plan does not need may be null.
struct ChannelGateBackward {
    ChannelGate gate;     // out and out_last are not used
    bool grad_last;       // grad is channels_last
    bool weights;         // the gradients of weights are wanted
    const void* grad;     // (N, C, P), of out
    void* grad_x;         // (N, C, P) in the layout of x, or null: not wanted
    float* partial;       // (rows, h * C + h + C * h + C): sums for w1, b1, w2, b2
    void* hidden_out;     // (N * P, units)
    void* g1_out;         // (N * P, units)
    void* g2_out;         // (N * P, C)
    int64_t rows, units;  // of the workspace, from the plan for the same call
    Vector gradients[4];  // of w1, b1, w2, b2
};

struct ChannelGateBackwardPlan {
    Plan main;
    Plan sums;                              // 0 threads: not launched, since `main` makes the sums
    Plan add;                               // 0 threads: not launched, since no gradients of weights are wanted
    int64_t rows;                           // of partial
    int64_t units;                          // of hidden_out and g1_out; 0 where these and g2_out are not needed
    int x_bytes, grad_bytes, grad_x_bytes;  // of an access to these maps
};

// The second kernel of the backward pass: sums hidden_out, g1_out, g2_out and x into rows of `partial`, one for each block
// along x.
struct ChannelGateSums {
    ChannelGateBackward call;
    int64_t units;  // of hidden_out and g1_out, a multiple of 64
};

Plan plan_channel_gate_sums(const ChannelGateSums& call, const Device& device);
void channel_gate_sums(const ChannelGateSums& call, const Device& device, Stream stream);

// Throws like plan_channel_gate.
ChannelGateBackwardPlan plan_channel_gate_backward(const ChannelGateBackward& call, const Device& device);
// Throws std::invalid_argument where the workspace is not that of the plan.
void channel_gate_backward(const ChannelGateBackward& call, const Device& device, Stream stream);

}  // namespace gcsa_ext::cuda
