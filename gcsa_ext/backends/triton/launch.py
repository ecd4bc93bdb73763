"""What all launches share: the sizes of a map as kernels take them, the number of programs, the last sums."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from gcsa_ext.backends.gpu.support import tf32
from gcsa_ext.backends.triton.kernels import tile

LARGEST_32_BITS = 2**31 - 2**16
"""Fewer positions than this fit in 32 bits, including those of the last block that are outside of the map."""


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least `n` and `least`."""
    return max(least, 1 << (n - 1).bit_length())


class Sizes(NamedTuple):
    """The sizes of a map (N, C, H, W) as kernels take them; see kernels/tile.py.

    positions is N * H * W, unit the constant UNIT, and units is H * W / unit.
    """

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
        """The kernels' arguments position_units, C, P_UNITS."""
        return self.positions // self.unit, self.channels, self.units

    @property
    def shape_class(self) -> tuple[int, ...]:
        """Channels, positions rounded up to a power of two, and unit: the key of a timed configuration."""
        return self.channels, power_of_two(self.positions), self.unit

    @property
    def constants(self) -> dict[str, Any]:
        """The kernels' constants of the same names."""
        return {"UNIT": self.unit, "WIDE": self.positions >= LARGEST_32_BITS}


def precision(x: Tensor) -> str:
    """The input precision of tl.dot: "tf32" where torch's own matrix products use tf32, else "ieee"."""
    return "tf32" if tf32(x) else "ieee"


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def programs(x: Tensor, per_multiprocessor: int) -> int:
    """The number of programs that loop over blocks and keep the device of x busy; 3 in the interpreter."""
    return per_multiprocessor * _multiprocessors(x.device) if x.is_cuda else 3


def sum_partials(
    partial: Tensor, outputs: Sequence[Tensor | None], sizes: Sequence[int], total: Tensor | None = None
) -> None:
    """Sum `partial` (rows, width) over its rows.

    The sums (width,) are written to `total`, and consecutive pieces of the given `sizes` to `outputs`; both
    may be None.
    """
    rows, width = partial.shape
    pieces = [*outputs, *(4 - len(outputs)) * (None,)]
    lengths = [*sizes, *(4 - len(sizes)) * (0,)]
    block = 16
    tile.sum_partials[(triton.cdiv(width, block),)](
        partial, total, *pieces, *lengths, rows, BLOCK_ROWS=128, BLOCK=block, num_warps=4
    )
