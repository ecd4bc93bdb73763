// Threads of a GPU as fibers of one thread of the CPU. A fiber runs until it waits for others (a barrier, a shuffle, a
// matrix product), so that two threads that race in between show in the order of fibers: `shuffle_order` changes it.
//
// Errors, which a GPU would turn into wrong results, hangs or nothing at all, end the launch with an exception: threads that
// wait for each other at different places or for one that is finished, reads and writes beyond the shared memory's ends
// (found when the block is done), accesses that are not aligned. Shared memory is full of NaN before a block starts, and
// asynchronous copies arrive as late as they may.
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
    int bytes, written;  // how many are read, and how many are written, the rest as 0
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

// Runs body once per thread of every block, block after block; of a cooperative launch all blocks at a time.
void run(const Plan& plan, const std::function<void()>& body);

// 0: threads and blocks in their order; otherwise in a random one that depends on the number.
void shuffle_order(uint64_t seed);

void block_barrier(const char* what);
void all_blocks_barrier();
unsigned char* shared_memory();

// What the lanes of `mask` do together: the last one that arrives calls combine(in, out) for all, arrays of 32 addresses,
// null for lanes outside of the mask.
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
