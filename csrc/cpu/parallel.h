// Loops over threads: OpenMP's pool, which in a process with torch is torch's pool.
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu/vector.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// The number of threads for `count` equal parts of work.
inline int useful_threads(int threads, int64_t count) {
    return count < threads ? (count < 1 ? 1 : static_cast<int>(count)) : threads;
}

// Calls body(thread, begin, end) with disjoint ranges that cover [0, count). The ranges depend only on the number of
// threads. The body must not throw, so memory is allocated before.
template <class Body>
inline void parallel_for(int threads, int64_t count, const Body& body) {
    threads = useful_threads(threads, count);
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel num_threads(threads)
        {
            const int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();
            body(static_cast<int>(thread), count * thread / team, count * (thread + 1) / team);
        }
        return;
    }
#endif
    body(0, 0, count);
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
