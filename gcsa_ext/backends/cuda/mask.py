"""The operators spectrogram_mask and spectrogram_mask_.

There is a kernel for bands of frequency bins and a value that is a number. Torch computes all other masks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gcsa_ext.backends import reference
from gcsa_ext.backends.bits import unsigned_bits
from gcsa_ext.backends.cuda.launch import address, kernels, target
from gcsa_ext.backends.operands import expand_bands


def _mask(spectrogram: Tensor, start: Tensor, width: Tensor, value: float, out: Tensor) -> None:
    """Mask frequency bins. The result `out` may be the spectrogram itself; both are contiguous."""
    if out.numel() == 0:
        return
    freq, time = spectrogram.shape[-2:]
    start, width, shared = expand_bands(spectrogram, start, width)
    with torch.cuda.device_of(spectrogram):
        start, width = start.to(torch.int64), width.to(torch.int64)
        kernels().frequency_mask(
            target(spectrogram),
            spectrogram.numel() // (freq * time),
            freq,
            time,
            start.shape[-1],
            shared,
            spectrogram.element_size(),
            address(start),
            address(width),
            unsigned_bits(value, spectrogram.dtype),
            address(spectrogram),
            address(out),
        )


def spectrogram_mask(
    spectrogram: Tensor, start: Tensor, width: Tensor, value: float, time_bands: int, fill: Tensor | None
) -> Tensor:
    """See reference.spectrogram_mask; the result is contiguous."""
    if time_bands > 0 or fill is not None:
        return reference.spectrogram_mask(spectrogram, start, width, value, time_bands, fill)
    spectrogram = spectrogram.contiguous()
    out = torch.empty_like(spectrogram)
    _mask(spectrogram, start, width, value, out)
    return out


def spectrogram_mask_(
    spectrogram: Tensor, start: Tensor, width: Tensor, value: float, time_bands: int, fill: Tensor | None
) -> None:
    """Mask a contiguous spectrogram in place."""
    if time_bands > 0 or fill is not None:
        reference.spectrogram_mask_(spectrogram, start, width, value, time_bands, fill)
    else:
        _mask(spectrogram, start, width, value, spectrogram)
