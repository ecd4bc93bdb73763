#include "bindings.h"

#include "binding.h"
#include "frequency_mask.h"

namespace gcsa_ext::cuda {

namespace {

FrequencyMask frequency_mask_call(
    int64_t batch, int64_t bins, int64_t frames, int64_t bands, bool shared, int64_t element_size, Address start,
    Address width, uint64_t value, Address input, Address output
) {
    require(batch >= 1 && bins >= 1 && frames >= 1 && bands >= 1, "a batch, bins, frames and bands of at least 1");
    require(element_size == 2 || element_size == 4 || element_size == 8, "elements of 2, 4 or 8 bytes");
    require_addresses(start, width, input, output);
    return {
        batch,
        bins,
        frames,
        bands,
        shared,
        element_size,
        pointer<const int64_t>(start),
        pointer<const int64_t>(width),
        value,
        pointer(input),
        pointer(output)
    };
}

void bind_frequency_mask(pybind11::module_& module) {
    module.def(
        "frequency_mask",
        [](const Target& target, int64_t batch, int64_t bins, int64_t frames, int64_t bands, bool shared,
           int64_t element_size, Address start, Address width, uint64_t value, Address input, Address output) {
            const auto call = frequency_mask_call(
                batch, bins, frames, bands, shared, element_size, start, width, value, input, output
            );
            const auto number = [](int64_t n) { return std::to_string(n); };
            const auto sizes = "a batch of " + number(batch) + " x " + number(bins) + " bins x " + number(frames) + " frames";
            with_sizes(sizes, [&] { frequency_mask(call, device(target), stream(target)); });
        }
    );
    module.def(
        "plan_frequency_mask",
        [](const Target& target, int64_t batch, int64_t bins, int64_t frames, int64_t bands, bool shared,
           int64_t element_size, Address start, Address width, uint64_t value, Address input, Address output) {
            const auto call = frequency_mask_call(
                batch, bins, frames, bands, shared, element_size, start, width, value, input, output
            );
            return to_dict(plan_frequency_mask(call, device(target)));
        }
    );
}

}  // namespace

void bind(pybind11::module_& module) { bind_frequency_mask(module); }

}  // namespace gcsa_ext::cuda
