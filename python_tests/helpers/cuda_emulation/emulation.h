// Threads of a GPU as fibers of one thread of the CPU. A fiber runs until it waits for others (at a barrier, a shuffle or a
// matrix product). A race between two waits makes results depend on the order of fibers, which `shuffle_order` changes.
//
// Errors that on a GPU cause wrong results, hangs or nothing at all end the launch with an exception: threads that wait for
// one another at different places or for a finished thread, writes beyond the ends of shared memory (found when the block is
// done), accesses that are not aligned. Shared memory is full of NaN before a block starts, and asynchronous copies arrive
// as late as they may.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "plan.h"

namespace gcsa_ext::cuda::emulation {

struct Index {
    unsigned x = 0, y = 0, z = 0;
};

// An asynchronous copy that has not arrived.
struct Copy {
    unsigned char* shared;
    const unsigned char* global;
    int bytes, written;  // bytes that are read, and bytes that are written: those beyond the read ones as 0
};

struct Warp;
struct Block;

struct Thread {
    Index thread, block, block_size, grid_size;
    int lane = 0;
    Warp* warp = nullptr;
    Block* owner = nullptr;
    std::vector<std::vector<Copy>> copies;  // by group; the last group is not yet committed
    const char* waits_at = nullptr;
    bool finished = false;
};

extern Thread* current;

[[noreturn]] void fail(const std::string& why);

// Runs body once per thread of every block: block after block or, in a cooperative launch, all blocks at a time.
void run(const Plan& plan, const std::function<void()>& body);

// 0: threads and blocks run in order; otherwise in a random order that depends on the seed.
void shuffle_order(uint64_t seed);

void block_barrier(const char* what);
void all_blocks_barrier();
unsigned char* shared_memory();

// A collective operation of the lanes of `mask`: the last one that arrives calls combine(in, out) for all. in and out are
// arrays of 32 addresses, null for lanes outside of the mask.
using Combine = std::function<void(void* const* in, void* const* out)>;
void meet(const char* what, unsigned mask, void* in, void* out, const Combine& combine);

template <class In, class Out, class Function>
Out collective(const char* what, unsigned mask, In value, const Function& function) {
    Out result{};
    meet(what, mask, &value, &result, [&](void* const* in, void* const* out) {
        In* values[32];
        Out* results[32];
        for (int lane = 0; lane < 32; ++lane) {
            values[lane] = static_cast<In*>(in[lane]);
            results[lane] = static_cast<Out*>(out[lane]);
        }
        function(values, results);
    });
    return result;
}

}  // namespace gcsa_ext::cuda::emulation
