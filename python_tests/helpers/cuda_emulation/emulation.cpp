#include "emulation.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>

namespace gcsa_ext::cuda::emulation {

namespace {

constexpr size_t stack_bytes = 64 * 1024, guard_bytes = 4096;
constexpr unsigned char guard = 0xA5, unwritten = 0xFF;  // the bytes of a NaN in float32, bfloat16 and float16

// Lanes that take part in a collective operation.
struct Meeting {
    unsigned mask, arrived = 0;
    const char* what;
    void *in[32] = {}, *out[32] = {};
    std::vector<Thread*> waiting;
};

// A barrier and the threads that wait at it.
struct Barrier {
    size_t expected = 0;
    const char* what = nullptr;
    std::vector<Thread*> waiting;
};

// The stack and the suspended state of a thread. ucontext starts a fiber; _setjmp, which makes no system call, switches.
struct Fiber {
    std::unique_ptr<unsigned char[]> stack{new unsigned char[stack_bytes]};
    ucontext_t start;
    jmp_buf here;
    bool started = false;
};

std::mutex one_launch_at_a_time;
uint64_t random_state = 0;
bool shuffled = false;

const std::function<void()>* body = nullptr;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Thread> threads;
std::deque<Thread*> ready;
Barrier grid;
std::exception_ptr failure;
jmp_buf scheduler;

uint64_t random_number() {  // xorshift64
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

Fiber& current_fiber() { return *fibers[size_t(current - threads.data())]; }

[[noreturn]] void fiber_main() {
    for (;;) {
        try {
            (*body)();
        } catch (...) {
            failure = std::current_exception();
        }
        current->finished = true;
        if (_setjmp(current_fiber().here) == 0) _longjmp(scheduler, 1);
    }
}

void resume(Thread* thread) {
    current = thread;
    thread->waits_at = nullptr;
    auto& fiber = *fibers[size_t(thread - threads.data())];
    if (_setjmp(scheduler) == 0) {
        if (fiber.started) _longjmp(fiber.here, 1);
        fiber.started = true;
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.get();
        fiber.start.uc_stack.ss_size = stack_bytes;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, fiber_main, 0);
        setcontext(&fiber.start);
    }
    current = nullptr;
}

// Suspends the thread until release() makes it ready.
void wait(const char* what) {
    current->waits_at = what;
    if (_setjmp(current_fiber().here) == 0) _longjmp(scheduler, 1);
}

void release(std::vector<Thread*>& waiting) {
    for (auto* thread : waiting) {
        if (thread != current) ready.push_back(thread);
    }
    waiting.clear();
}

void arrive(Barrier& barrier, const char* what) {
    if (barrier.waiting.empty()) barrier.what = what;
    if (std::strcmp(barrier.what, what) != 0) {
        fail(std::string("threads of a block wait at ") + barrier.what + " and at " + what);
    }
    barrier.waiting.push_back(current);
    if (barrier.waiting.size() == barrier.expected) return release(barrier.waiting);
    wait(what);
}

}  // namespace

struct Warp {
    std::deque<Meeting> meetings;  // of disjoint sets of lanes
};

struct Block {
    std::vector<unsigned char> memory;
    size_t first = 0, bytes = 0;  // of the shared memory within
    Barrier barrier;
    std::vector<Warp> warps;
};

Thread* current = nullptr;

void fail(const std::string& why) { throw std::runtime_error(why); }

void shuffle_order(uint64_t seed) {
    const std::lock_guard lock(one_launch_at_a_time);
    shuffled = seed != 0;
    random_state = seed * 0x9e3779b97f4a7c15u | 1;
}

void block_barrier(const char* what) { arrive(current->owner->barrier, what); }

void all_blocks_barrier() {
    if (grid.expected == 0) fail("a barrier of all blocks in a launch that is not cooperative");
    arrive(grid, "the barrier of all blocks");
}

unsigned char* shared_memory() { return current->owner->memory.data() + current->owner->first; }

void meet(const char* what, unsigned mask, void* in, void* out, const Combine& combine) {
    auto& meetings = current->warp->meetings;
    const unsigned lane_bit = 1u << current->lane;
    if (!(mask & lane_bit)) fail(std::string(what) + " with a mask that leaves out the calling lane");
    auto found = std::find_if(meetings.begin(), meetings.end(), [&](const Meeting& m) { return (m.mask & mask) != 0; });
    if (found == meetings.end()) {
        meetings.emplace_back();
        found = meetings.end() - 1;
        found->mask = mask;
        found->what = what;
    }
    if (found->mask != mask || std::strcmp(found->what, what) != 0) {
        fail(std::string("lanes of a warp wait at ") + found->what + " and at " + what + ", or with different masks");
    }
    found->in[current->lane] = in;
    found->out[current->lane] = out;
    found->arrived |= lane_bit;
    if (found->arrived != mask) {
        found->waiting.push_back(current);
        return wait(what);
    }
    combine(found->in, found->out);
    auto waiting = std::move(found->waiting);
    meetings.erase(found);
    release(waiting);
}

namespace {

std::string where(const Plan& plan, const Thread& thread) {
    const auto number = [](unsigned n) { return std::to_string(n); };
    return std::string(plan.kernel) + ", block (" + number(thread.block.x) + ", " + number(thread.block.y) + ", " +
           number(thread.block.z) + "), thread " + number(thread.thread.x) + ": ";
}

// Counts the threads of a deadlock by what they wait at.
std::string describe_deadlock(const Plan& plan) {
    std::string text = std::string(plan.kernel) + ": deadlock";
    std::vector<std::pair<const char*, int64_t>> counts;
    for (const auto& thread : threads) {
        const char* what = thread.finished ? "(finished)" : thread.waits_at;
        auto found = std::find_if(counts.begin(), counts.end(), [&](auto& c) { return !std::strcmp(c.first, what); });
        if (found == counts.end()) found = counts.insert(counts.end(), {what, 0});
        ++found->second;
    }
    for (const auto& [what, count] : counts) text += "; " + std::to_string(count) + " threads at " + what;
    return text;
}

// Runs the threads of blocks that live at the same time, from their start to their end.
void run_together(const Plan& plan, const std::vector<Index>& numbers) {
    std::vector<Block> blocks(numbers.size());
    const auto size = size_t(plan.threads);
    threads.assign(blocks.size() * size, Thread());
    while (fibers.size() < threads.size()) fibers.push_back(std::make_unique<Fiber>());
    for (size_t b = 0; b < blocks.size(); ++b) {
        auto& block = blocks[b];
        block.bytes = size_t(plan.shared_bytes);
        block.memory.assign(block.bytes + 2 * guard_bytes + 128, guard);
        const auto address = reinterpret_cast<uintptr_t>(block.memory.data()) + guard_bytes;
        block.first = guard_bytes + (128 - address % 128) % 128;
        std::fill_n(block.memory.begin() + std::ptrdiff_t(block.first), block.bytes, unwritten);
        block.barrier.expected = size;
        block.warps.resize((size + 31) / 32);
        for (size_t t = 0; t < size; ++t) {
            auto& thread = threads[b * size + t];
            thread.thread = {unsigned(t), 0, 0};
            thread.block = numbers[b];
            thread.block_size = {unsigned(size), 1, 1};
            thread.grid_size = {unsigned(plan.grid_x), unsigned(plan.grid_y), unsigned(plan.grid_z)};
            thread.lane = int(t % 32);
            thread.warp = &block.warps[t / 32];
            thread.owner = &block;
        }
    }
    grid = {};
    grid.expected = plan.cooperative ? threads.size() : 0;
    ready.clear();
    for (auto& thread : threads) ready.push_back(&thread);

    size_t finished = 0;
    while (!ready.empty() && !failure) {
        if (shuffled) std::swap(ready.front(), ready[random_number() % ready.size()]);
        auto* thread = ready.front();
        ready.pop_front();
        resume(thread);
        finished += thread->finished;
        if (failure) {
            try {
                std::rethrow_exception(failure);
            } catch (const std::exception& error) {
                failure = std::make_exception_ptr(std::runtime_error(where(plan, *thread) + error.what()));
            }
        }
    }
    if (!failure && finished < threads.size()) {
        failure = std::make_exception_ptr(std::runtime_error(describe_deadlock(plan)));
    }
    for (const auto& block : blocks) {
        const auto begin = block.memory.begin(), first = begin + std::ptrdiff_t(block.first);
        const auto changed = [](unsigned char byte) { return byte != guard; };
        if (!failure && (std::any_of(begin, first, changed) ||
                         std::any_of(first + std::ptrdiff_t(block.bytes), block.memory.end(), changed))) {
            failure = std::make_exception_ptr(
                std::runtime_error(std::string(plan.kernel) + ": a block wrote outside of its shared memory")
            );
        }
    }
    for (const auto& thread : threads) {
        for (const auto& group : thread.copies) {
            if (!failure && !group.empty()) {
                failure = std::make_exception_ptr(
                    std::runtime_error(where(plan, thread) + "ends before its asynchronous copies have arrived")
                );
            }
        }
    }
}

}  // namespace

void run(const Plan& plan, const std::function<void()>& kernel) {
    const std::lock_guard lock(one_launch_at_a_time);
    body = &kernel;
    failure = nullptr;
    std::vector<Index> blocks;
    for (unsigned z = 0; z < plan.grid_z; ++z) {
        for (unsigned y = 0; y < plan.grid_y; ++y) {
            for (unsigned x = 0; x < plan.grid_x; ++x) blocks.push_back({x, y, z});
        }
    }
    if (shuffled) {
        for (size_t i = blocks.size() - 1; i > 0; --i) std::swap(blocks[i], blocks[random_number() % (i + 1)]);
    }
    if (plan.cooperative) {
        run_together(plan, blocks);
    } else {
        for (size_t i = 0; i < blocks.size() && !failure; ++i) run_together(plan, {blocks[i]});
    }
    if (failure) {
        // Threads that still wait are abandoned: the next launch starts their fibers anew.
        for (auto& fiber : fibers) fiber->started = false;
        std::rethrow_exception(failure);
    }
}

}  // namespace gcsa_ext::cuda::emulation
