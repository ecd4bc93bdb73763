"""Operators frequency_mask and frequency_mask_."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from gcsa_ext.backends.cuda.launch import address, kernels, target

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@functools.lru_cache(maxsize=256)
def _bits(value: float, sign: float, dtype: torch.dtype) -> int:
    """The bits of `value` in `dtype`, as an unsigned number; `sign` keeps 0.0 and -0.0 apart in the cache."""
    signed = int(torch.tensor(value, dtype=dtype, device="cpu").view(_INTEGERS[dtype.itemsize]).item())
    return signed & (1 << 8 * dtype.itemsize) - 1


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
            _bits(value, math.copysign(1.0, value), spectrogram.dtype),
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
