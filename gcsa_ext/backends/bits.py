"""The bits of a number: masking copies bits, so that one kernel serves all dtypes of a size."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The signed integer dtype of each size in bytes."""


def bits(value: float, dtype: torch.dtype) -> int:
    """The bits of `value` in the floating `dtype`, as a signed integer of the same size."""
    return _bits(value, math.copysign(1.0, value), dtype)


@functools.lru_cache(maxsize=256)
def _bits(value: float, sign: float, dtype: torch.dtype) -> int:
    # 0.0 and -0.0 are equal, hence one key of the cache without `sign`.
    return int(torch.tensor(value, dtype=dtype, device="cpu").view(INTEGERS[dtype.itemsize]).item())


def element_bits(element: Tensor) -> int:
    """The bits of a tensor () on the CPU, as an unsigned integer of the same size."""
    size = element.element_size()
    return int(element.view(INTEGERS[size]).item()) & (1 << 8 * size) - 1


def unsigned_bits(value: float, dtype: torch.dtype) -> int:
    """The bits of `value` in the floating `dtype`, as an unsigned integer of the same size."""
    return bits(value, dtype) & (1 << 8 * dtype.itemsize) - 1
