"""What all launches share: how a map is described to a kernel, how many programs run, the last sums."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from gcsa_ext.backends.triton.kernels import tile

LARGEST_32_BITS = 2**31 - 2**16
"""Fewer positions than this are counted in 32 bits, the last block's reach behind the end included."""


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least `n` and `least`."""
    return max(least, 1 << (n - 1).bit_length())


class Sizes(NamedTuple):
    """Of a map (N, C, H, W), as kernels take them; see kernels/tile.py."""

    positions: int
    channels: int
    units: int
    unit: int

    @classmethod
    def of(cls, x: Tensor) -> Sizes:
        N, C, H, W = x.shape
        unit = math.gcd(H * W, 16)
        return cls(N * H * W, C, H * W // unit, unit)

    @property
    def arguments(self) -> tuple[int, int, int]:
        return self.positions // self.unit, self.channels, self.units

    @property
    def shape_class(self) -> tuple[int, ...]:
        """Channels, positions rounded up to a power of two, unit: maps alike in these take equally long."""
        return self.channels, power_of_two(self.positions), self.unit

    @property
    def constants(self) -> dict[str, Any]:
        return {"UNIT": self.unit, "WIDE": self.positions >= LARGEST_32_BITS}


def is_last(layout: torch.memory_format) -> bool:
    return layout == torch.channels_last


def precision(x: Tensor, setting: Any = None) -> str:
    """How tl.dot multiplies: float32 rounded to tf32 only where torch's own products are.

    Args:
        setting: where torch keeps the switch, torch.backends.cuda.matmul or torch.backends.cudnn.conv.
    """
    if x.dtype != torch.float32:
        return "ieee"
    setting = torch.backends.cuda.matmul if setting is None else setting
    # Reading the older switch raises an error once the newer one was used.
    allowed = (
        setting.fp32_precision == "tf32" if hasattr(setting, "fp32_precision") else bool(setting.allow_tf32)
    )
    return "tf32" if allowed else "ieee"


def convolution_precision(x: Tensor) -> str:
    """`precision` of convolutions, which have a switch of their own; in older torch it is cuDNN's."""
    cudnn: Any = torch.backends.cudnn
    return precision(x, cudnn.conv if hasattr(cudnn, "conv") else cudnn)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def programs(x: Tensor, per_multiprocessor: int) -> int:
    """How many programs that loop over blocks keep the device of x busy; few in the interpreter."""
    return per_multiprocessor * _multiprocessors(x.device) if x.is_cuda else 3


def sum_partials(
    partial: Tensor, outputs: Sequence[Tensor | None], sizes: Sequence[int], total: Tensor | None = None
) -> None:
    """Sum partial (rows, width) over its rows into `total` (width,), and piece by piece into `outputs`."""
    rows, width = partial.shape
    pieces = [*outputs, *(4 - len(outputs)) * (None,)]
    lengths = [*sizes, *(4 - len(sizes)) * (0,)]
    block = 16
    tile.sum_partials[(triton.cdiv(width, block),)](
        partial, total, *pieces, *lengths, rows, BLOCK_ROWS=128, BLOCK=block, num_warps=4
    )
