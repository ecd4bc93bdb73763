"""Random feature maps in every memory layout that a user may hand in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _contiguous(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=dtype)


def _channels_last(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def _sliced(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    N, C, H, W = shape
    return torch.randn(N, C + 3, H + 2, 2 * W, dtype=dtype)[:, 1 : C + 1, 2:, ::2]


def _transposed(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    N, C, H, W = shape
    return torch.randn(C, N, W, H, dtype=dtype).transpose(0, 1).transpose(2, 3)


def _expanded(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(1, shape[1], 1, shape[3], dtype=dtype).expand(shape)


def _negative(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A view that PyTorch negates when it is read, such as the imaginary part of a conjugate."""
    view = torch._neg_view(torch.randn(shape, dtype=dtype))
    assert view.is_neg()
    return view


LAYOUTS: dict[str, Callable[[tuple[int, ...], torch.dtype], Tensor]] = {
    "contiguous": _contiguous,
    "channels_last": _channels_last,
    "sliced": _sliced,
    "transposed": _transposed,
    "expanded": _expanded,
    "negative": _negative,
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
SIZES = ((2, 8, 5, 7), (1, 12, 1, 1), (3, 17, 3, 20), (2, 36, 9, 9), (1, 3, 33, 1))
"""With maps of one position and of one column, and numbers of channels that fill no vector register."""


def expected_format(x: Tensor) -> torch.memory_format:
    """The layout that an operator's result has for an input x."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
