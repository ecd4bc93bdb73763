// Sizes of the pieces into which the kernels of batch normalisation cut a map.
#pragma once

namespace gcsa_ext::cuda {

constexpr int norm_threads = 256;
constexpr int norm_accesses_at_a_time = 4;  // loads of a thread that are in flight together

// Where one map is channels_last and another contiguous, a block transposes a tile of 16-bit values in shared memory.
constexpr int mixed_tile_channels = 64, mixed_tile_positions = 64;
constexpr int mixed_tile_bytes = mixed_tile_channels * mixed_tile_positions * 2;

}  // namespace gcsa_ext::cuda
