"""The memory layout of feature maps: contiguous and channels_last are kept as they come, all else becomes
contiguous."""

from __future__ import annotations

import torch
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout in which an operator reads x (N, C, H, W) and writes its results."""
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last
