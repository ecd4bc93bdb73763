"""The bits of a number, which masking writes without regard to the dtype."""

from __future__ import annotations

import functools
import math

import torch

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer dtype by the size of an element in bytes."""


def bits(value: float, dtype: torch.dtype) -> int:
    """The bits of `value` as an element of `dtype`, as a signed integer of its size."""
    return _bits(value, math.copysign(1.0, value), dtype)


@functools.lru_cache(maxsize=256)
def _bits(value: float, sign: float, dtype: torch.dtype) -> int:
    # `sign` keeps 0.0 and -0.0, which are equal, apart in the cache.
    return int(torch.tensor(value, dtype=dtype, device="cpu").view(INTEGERS[dtype.itemsize]).item())


def unsigned_bits(value: float, dtype: torch.dtype) -> int:
    """The same as an unsigned integer."""
    return bits(value, dtype) & (1 << 8 * dtype.itemsize) - 1
