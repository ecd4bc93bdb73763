"""A convolution of GCSA in evaluation, with the normalisation and the gate behind it in the same launch.

It replaces torch's convolution and `gates.norm_forward` for the shape classes where it was measured to be
faster.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from gcsa_ext.backends.gpu import Norm
from gcsa_ext.backends.triton.gates import norm_blocks, with_stages
from gcsa_ext.backends.triton.kernels import convolution as kernels
from gcsa_ext.backends.triton.launch import Sizes, convolution_precision, is_last, power_of_two, programs
from gcsa_ext.backends.triton.tuning import Configuration, launch_fastest

KERNEL_SIZES = (3, 5, 7, 9, 11)


class ShapeClass(NamedTuple):
    """What decides which of two convolutions is faster.

    `positions` is N * H * W, rounded up to a power of two.
    """

    dtype: torch.dtype
    kernel_size: int
    channels: int
    filters: int
    positions: int

    @classmethod
    def of(cls, x: Tensor, weight: Tensor) -> ShapeClass:
        filters, channels, kernel_size, _ = weight.shape
        return cls(x.dtype, kernel_size, channels, filters, power_of_two(x.numel() // channels))


FASTER: frozenset[ShapeClass] = frozenset()
"""The shape classes for which these kernels were measured to be faster than torch's convolution and
gates.norm_forward. ``python benchmarks/gpu.py`` prints the entries that it measures. None has been
measured."""

forced: bool | None = None
"""For tests and measurements: True takes these kernels for every supported kernel size, False never."""


def unsupported(x: Tensor, weight: Tensor) -> str | None:
    """Why torch convolves x (N, C, H, W) with weight (O, C, k, k), or None if these kernels do."""
    kernel_size = weight.shape[-1]
    if kernel_size not in KERNEL_SIZES:
        return f"there are Triton kernels for kernel sizes {KERNEL_SIZES}, not {kernel_size}"
    if forced is not None:
        return None if forced else "it is forced"
    shape_class = ShapeClass.of(x, weight)
    if shape_class not in FASTER:
        return f"Triton's kernel has not been measured to be faster for {shape_class}"
    return None


def blocks(channels: int, filters: int, positions: int, dtype: torch.dtype, precision: str) -> Configuration:
    """The blocks of `convolution_norm`.

    They are the largest for which code for sm_90 keeps everything in registers, cut to the sizes of small
    maps.
    """
    if dtype.itemsize == 2:
        along_p, along_o, along_c = 128, 128, 64
    elif precision == "tf32":
        along_p, along_o, along_c = 128, 64, 32
    else:  # ordinary units multiply, and their operands take registers too
        along_p, along_o, along_c = 64, 32, 16
    block_o = min(power_of_two(filters, 16), along_o)
    return {
        "BLOCK_P": min(power_of_two(positions, 16), along_p),
        "BLOCK_O": block_o,
        "BLOCK_C": min(power_of_two(channels, 16), along_c),
        "num_warps": 8 if block_o == 128 else 4,
    }


def count_splits(x: Tensor, tiles: int, steps: int) -> int:
    """The number of programs that share the sum of one output tile.

    More than one give every multiprocessor work on small maps. Each has at least 8 steps, since with fewer
    starting a program takes longer than its work.
    """
    return max(1, min(programs(x, 1) // tiles, steps // 8, 64))


def convolution_norm(
    x: Tensor,
    weight: Tensor,
    z: Tensor | None,
    norm: Norm,
    layout: torch.memory_format,
    out_layout: torch.memory_format,
) -> Tensor:
    """z * sigmoid(norm(conv(x))), or relu(norm(conv(x))) where z is None.

    Args:
        x, z: (N, C, H, W) and (N, O, H, W), in `layout`.
        weight: (O, C, k, k) of x's dtype, channels_last.
        norm: of O channels; its offset is the convolution's bias.

    Returns:
        (N, O, H, W) in `out_layout`.
    """
    sizes, (filters, _, kernel_size, _) = Sizes.of(x), weight.shape
    out = torch.empty(
        (x.shape[0], filters, *x.shape[2:]), dtype=x.dtype, device=x.device, memory_format=out_layout
    )
    precision = convolution_precision(x)
    constants: dict[str, Any] = {**sizes.constants, "LAST": is_last(layout), "OUT_LAST": is_last(out_layout)}
    tile = blocks(sizes.channels, filters, sizes.positions, x.dtype, precision)
    along_p, along_o = triton.cdiv(sizes.positions, tile["BLOCK_P"]), triton.cdiv(filters, tile["BLOCK_O"])
    steps = kernel_size**2 * triton.cdiv(sizes.channels, tile["BLOCK_C"])
    per_split = triton.cdiv(steps, count_splits(x, along_p * along_o, steps))
    splits = triton.cdiv(steps, per_split)
    partial = None
    if splits > 1:
        partial = x.new_empty((splits, sizes.positions, filters), dtype=torch.float32)
    position_units, channels, units = sizes.arguments

    def launch(configuration: Configuration) -> None:
        kernels.convolution_norm[(along_p, along_o, splits)](
            *(x, weight, z, *norm[:5], out, partial, norm.eps),
            *(position_units, channels, units, x.shape[3], filters, per_split),
            **constants,
            KERNEL=kernel_size,
            PRECISION=precision,
            **configuration,
        )

    shape_class = (
        "convolution_norm",
        *ShapeClass.of(x, weight)[1:],
        z is None,
        layout,
        out_layout,
        precision,
    )
    launch_fastest(shape_class, with_stages(tile, 3, 2, 4), launch, x)
    if partial is not None:
        finish = norm_blocks(filters, torch.channels_last)
        grid = (triton.cdiv(sizes.positions, finish["BLOCK_P"]), triton.cdiv(filters, finish["BLOCK_C"]))
        kernels.finish_convolution_norm[grid](
            *(partial, z, *norm[:5], out, norm.eps, position_units, units, filters, splits),
            **constants,
            BLOCK_P=finish["BLOCK_P"],
            BLOCK_O=finish["BLOCK_C"],
            num_warps=finish["num_warps"],
        )
    return out
