#include "masking.h"

#include <vector>

#include "cpu/dispatch.h"
#include "frequency_mask.h"
#include "tensors.h"

namespace py = pybind11;

namespace gcsa_ext {
namespace {

// Start and width, both (batch, bands), from uniform random numbers (bands, 2, batch): the first of the two times `widest`
// is the width, the second times what the width leaves of the bins is the start; both truncated.
struct RandomBands {
    std::vector<int64_t> start, width;

    RandomBands(int64_t batch, int64_t bands, int64_t bins, int64_t widest, const float* draws)
        : start(batch * bands), width(batch * bands) {
        for (int64_t band = 0; band < bands; ++band) {
            const float *for_width = draws + band * 2 * batch, *for_start = for_width + batch;
            for (int64_t sample = 0; sample < batch; ++sample) {
                // The bits of float32 arithmetic, whatever the compiler fuses: in double these products are exact.
                const auto wide = static_cast<float>(static_cast<double>(for_width[sample]) * widest);
                const auto room = static_cast<float>(static_cast<double>(bins) - wide);
                const auto from = static_cast<float>(static_cast<double>(for_start[sample]) * room);
                width[sample * bands + band] = static_cast<int64_t>(wide);
                start[sample * bands + band] = static_cast<int64_t>(from);
            }
        }
    }
};

int64_t product(const Shape& shape) {
    int64_t count = 1;
    for (const int64_t length : shape) count *= length;
    return count;
}

}  // namespace

py::object mask_randomly(
    const py::object& spectrogram, const py::object& draws, int64_t widest, uint64_t value, bool inplace
) {
    // glibc gets every block of this size from the system, and gives it back. What it keeps below is used by everybody, so
    // that it is likelier to be in the caches than memory of our own.
    constexpr int64_t always_fresh = 32 << 20;
    const Torch& t = torch();
    if (!is_ordinary(spectrogram.ptr()) || !is_ordinary(draws.ptr()) || !unobserved()) return py::none();
    if (requires_gradient(spectrogram.ptr()) && is_true(call(t.is_grad_enabled))) return py::none();
    const bool dense = is_dense(spectrogram.ptr());
    const py::object dtype = dtype_of(spectrogram.ptr());
    const Shape shape = shape_of(spectrogram.ptr()), drawn = shape_of(draws.ptr());
    const int element_size = dtype.ptr() == t.float64                                ? 8
                             : dtype.ptr() == t.float32                              ? 4
                             : dtype.ptr() == t.bfloat16 || dtype.ptr() == t.float16 ? 2
                                                                                     : 0;
    if (shape.size() < 2 || element_size == 0 || product(shape) == 0 || (inplace && !dense) || drawn.size() < 2 ||
        drawn[1] != 2 || product(drawn) == 0 || dtype_of(draws.ptr()).ptr() != t.float32 || !is_dense(draws.ptr()))
        return py::none();
    const int64_t frames = shape.back(), bins = shape[shape.size() - 2], batch = product(shape) / (bins * frames);
    const int64_t bands = drawn[0], samples = product(drawn) / (2 * bands);
    if (samples != 1 && samples != batch) return py::none();

    const py::object from = dense ? spectrogram : spectrogram.attr("contiguous")();
    const py::object to = inplace ? spectrogram : empty(shape, dtype.ptr(), false, always_fresh);
    const RandomBands random(samples, bands, bins, widest, static_cast<const float*>(address(draws.ptr())));
    const FrequencyMask mask{
        batch,
        bins,
        frames,
        bands,
        random.start.data(),
        random.width.data(),
        samples == 1,
        element_size,
        value,
        address(from.ptr()),
        address(to.ptr()),
        call(t.threads).cast<int>()
    };
    {
        const py::gil_scoped_release release;
        cpu::kernels().frequency_mask(mask);
    }
    if (inplace) py::handle(t.increment_version)(to);
    return to;
}

}  // namespace gcsa_ext
