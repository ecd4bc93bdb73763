"""The operators spectrogram_mask and spectrogram_mask_."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from gcsa_ext.backends.bits import INTEGERS, bits
from gcsa_ext.backends.operands import expand_bands
from gcsa_ext.backends.triton.kernels import spectrogram_mask as kernels
from gcsa_ext.backends.triton.launch import power_of_two
from gcsa_ext.backends.triton.tuning import Configuration, launch_fastest


def mask_blocks(time: int) -> list[Configuration]:
    """Blocks of 2048 or 4096 elements, up to 1024 of them along time."""
    along_t = min(power_of_two(time, 16), 1024)
    return [{"BLOCK_ROWS": values // along_t, "BLOCK_T": along_t, "num_warps": 4} for values in (2048, 4096)]


def spectrogram_mask(
    spectrogram: Tensor, start: Tensor, width: Tensor, value: float, time_bands: int, fill: Tensor | None
) -> Tensor:
    """See reference.spectrogram_mask; the result is contiguous."""
    spectrogram = spectrogram.contiguous()
    out = torch.empty_like(spectrogram)
    if out.numel() == 0:
        return out
    freq, time = spectrogram.shape[-2:]
    rows, bands = spectrogram.numel() // time, start.shape[-1]
    time_bands = min(time_bands, bands)
    start, width, shared = expand_bands(spectrogram, start, width)
    integers = INTEGERS[spectrogram.element_size()]
    maps = spectrogram.view(integers), start, width, out.view(integers)
    values = bits(value, spectrogram.dtype), None if fill is None else fill.view(integers)
    constants = {"SHARED": shared, "TIME": time_bands > 0}

    def launch(blocks: Configuration) -> None:
        grid = (triton.cdiv(rows, blocks["BLOCK_ROWS"]) * triton.cdiv(time, blocks["BLOCK_T"]),)
        kernels.spectrogram_mask[grid](
            *maps, rows, freq, time, bands, time_bands, *values, **constants, **blocks
        )

    shape_class = ("spectrogram_mask", power_of_two(rows), power_of_two(time), bands, time_bands, shared)
    with torch.cuda.device_of(spectrogram):
        launch_fastest(shape_class, mask_blocks(time), launch, spectrogram)
    return out


def spectrogram_mask_(
    spectrogram: Tensor, start: Tensor, width: Tensor, value: float, time_bands: int, fill: Tensor | None
) -> None:
    """Mask a contiguous spectrogram in place."""
    bands = start.shape[-1]
    if spectrogram.numel() == 0 or bands == 0:
        return
    time_bands = min(time_bands, bands)
    freq, time = spectrogram.shape[-2:]
    start, width, shared = expand_bands(spectrogram, start, width)
    integers = INTEGERS[spectrogram.element_size()]
    maps = spectrogram.view(integers), start, width
    values = bits(value, spectrogram.dtype), None if fill is None else fill.view(integers)
    blocks = mask_blocks(time)[0]
    grid = (spectrogram.numel() // (freq * time) * bands * triton.cdiv(time, blocks["BLOCK_T"]),)
    with torch.cuda.device_of(spectrogram):
        kernels.spectrogram_mask_in_place[grid](
            *maps, freq, time, bands, time_bands, *values, SHARED=shared, **blocks
        )
