"""Operators frequency_mask and frequency_mask_."""

from __future__ import annotations

import torch
from torch import Tensor

from gcsa_ext.backends.bits import unsigned_bits
from gcsa_ext.backends.cuda.launch import address, kernels, target


def _mask(spectrogram: Tensor, start: Tensor, width: Tensor, value: float, out: Tensor) -> None:
    if out.numel() == 0:
        return
    freq, time = spectrogram.shape[-2:]
    bands = start.shape[-1]
    shared = start.numel() == bands
    if not shared:
        start, width = (t.expand(*spectrogram.shape[:-2], bands) for t in (start, width))
    with torch.cuda.device_of(spectrogram):
        start, width = start.to(torch.int64).contiguous(), width.to(torch.int64).contiguous()
        kernels().frequency_mask(
            target(spectrogram),
            spectrogram.numel() // (freq * time),
            freq,
            time,
            bands,
            shared,
            spectrogram.element_size(),
            address(start),
            address(width),
            unsigned_bits(value, spectrogram.dtype),
            address(spectrogram),
            address(out),
        )


def frequency_mask(spectrogram: Tensor, start: Tensor, width: Tensor, value: float) -> Tensor:
    """See reference.frequency_mask; contiguous."""
    spectrogram = spectrogram.contiguous()
    out = torch.empty_like(spectrogram)
    _mask(spectrogram, start, width, value, out)
    return out


def frequency_mask_(spectrogram: Tensor, start: Tensor, width: Tensor, value: float) -> None:
    """Mask a contiguous spectrogram in place."""
    _mask(spectrogram, start, width, value, spectrogram)
