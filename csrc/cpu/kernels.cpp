// The table of this instruction set's kernels.

#include "cpu/kernels.h"

#include <cstddef>
#include <utility>

#define GCSA_EXT_STRINGIFY(name) #name
#define GCSA_EXT_NAME_OF(name) GCSA_EXT_STRINGIFY(name)

namespace gcsa_ext::cpu::GCSA_EXT_ISA {
namespace {

// Converts to a pointer to the kernel for any type of call.
struct AnyKernel {
    template <class Result, class Call>
    constexpr operator Kernel<Call, Result>() const {
        return run<Result, Call>;
    }
};

template <size_t... i>
constexpr Kernels make_table(std::index_sequence<i...>) {
    return {GCSA_EXT_NAME_OF(GCSA_EXT_ISA), (static_cast<void>(i), AnyKernel{})...};
}
constexpr size_t kernel_count = sizeof(Kernels) / sizeof(Kernel<SpectrogramMask>) - 1;  // all but the name

}  // namespace

// Constant: code that filled it when the module is loaded would run on every machine.
extern const Kernels table;
constexpr Kernels table = make_table(std::make_index_sequence<kernel_count>{});

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
