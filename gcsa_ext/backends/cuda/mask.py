"""The operators frequency_mask and frequency_mask_."""

from __future__ import annotations

import torch
from torch import Tensor

from gcsa_ext.backends.bits import unsigned_bits
from gcsa_ext.backends.cuda.launch import address, kernels, target
from gcsa_ext.backends.operands import expand_bands


def _mask(spectrogram: Tensor, start: Tensor, width: Tensor, value: float, out: Tensor) -> None:
    """Write the masked spectrogram to `out`, which may be the spectrogram itself; both are contiguous."""
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


def frequency_mask(spectrogram: Tensor, start: Tensor, width: Tensor, value: float) -> Tensor:
    """See reference.frequency_mask; the result is contiguous."""
    spectrogram = spectrogram.contiguous()
    out = torch.empty_like(spectrogram)
    _mask(spectrogram, start, width, value, out)
    return out


def frequency_mask_(spectrogram: Tensor, start: Tensor, width: Tensor, value: float) -> None:
    """Mask a contiguous spectrogram in place."""
    _mask(spectrogram, start, width, value, spectrogram)
