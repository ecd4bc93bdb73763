// Threads that work together, phase by phase.
#pragma once

#include "cpu/parallel.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// Either a single thread or all threads of the enclosing parallel region.
struct Team {
    int rank, size;

    struct Share {
        int64_t begin, end;
    };
    // This member's share of [0, count).
    Share share(int64_t count) const { return {count * rank / size, count * (rank + 1) / size}; }
    template <class Body>
    void for_each(int64_t count, const Body& body) const {
        for (auto [i, end] = share(count); i < end; ++i) body(i);
    }
    // This member's share of the numbers in [0, count) for which chosen(number) is true.
    template <class Chosen, class Body>
    void for_each_chosen(int64_t count, const Chosen& chosen, const Body& body) const {
        int64_t total = 0;
        for (int64_t i = 0; i < count; ++i) total += chosen(i) ? 1 : 0;
        const auto [begin, end] = share(total);
        for (int64_t i = 0, number = 0; number < end; ++i)
            if (chosen(i) && number++ >= begin) body(i);
    }
    // Afterwards all threads of the team see what any of them wrote before.
    void barrier() const {
#ifdef _OPENMP
        if (size > 1) {
#pragma omp barrier
        }
#endif
    }
};

// Calls body(team) on every one of at most `threads` threads, which form one team.
template <class Body>
inline void parallel_team([[maybe_unused]] int threads, const Body& body) {
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel num_threads(threads)
        body(Team{omp_get_thread_num(), omp_get_num_threads()});
        return;
    }
#endif
    body(Team{0, 1});
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
