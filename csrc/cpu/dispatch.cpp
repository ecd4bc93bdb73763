#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace gcsa_ext::cpu {

namespace baseline {
extern const Kernels table;
}
#ifdef GCSA_EXT_X86_64
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

namespace {

struct Candidate {
    const Kernels* table;
    bool runs_here;
};

std::vector<Candidate> candidates() {
    std::vector<Candidate> all{{&baseline::table, true}};
#ifdef GCSA_EXT_X86_64
    all.push_back({&avx2::table, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")});
    all.push_back(
        {&avx512::table, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                             __builtin_cpu_supports("fma")}
    );
#endif
    return all;
}

const Kernels& choose() {
    const char* wanted = std::getenv("GCSA_EXT_CPU_ISA");
    const Kernels* best = nullptr;
    std::string names;
    for (const Candidate& candidate : candidates()) {
        names += (names.empty() ? "" : ", ") + std::string(candidate.table->isa);
        if (wanted && *wanted) {
            if (std::string(wanted) != candidate.table->isa) continue;
            if (!candidate.runs_here)
                throw std::runtime_error(
                    "GCSA_EXT_CPU_ISA=" + std::string(wanted) + ": this processor lacks these instructions"
                );
            return *candidate.table;
        }
        if (candidate.runs_here) best = candidate.table;
    }
    if (!best) throw std::runtime_error("GCSA_EXT_CPU_ISA=" + std::string(wanted) + ": this build has " + names);
    return *best;
}

}  // namespace

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}

std::vector<std::string> built_isas() {
    std::vector<std::string> names;
    for (const Candidate& candidate : candidates()) names.emplace_back(candidate.table->isa);
    return names;
}

}  // namespace gcsa_ext::cpu
