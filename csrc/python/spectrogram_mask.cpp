// The operators spectrogram_mask and spectrogram_mask_: from tensors to one call of the kernel.

#include "params/spectrogram_mask.h"

#include "cpu/dispatch.h"
#include "python/binding.h"
#include "python/tensors.h"

namespace py = pybind11;

namespace gcsa_ext {
namespace {

// Masks a contiguous spectrogram (..., bins, frames) into `out`, which may be the spectrogram itself. `start` and `width`:
// int64, contiguous, a row of bands for each sample or one row for all. The first `time_bands` of a row are bands of frames,
// the others are bands of bins. `value`: the bits of what masked elements become.
void mask_into(
    const py::object& out, const py::object& spectrogram, const py::object& start, const py::object& width,
    int64_t time_bands, uint64_t value
) {
    const Shape shape = shape_of(spectrogram), rows = shape_of(start);
    require(shape.size() >= 2 && shape_of(out) == shape, "a spectrogram (..., bins, frames), and a result like it");
    require(!rows.empty() && shape_of(width) == rows, "start and width of one shape");
    require(dtype_of(out).is(dtype_of(spectrogram)), "a result of the spectrogram's dtype");
    require(dtype_of(start).is(torch().int64) && dtype_of(width).is(torch().int64), "start and width in int64");
    for (const py::object& tensor : {out, spectrogram, start, width})
        require(dense(tensor).is(tensor), "contiguous tensors");
    if (elements(shape) == 0 || rows.back() == 0) return;
    const int64_t frames = shape.back(), bins = shape[shape.size() - 2], bands = rows.back();
    const int64_t batch = elements(shape) / (bins * frames);
    const bool shared = elements(rows) == bands;
    require(shared || elements(rows) == batch * bands, "a row of bands for each sample, or one for all");
    require(time_bands >= 0 && time_bands <= bands, "at most as many time bands as bands");
    const SpectrogramMask call{
        batch,
        bins,
        frames,
        bands,
        time_bands,
        static_cast<const int64_t*>(address(start)),
        static_cast<const int64_t*>(address(width)),
        shared,
        element_size(dtype_of(spectrogram)),
        value,
        address(spectrogram),
        address(out),
        torch().threads().cast<int>()
    };
    const py::gil_scoped_release release;
    cpu::kernels().spectrogram_mask(call);
}

// An uninitialised spectrogram. Memory of up to 32 MiB comes from malloc, which reuses what is likelier to be in the caches.
// Larger blocks malloc would map anew in every call.
py::object empty_spectrogram(const py::object& like) {
    return empty(shape_of(like), dtype_of(like), Layout::contiguous, 32 << 20);
}

const Binding binding([](py::module_& module) {
    module.def("mask_into", &mask_into);
    module.def("empty_spectrogram", &empty_spectrogram);
});

}  // namespace
}  // namespace gcsa_ext
