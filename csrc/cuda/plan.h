// How a kernel is launched. A plan is a pure function of a call's sizes and of the device's limits, so that plans can be
// tested without a GPU.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace gcsa_ext::cuda {

// The limits of a device that a plan depends on.
struct Device {
    int64_t multiprocessors;
    // The most that a block may have: 163 KB (sm_80), 99 KB (sm_86, sm_89, sm_120), 227 KB (sm_90, sm_100).
    int64_t shared_bytes;
};

// Where kernels are queued: the caller's device and its current stream, a cudaStream_t.
struct Stream {
    int device;
    void* handle;
};

struct Plan {
    const char* kernel;  // its name, for messages
    int64_t grid_x, grid_y, grid_z;
    int64_t threads;           // of a block
    int64_t shared_bytes;      // of a block; all shared memory is dynamic
    bool cooperative = false;  // all blocks run at the same time and may wait for one another
};

constexpr int64_t largest_grid_x = (int64_t(1) << 31) - 1, largest_grid_yz = 65535, largest_block = 1024;
constexpr int64_t shared_bytes_without_asking = 48 * 1024;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline std::string describe(const Plan& plan) {
    const auto number = [](int64_t n) { return std::to_string(n); };
    return std::string(plan.kernel) + " with a grid of " + number(plan.grid_x) + "x" + number(plan.grid_y) + "x" +
           number(plan.grid_z) + " blocks of " + number(plan.threads) + " threads and " + number(plan.shared_bytes) +
           " bytes of shared memory";
}

// Throws std::invalid_argument for a plan that no device can launch.
inline void check(const Plan& plan) {
    const bool fits = plan.grid_x >= 1 && plan.grid_x <= largest_grid_x && plan.grid_y >= 1 &&
                      plan.grid_y <= largest_grid_yz && plan.grid_z >= 1 && plan.grid_z <= largest_grid_yz &&
                      plan.threads >= 1 && plan.threads <= largest_block && plan.shared_bytes >= 0;
    if (!fits) throw std::invalid_argument("gcsa_ext: cannot launch " + describe(plan));
}

}  // namespace gcsa_ext::cuda
