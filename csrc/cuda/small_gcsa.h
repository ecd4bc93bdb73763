// The whole attention with given statistics in one launch, for maps so small that launches take longer than the work.
#pragma once

#include <cstdint>

#include "channel_gate.h"
#include "map.h"
#include "plan.h"
#include "vector.h"

namespace gcsa_ext::cuda {

// A convolution with 'same' zero padding and the normalisation that follows it.
struct SmallConvolution {
    const void* weight;  // (out channels, in channels, k, k) contiguous, of the map's dtype
    Vector offset;       // the bias of the convolution, or null; (out channels), as all further vectors
    Vector norm_weight;  // or null
    Vector norm_bias;    // or null
    Vector mean;
    Vector var;
    float eps;
    float* used_mean;  // copies of mean and var are written here
    float* used_var;
};

struct SmallGcsa {
    ChannelGate gate;  // out in the layout of x; its hidden units are the first convolution's out channels
    int64_t height, width;
    int64_t kernel_size;  // k, odd
    bool convolution_tf32;
    SmallConvolution convolutions[2];  // C -> h, h -> C
    void* z;                           // workspaces of the sizes in SmallGcsaPlan: the gated map,
    void* hidden;                      // the map between the convolutions,
    float* partial;                    // and sums over some of a convolution's in channels
};

struct SmallGcsaPlan {
    Plan kernel;
    int64_t z_elements, hidden_elements, partial_elements;
};

// Throws std::invalid_argument where the operands of a block do not fit in its shared memory.
SmallGcsaPlan plan_small_gcsa(const SmallGcsa& call, const Device& device);
void small_gcsa(const SmallGcsa& call, const Device& device, Stream stream);

}  // namespace gcsa_ext::cuda
