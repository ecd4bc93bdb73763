"""The memory layouts of feature maps: contiguous and channels_last, which operators keep."""

from __future__ import annotations

import torch
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout in which an operator reads x (N, C, H, W) and writes its results.

    It is that of x, or contiguous if x has other strides.
    """
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last
