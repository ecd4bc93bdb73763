#include <algorithm>

#include "norm.h"
#include "norm_share.h"

namespace gcsa_ext::cuda {

namespace {

// Enough for all multiprocessors of any GPU, and the same on all, since sums must not depend on the device.
constexpr int64_t blocks_of_sums = 1024;
constexpr int64_t batches_per_thread = 2;

int64_t round_up_to_power_of_two(int64_t n) {
    int64_t power = 1;
    while (power < n) power *= 2;
    return power;
}

// How many values an access has: 16 bytes of them, or one where rows of channels or these addresses, which may be null, do
// not begin on multiples of 16 bytes. Ragged rows of positions are accessed in 16 bytes too.
struct Access {
    int width;
    bool ragged;
};

Access widest(const Map& map, bool last) {
    const int elements = int(16 / element_size(map.dtype));
    const bool fits = (last ? map.channels : map.positions) % elements == 0;
    return {fits || !last ? elements : 1, !fits && !last};
}

Access access_of(const Map& map, bool last, std::initializer_list<const void*> addresses) {
    const auto misaligned = [](const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 != 0; };
    const auto found = widest(map, last);
    if (std::none_of(addresses.begin(), addresses.end(), misaligned)) return found;
    return {last ? 1 : found.width, !last};
}

// How many positions a transposed tile has: those of whole images, if rows do not begin on multiples of 16 bytes but images
// do, and whole images fill three quarters of the tile.
int64_t tile_positions(const Map& map) {
    const int64_t elements = 16 / element_size(map.dtype);
    const int64_t of_images = mixed_tile_positions / map.positions * map.positions;
    const bool ragged = map.positions % elements != 0 && map.channels * map.positions % elements == 0;
    return ragged && 4 * of_images >= 3 * mixed_tile_positions ? of_images : mixed_tile_positions;
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

// Contiguous: the most accesses that a row has, wherever it begins.
int64_t accesses_per_plane(const Map& map, const Access& access) {
    return ceil_div(map.positions + (access.ragged ? access.width - 1 : 0), access.width);
}

int64_t count_accesses(const Map& map, bool last, const Access& access) {
    return map.batch * (last ? map.positions : accesses_per_plane(map, access));
}

// A plan with `parts` blocks along y, and how its threads divide the map.
Plan plan_share(const char* kernel, const Map& map, bool last, bool mixed, Access access, int64_t parts, Share& share) {
    const int width = access.width, lanes = channel_lanes(map, last, mixed, width);
    const int64_t accesses = count_accesses(map, last, access);
    const int64_t threads = last ? norm_threads : std::min<int64_t>(norm_threads, ceil_div(accesses, 32) * 32);
    const int64_t per_plane = accesses_per_plane(map, access), stride = parts * (threads / lanes);
    const int64_t planes = stride / per_plane, rest = stride - planes * per_plane;
    share = {
        width,
        access.ragged,
        lanes,
        accesses,
        per_plane,
        stride,
        last ? 0 : rest,
        last ? stride * map.channels : planes * map.channels * map.positions,
        int(tile_positions(map)),
        tile_positions(map) < mixed_tile_positions
    };
    // Sums of a block's warps, or the tile that is transposed.
    const int64_t values = mixed ? mixed_tile_bytes : 0;
    return {kernel, channel_blocks(map, last, width, lanes), parts, 1, threads, values};
}

// Blocks along y where no sums are made.
int64_t independent_parts(const Map& map, bool last, bool mixed, const Access& access) {
    const int64_t positions = map.batch * map.positions;
    if (mixed) return std::min(ceil_div(positions, tile_positions(map)), largest_grid_yz);
    const int64_t rows = norm_threads / channel_lanes(map, last, false, access.width);
    const int64_t of_block = rows * norm_accesses_at_a_time * batches_per_thread;
    return std::clamp<int64_t>(ceil_div(count_accesses(map, last, access), of_block), 1, largest_grid_yz);
}

}  // namespace

int64_t norm_parts(const Map& map, bool last, bool mixed) {
    const auto access = widest(map, last);
    const int64_t blocks = channel_blocks(map, last, access.width, channel_lanes(map, last, mixed, access.width));
    const int64_t most = independent_parts(map, last, mixed, access);
    return std::clamp<int64_t>(ceil_div(blocks_of_sums, blocks), 1, most);
}

Plan plan_norm_statistics(const NormStatistics& call, Share& share) {
    const auto access = access_of(call.map, call.last, {call.u});
    auto plan =
        plan_share("norm_statistics", call.map, call.last, false, access, norm_parts(call.map, call.last, false), share);
    plan.shared_bytes =
        plan.threads / 32 * share.channel_lanes * (call.last ? access.width : 1) * 3 * int64_t(sizeof(float));
    return plan;
}

Plan plan_norm_forward(const NormForward& call, Share& share) {
    const bool mixed = call.last != call.out_last || call.last != call.z_last;
    const auto if_last = [&](bool last, const void* address) { return last == call.last ? address : nullptr; };
    const auto access =
        access_of(call.map, call.last, {call.u, if_last(call.z_last, call.z), if_last(call.out_last, call.out)});
    const auto parts = independent_parts(call.map, call.last, mixed, access);
    return plan_share("norm_forward", call.map, call.last, mixed, access, parts, share);
}

Plan plan_norm_backward(const NormBackward& call, Share& share) {
    const auto& forward = call.forward;
    const bool mixed = forward.last != forward.out_last;
    const auto access =
        access_of(forward.map, forward.last, {forward.u, forward.z, call.grad_u, call.grad_z, mixed ? nullptr : call.grad});
    const auto parts = call.partial ? norm_parts(forward.map, forward.last, mixed)
                                    : independent_parts(forward.map, forward.last, mixed, access);
    auto plan = plan_share("norm_backward", forward.map, forward.last, mixed, access, parts, share);
    if (call.partial) {
        const int64_t sums = plan.threads / 32 * share.channel_lanes * (forward.last ? access.width : 1) * 2;
        plan.shared_bytes = std::max(plan.shared_bytes, sums * int64_t(sizeof(float)));
    }
    return plan;
}

}  // namespace gcsa_ext::cuda
