// Threads: OpenMP's pool, which in a torch process is torch's own.
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu/vector.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

// How many threads a job of `count` equal parts is worth.
inline int useful_threads(int threads, int64_t count) {
    return count < threads ? (count < 1 ? 1 : static_cast<int>(count)) : threads;
}

// Calls body(thread, begin, end) with disjoint ranges that cover [0, count); the split depends on nothing but the number
// of threads. The body must not throw: allocate before.
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
