#include "faults.h"

#include <map>
#include <stdexcept>

#include "element.h"

namespace gcsa_ext::cuda {

namespace {

constexpr int threads = 64, shared_bytes = 1024;

struct Parameters {
    float* out;
};

__device__ inline float sum_over_warp(float value) {
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}

__global__ void skips_a_barrier(const Parameters p) {
    if (threadIdx.x < 40) __syncthreads();
    p.out[threadIdx.x] = 1.0f;
}

__global__ void waits_at_two_places(const Parameters p) {
    float value = 1.0f;
    if (threadIdx.x % 2 == 0) {
        value = sum_over_warp(value);
    } else {
        __syncwarp();
    }
    p.out[threadIdx.x] = value;
}

__global__ void leaves_a_lane_out(const Parameters p) { p.out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1.0f, 1); }

__global__ void writes_behind_its_memory(const Parameters p) {
    reinterpret_cast<float*>(shared_memory())[shared_bytes / 4 + threadIdx.x] = 1.0f;
    p.out[threadIdx.x] = 1.0f;
}

__global__ void writes_in_front_of_its_memory(const Parameters p) {
    shared_memory()[-1 - int(threadIdx.x)] = 1;
    p.out[threadIdx.x] = 1.0f;
}

__global__ void is_not_aligned(const Parameters p) { store_pack(p.out + threadIdx.x, Pack<float, 4>{}); }

__global__ void never_waits_for_a_copy(const Parameters p) {
    copy_async(shared_memory() + 16 * threadIdx.x, p.out);
    commit_copies();
    p.out[threadIdx.x] = 1.0f;
}

// Every thread reads what its neighbour may not have written yet.
__global__ void races(const Parameters p) {
    auto* const shared = reinterpret_cast<float*>(shared_memory());
    shared[threadIdx.x] = float(threadIdx.x);
    p.out[threadIdx.x] = shared[(threadIdx.x + 1) % threads];
}

__global__ void reads_too_early(const Parameters p) {
    auto* const shared = reinterpret_cast<float*>(shared_memory());
    copy_async(shared + 4 * threadIdx.x, p.out);
    commit_copies();
    const float early = shared[4 * threadIdx.x];
    wait_for_copies<0>();
    p.out[threadIdx.x] = early;
}

}  // namespace

void run_fault(const std::string& mistake, float* out) {
    const std::map<std::string, void (*)(Parameters)> kernels{
        {"skips_a_barrier", skips_a_barrier},
        {"waits_at_two_places", waits_at_two_places},
        {"leaves_a_lane_out", leaves_a_lane_out},
        {"writes_behind_its_memory", writes_behind_its_memory},
        {"writes_in_front_of_its_memory", writes_in_front_of_its_memory},
        {"is_not_aligned", is_not_aligned},
        {"never_waits_for_a_copy", never_waits_for_a_copy},
        {"races", races},
        {"reads_too_early", reads_too_early},
    };
    const Plan plan{mistake.c_str(), 1, 1, 1, threads, shared_bytes};
    launch(kernels.at(mistake), plan, Stream{0, nullptr}, Parameters{out});
}

}  // namespace gcsa_ext::cuda
