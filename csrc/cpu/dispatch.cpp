#include "cpu/dispatch.h"

#include <cstdlib>
#include <stdexcept>

#ifdef GCSA_EXT_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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
#ifdef GCSA_EXT_AMX
namespace amx {
extern const Kernels table;
}
#endif

namespace {

struct Candidate {
    const Kernels* table;
    bool (*runs_here)();
};

#ifdef GCSA_EXT_X86_64
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}
#endif
#ifdef GCSA_EXT_AMX
// Linux saves the matrix registers only of processes that have requested it. This function makes the request, so it is
// called only if AMX would then be chosen. Linux refuses where a thread's alternate signal stack is too small for the
// registers, or does not know the request.
bool has_amx() {
    constexpr unsigned amx_bf16 = 1 << 22, amx_tile = 1 << 24, avx512_bf16 = 1 << 5;  // leaf 7
    constexpr long ask_for_state = 0x1023, matrix_registers = 18;
    unsigned a = 0, b = 0, c = 0, d = 0, a1 = 0, d1 = 0;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & amx_bf16) && (d & amx_tile) &&
           __get_cpuid_count(7, 1, &a1, &b, &c, &d1) && (a1 & avx512_bf16) &&
           syscall(SYS_arch_prctl, ask_for_state, matrix_registers) == 0;
}
#endif

std::vector<Candidate> candidates() {
    std::vector<Candidate> all{{&baseline::table, [] { return true; }}};
#ifdef GCSA_EXT_X86_64
    all.push_back({&avx2::table, has_avx2});
    all.push_back({&avx512::table, has_avx512});
#endif
#ifdef GCSA_EXT_AMX
    all.push_back({&amx::table, has_amx});
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
            if (!candidate.runs_here())
                throw std::runtime_error(
                    "GCSA_EXT_CPU_ISA=" + std::string(wanted) +
                    ": this processor or operating system lacks these instructions"
                );
            return *candidate.table;
        }
        if (candidate.runs_here()) best = candidate.table;
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
