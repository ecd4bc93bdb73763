"""Operators frequency_mask and frequency_mask_."""

from __future__ import annotations

import functools
import math

import torch
import triton
from torch import Tensor

from gcsa_ext.backends.triton.kernels import frequency_mask as kernels
from gcsa_ext.backends.triton.launch import power_of_two

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@functools.lru_cache(maxsize=256)
def _bits(value: float, sign: float, dtype: torch.dtype) -> int:
    """The bits of `value` in `dtype`, as a signed integer; `sign` keeps 0.0 and -0.0 apart in the cache."""
    return int(torch.tensor(value, dtype=dtype, device="cpu").view(_INTEGERS[dtype.itemsize]).item())


def _mask(spectrogram: Tensor, start: Tensor, width: Tensor, value: float, out: Tensor) -> None:
    if out.numel() == 0:
        return
    freq, time = spectrogram.shape[-2:]
    rows, bands = spectrogram.numel() // time, start.shape[-1]
    shared = start.numel() == bands
    if not shared:
        start, width = (t.expand(*spectrogram.shape[:-2], bands) for t in (start, width))
    block_t = min(power_of_two(time, 16), 1024)
    block_rows = 2048 // block_t
    integers = _INTEGERS[spectrogram.element_size()]
    with torch.cuda.device_of(spectrogram):
        kernels.frequency_mask[(triton.cdiv(rows, block_rows), triton.cdiv(time, block_t))](
            spectrogram.view(integers),
            start.contiguous(),
            width.contiguous(),
            out.view(integers),
            rows,
            freq,
            time,
            bands,
            _bits(value, math.copysign(1.0, value), spectrogram.dtype),
            SHARED=shared,
            IN_PLACE=out is spectrogram,
            BLOCK_ROWS=block_rows,
            BLOCK_T=block_t,
            num_warps=4,
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
