// The time that a cache line takes from one core to another and back.

#include "params/measure.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>

#include "cpu/kernels.h"
#include "cpu/team.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

// The least of short series. Two cores under one last-level cache need about 50 ns, two that meet in memory several times as
// many. All threads of the pool take part in the parallel region, since OpenMP would end the others.
template <>
double run(const CoreRoundTrip& p) {
    struct alignas(128) Line {
        std::atomic<int64_t> turn{0};
    } line;
    double time = std::numeric_limits<double>::infinity();
    int threads = 2;
#ifdef _OPENMP
    threads = std::max(threads, omp_get_max_threads());
#endif
    parallel_team(threads, [&](const Team& team) {
        if (team.size < 2 || team.rank > 1) return;
        constexpr int64_t end = -1;
        if (team.rank == 1) {
            for (int64_t seen = 0; (seen = line.turn.load(std::memory_order_acquire)) != end;)
                if (seen % 2) line.turn.compare_exchange_strong(seen, seen + 1, std::memory_order_acq_rel);
            return;
        }
        constexpr int series = 20;
        const double begin = now();
        int64_t turns = 0;
        for (double before = begin, after = begin; after < begin + p.seconds; before = after) {
            for (int i = 0; i < series; ++i, ++turns) {
                line.turn.store(2 * turns + 1, std::memory_order_release);
                while (line.turn.load(std::memory_order_acquire) != 2 * turns + 2) {
                }
            }
            after = now();
            time = std::min(time, (after - before) / series);
        }
        line.turn.store(end, std::memory_order_release);
    });
    return time;
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
