"""Arguments of the operator gcsa."""

from __future__ import annotations

import math
from typing import Any

import torch


def operator_arguments(dtype: torch.dtype = torch.float32) -> list[Any]:
    """A map (2, 8, 6, 5), h = 3, kernels of 5."""
    gate, convolutions = ((3, 8), (3,), (8, 3), (8,)), ((3, 8, 5, 5), (3,), (8, 3, 5, 5), (8,))
    shapes = ((2, 8, 6, 5), *gate, *convolutions, (3,), (3,), (8,), (8,))
    return [torch.randn(shape, dtype=dtype) / math.sqrt(math.prod(shape[1:])) for shape in shapes]


STATISTICS = torch.randn(3), torch.rand(3) + 0.3, torch.randn(8), torch.rand(8) + 0.3
SETTINGS = (1e-5, 1e-3, 4, True, False)
