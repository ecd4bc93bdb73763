// Sums over positions in the backward pass of the channel gate, which both of its kernels make.
#pragma once

#include <algorithm>

#include "channel_gate.h"
#include "channel_gate_device.h"

namespace gcsa_ext::cuda {

// How many positions make a row of partial sums: a multiple of those of a tile, and a function of the shape alone (but a
// tile's size may depend on the shared memory of a block). There are enough rows for all multiprocessors of any GPU, while
// their 8 h C bytes each are together less than the bytes that are read and written of maps.
inline int64_t positions_of_part(const Map& map, int64_t hidden, int64_t held) {
    const int64_t positions = map.batch * map.positions, least = ceil_div(256, ceil_div(map.channels, 64));
    const int64_t parts = std::clamp<int64_t>(positions / (24 * hidden), least, 1536);
    return ceil_div(ceil_div(positions, parts), held) * held;
}

// A row of partial sums.
struct GateRow {
    float *w1, *b1, *w2, *b2;
};

__device__ inline GateRow gate_row(const ChannelGateBackward& call, int64_t number) {
    const int64_t channels = call.gate.map.channels, hidden = call.gate.hidden;
    float* const w1 = call.partial + number * (2 * hidden * channels + hidden + channels);
    float* const b1 = w1 + hidden * channels;
    return {w1, b1, b1 + hidden, b1 + hidden + channels * hidden};
}

// A result for 16 channels from `channel` on and 16 units, of w1 or of w2.
__device__ inline void store_sums(
    const GateRow& to, const ChannelGateBackward& call, int channel, int unit, bool is_w1, const Result& sums
) {
    const int channels = int(call.gate.map.channels), hidden = int(call.gate.hidden);
    for_lane_elements([&](int index, int row, int column) {
        const int c = channel + row, u = unit + column;
        if (c >= channels || u >= hidden) return;
        (is_w1 ? to.w1 : to.w2)[is_w1 ? u * channels + c : c * hidden + u] = sums.at[index];
    });
}

// The left operand of a product that sums over positions: 16 channels of a tile from `channel` on, times 16 positions.
template <class Math>
__device__ inline typename Math::Left left_of_channels(
    const typename Math::Element* tile, const TilePlace& place, int channel, int position
) {
    if (place.last) return Math::left_transposed(tile + position * place.stride + channel, place.stride);
    if (!place.image) return Math::left(tile + channel * place.stride + position, place.stride);
    const auto* const row = tile + (channel + lane_number() / 4) * place.stride;
    return Math::left_of_elements([&](int i, int k) {
        const int p = position + k;
        return p < place.count ? row[8 * i * place.stride + place.at(p)] : from_float<typename Math::Element>(0.0f);
    });
}

}  // namespace gcsa_ext::cuda
