#include "python/masking.h"

#include <vector>

#include "cpu/dispatch.h"
#include "params/frequency_mask.h"
#include "python/objects.h"
#include "python/tensors.h"

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
    const py::object& spectrogram, int64_t widest, int64_t bands, bool iid, uint64_t value, bool inplace
) {
    static const Name uniform("uniform_");
    const Torch& t = torch();
    if (!is_ordinary(spectrogram.ptr()) || !unobserved() ||
        (requires_gradient(spectrogram.ptr()) && is_true(call(t.is_grad_enabled))))
        return py::none();
    const py::object dtype = dtype_of(spectrogram.ptr());
    const bool dense = is_dense(spectrogram.ptr());
    const Shape shape = shape_of(spectrogram.ptr());
    // Numbers of other dtypes are drawn in another way.
    if (!(iid ? dtype : call(t.get_default_dtype)).is(py::handle(t.float32)) || shape.size() < 2 || product(shape) == 0 ||
        bands < 1 || (inplace && !dense))
        return py::none();
    const int64_t frames = shape.back(), bins = shape[shape.size() - 2], batch = product(shape) / (bins * frames);

    Shape drawn{bands, 2};
    if (iid) drawn.insert(drawn.end(), shape.begin(), shape.end() - 2);
    const py::object draws = empty(drawn, t.float32);
    uniform.call(draws.ptr());
    const RandomBands random(iid ? batch : 1, bands, bins, widest, static_cast<const float*>(address(draws.ptr())));
    const py::object from = dense ? spectrogram : spectrogram.attr("contiguous")();
    const py::object to = inplace ? spectrogram : empty_spectrogram(shape, dtype.ptr());
    const FrequencyMask mask{
        batch,
        bins,
        frames,
        bands,
        random.start.data(),
        random.width.data(),
        !iid,
        element_size(dtype.ptr()),
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
