// What differs between a GPU and its emulation on a CPU: the launch, shared memory, and instructions that need inline PTX.
// The emulation, for which the tests compile the same kernels, has its counterpart in python_tests/helpers/cuda_emulation.
#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "plan.h"

namespace gcsa_ext::cuda {

// All of a block's shared memory, as large as its plan says, aligned to 128 bytes.
__device__ inline unsigned char* shared_memory() {
    extern __shared__ __align__(128) unsigned char gcsa_ext_shared_memory[];
    return gcsa_ext_shared_memory;
}

// The emulation checks that the address is a multiple of `bytes`; a GPU raises an error itself.
__device__ inline void require_alignment(const void*, int) {}

// A barrier of all blocks of a cooperative launch; afterwards all of them see what any of them wrote before.
__device__ inline void grid_barrier() { cooperative_groups::this_grid().sync(); }

// ---- Asynchronous copies from global to shared memory, which need no registers.

__device__ inline uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes, of which the first `bytes` are read and the rest become 0; both addresses are multiples of 16.
__device__ inline void copy_async(void* shared, const void* global, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}

// 4 or 8 bytes, on multiples of as many.
template <int bytes>
__device__ inline void copy_few_async(void* shared, const void* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(shared)), "l"(global), "n"(bytes)
                 : "memory");
}

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the `newest` last committed groups of this thread are in flight. Other threads see the copies after a
// barrier.
template <int newest>
__device__ inline void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(newest) : "memory");
}

// ---- Matrix products of a warp on tensor cores: d += a b, with float32 sums. Which lane holds which element is documented
// with PTX's mma instruction; with group = lane / 4 and pair = lane % 4:
//   a (16 x k, row major): registers 0 and 1 hold rows group and group + 8 in the first half of k, 2 and 3 in the second
//   b (k x 8, column major): column group; registers 0 and 1 are the first and the second half of k
//   d (16 x 8): elements 0 and 1 are columns 2 * pair and 2 * pair + 1 of row group, 2 and 3 of row group + 8

// k = 16; a register holds elements 2 * pair and 2 * pair + 1 of its half of k, the lower one in the lower 16 bits.
__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// k = 8, tf32; a register holds element `pair` of its half of k, rounded by to_tf32.
__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The bits of x rounded to tf32, ties away from zero.
__device__ inline uint32_t to_tf32(float x) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

// Matrices of 8 rows of 16 bytes from shared memory: lane i passes the address of row i % 8 of matrix i / 8, and gets of
// each matrix elements 2 * pair and 2 * pair + 1 (16 bits each) of row group; transposed: of column group.
__device__ inline void load_matrices(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ inline void load_matrices(uint32_t (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// ---- The launch.

// Why the runtime finds no device, or an empty string.
inline std::string platform_error() {
    int devices = 0;
    const auto code = cudaGetDeviceCount(&devices);
    return code == cudaSuccess ? "" : cudaGetErrorString(code);
}

inline Device platform_limits(int device) {
    int multiprocessors = 0, shared_bytes = 0;
    auto code = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (code == cudaSuccess) code = cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (code != cudaSuccess) {
        throw std::runtime_error("gcsa_ext: CUDA device " + std::to_string(device) + ": " + cudaGetErrorString(code));
    }
    return {multiprocessors, shared_bytes};
}

inline void require_success(cudaError_t code, const Plan& plan) {
    if (code == cudaSuccess) return;
    cudaGetLastError();  // clears the error, which the next call would report again
    throw std::runtime_error("gcsa_ext: launching " + describe(plan) + " failed: " + cudaGetErrorString(code));
}

// Queues kernel(parameter) on the stream. It neither waits nor allocates, so that a CUDA graph can capture it.
template <class Parameter>
void launch(void (*kernel)(Parameter), const Plan& plan, Stream stream, Parameter parameter) {
    check(plan);
    int current = 0;
    require_success(cudaGetDevice(&current), plan);
    if (current != stream.device) require_success(cudaSetDevice(stream.device), plan);
    auto code = cudaSuccess;
    if (plan.shared_bytes > shared_bytes_without_asking)
        code = cudaFuncSetAttribute(
            reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
            static_cast<int>(plan.shared_bytes)
        );
    cudaLaunchAttribute cooperative{};
    cooperative.id = cudaLaunchAttributeCooperative;
    cooperative.val.cooperative = 1;
    cudaLaunchConfig_t configuration{};
    configuration.gridDim = dim3(unsigned(plan.grid_x), unsigned(plan.grid_y), unsigned(plan.grid_z));
    configuration.blockDim = dim3(unsigned(plan.threads));
    configuration.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
    configuration.stream = static_cast<cudaStream_t>(stream.handle);
    configuration.attrs = &cooperative;
    configuration.numAttrs = plan.cooperative ? 1 : 0;
    void* arguments[] = {&parameter};
    if (code == cudaSuccess) code = cudaLaunchKernelExC(&configuration, reinterpret_cast<const void*>(kernel), arguments);
    if (current != stream.device) cudaSetDevice(current);
    require_success(code, plan);
}

}  // namespace gcsa_ext::cuda
