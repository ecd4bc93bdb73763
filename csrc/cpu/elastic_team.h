// A team that works on one thread while other processes take the cores of its threads.
#pragma once

#include <cstdlib>
#include <ctime>

#include "cpu/team.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// Decides how many threads the next parallel region gets, from the time that the threads of earlier regions were without a
// core. A team is as slow as its slowest member: with n threads of which one is without a core for more than (n - 1) / n of
// the time, a single thread would have been faster in most cases.
class Crowding {
   public:
    bool alone() const { return alone_ > 0; }
    // After a region of one thread, of so many seconds.
    void add_alone(double seconds) { alone_ -= seconds; }
    // After a region of `threads` threads. One of them was without a core for `lost` seconds, the others for less.
    void add(double seconds, double lost, int threads) {
        seconds_ += seconds;
        lost_ += lost;
        if (seconds_ < least_evidence) return;
        alone_ = lost_ * threads > seconds_ * (threads - 1) ? seconds_ * alone_share : 0;
        seconds_ = lost_ = 0;
    }

   private:
    static constexpr double least_evidence = 0.02;  // seconds: several time slices of the system
    static constexpr double alone_share = 20;       // time on one thread over that of the regions that it was decided from

    double seconds_ = 0, lost_ = 0;  // since the last decision
    double alone_ = 0;               // seconds that are left on one thread
};
// That of the regions that this thread begins.
inline thread_local Crowding crowding;

inline double seconds(clockid_t clock) {
    timespec time;
    clock_gettime(clock, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// True if the environment makes waiting threads sleep early (libgomp's variables). Then a crowded team loses little, and the
// clocks do not tell a thread that sleeps from one without a core.
inline bool waiting_threads_sleep() {
    static const bool sleep = std::getenv("GOMP_SPINCOUNT") || std::getenv("OMP_WAIT_POLICY");
    return sleep;
}

// parallel_team, or body(team) on one thread while the processor is crowded. Only for results whose bits do not depend on
// the number of threads.
template <class Body>
inline void elastic_team([[maybe_unused]] int threads, const Body& body) {
#ifdef _OPENMP
    if (threads > 1 && waiting_threads_sleep()) return parallel_team(threads, body);
    if (threads > 1) {
        Crowding& recent = crowding;
        const double begin = seconds(CLOCK_MONOTONIC);
        if (recent.alone()) {
            body(Team{0, 1});
            recent.add_alone(seconds(CLOCK_MONOTONIC) - begin);
            return;
        }
        double lost = 0;  // of the member that lost most
#pragma omp parallel num_threads(threads) reduction(max : lost)
        {
            const double used = seconds(CLOCK_THREAD_CPUTIME_ID);
            body(Team{omp_get_thread_num(), omp_get_num_threads()});
            lost = (seconds(CLOCK_MONOTONIC) - begin) - (seconds(CLOCK_THREAD_CPUTIME_ID) - used);
        }
        recent.add(seconds(CLOCK_MONOTONIC) - begin, lost, threads);
        return;
    }
#endif
    body(Team{0, 1});
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
