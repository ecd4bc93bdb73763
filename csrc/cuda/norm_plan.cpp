#include <algorithm>

#include "norm.h"
#include "norm_share.h"

namespace gcsa_ext::cuda {

namespace {

// Enough for every multiprocessor of any GPU that there is, and the same on all, since sums must not depend on the device.
constexpr int64_t blocks_of_sums = 1024;
constexpr int64_t batches_per_thread = 2;

int64_t round_up_to_power_of_two(int64_t n) {
    int64_t power = 1;
    while (power < n) power *= 2;
    return power;
}

int widest(const Map& map, bool last) {
    const int64_t elements = 16 / element_size(map.element);
    return (last ? map.channels : map.positions) % elements == 0 ? int(elements) : 1;
}

int channel_lanes(const Map& map, bool last, bool mixed, int width) {
    if (!last) return 1;
    const int64_t most = mixed ? std::min(32, mixed_tile_channels / width) : 32;
    return int(mixed ? most : std::min(most, round_up_to_power_of_two(ceil_div(map.channels, width))));
}

// Blocks along x.
int64_t channel_blocks(const Map& map, bool last, int width, int lanes) {
    return last ? ceil_div(map.channels, int64_t(width) * lanes) : map.channels;
}

int64_t count_accesses(const Map& map, bool last, int width) {
    return last ? map.batch * map.positions : map.batch * (map.positions / width);
}

// A plan with so many blocks along y, and what its threads have to know.
Plan plan_share(const char* kernel, const Map& map, bool last, bool mixed, int width, int64_t parts, Share& share) {
    const int lanes = channel_lanes(map, last, mixed, width);
    const int64_t accesses = count_accesses(map, last, width);
    const int64_t threads = last ? norm_threads : std::min<int64_t>(norm_threads, ceil_div(accesses, 32) * 32);
    const int64_t per_plane = map.positions / width, stride = parts * (threads / lanes);
    const int64_t planes = stride / per_plane, rest = stride - planes * per_plane;
    share = {
        width,
        lanes,
        accesses,
        per_plane,
        stride,
        last ? 0 : rest,
        last ? stride * map.channels : planes * map.channels * map.positions + rest * width
    };
    // Sums of a block's warps, or the tile that is transposed.
    const int64_t values = mixed ? mixed_tile_bytes : 0;
    return {kernel, channel_blocks(map, last, width, lanes), parts, 1, threads, values};
}

// Blocks along y where every access is on its own.
int64_t independent_parts(const Map& map, bool last, bool mixed, int width) {
    const int64_t positions = map.batch * map.positions;
    if (mixed) return std::min(ceil_div(positions, mixed_tile_positions), largest_grid_yz);
    const int64_t rows = norm_threads / channel_lanes(map, last, false, width);
    const int64_t of_block = rows * norm_accesses_at_a_time * batches_per_thread;
    return std::clamp<int64_t>(ceil_div(count_accesses(map, last, width), of_block), 1, largest_grid_yz);
}

}  // namespace

int norm_width(const Map& map, bool last, std::initializer_list<const void*> addresses) {
    const auto misaligned = [](const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 != 0; };
    return std::any_of(addresses.begin(), addresses.end(), misaligned) ? 1 : widest(map, last);
}

int64_t norm_parts(const Map& map, bool last, bool mixed) {
    const int width = widest(map, last);
    const int64_t blocks = channel_blocks(map, last, width, channel_lanes(map, last, mixed, width));
    const int64_t most = independent_parts(map, last, mixed, width);
    return std::clamp<int64_t>(ceil_div(blocks_of_sums, blocks), 1, most);
}

Plan plan_norm_statistics(const NormStatistics& call, Share& share) {
    const int width = norm_width(call.map, call.last, {call.u});
    auto plan =
        plan_share("norm_statistics", call.map, call.last, false, width, norm_parts(call.map, call.last, false), share);
    plan.shared_bytes = plan.threads / 32 * share.channel_lanes * (call.last ? width : 1) * 3 * int64_t(sizeof(float));
    return plan;
}

Plan plan_norm_forward(const NormForward& call, Share& share) {
    const bool mixed = call.last != call.out_last || call.last != call.z_last;
    const auto if_last = [&](bool last, const void* address) { return last == call.last ? address : nullptr; };
    const int width =
        norm_width(call.map, call.last, {call.u, if_last(call.z_last, call.z), if_last(call.out_last, call.out)});
    const auto parts = independent_parts(call.map, call.last, mixed, width);
    return plan_share("norm_forward", call.map, call.last, mixed, width, parts, share);
}

Plan plan_norm_backward(const NormBackward& call, Share& share) {
    const auto& forward = call.forward;
    const bool mixed = forward.last != forward.out_last;
    const int width =
        norm_width(forward.map, forward.last, {forward.u, forward.z, call.grad_u, call.grad_z, mixed ? nullptr : call.grad});
    const auto parts = call.partial ? norm_parts(forward.map, forward.last, mixed)
                                    : independent_parts(forward.map, forward.last, mixed, width);
    auto plan = plan_share("norm_backward", forward.map, forward.last, mixed, width, parts, share);
    if (call.partial) {
        const int64_t sums = plan.threads / 32 * share.channel_lanes * (forward.last ? width : 1) * 2;
        plan.shared_bytes = std::max(plan.shared_bytes, sums * int64_t(sizeof(float)));
    }
    return plan;
}

}  // namespace gcsa_ext::cuda
