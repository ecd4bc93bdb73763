"""The launch of the whole attention at once, with given statistics; see csrc/cuda/small_gcsa.h."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from gcsa_ext.backends.cuda.channel_gate import tf32
from gcsa_ext.backends.cuda.launch import ELEMENTS, VECTOR_ELEMENTS, address, kernels, target
from gcsa_ext.layout import memory_format

POSITIONS = 2048
MULTIPLY_ADDS = {2: 3e9, 4: 4e8}
"""At most how many a map may have, and need in both convolutions together, by the size of an element: so many
take about as long as the launches that are saved. Predicted; ``python benchmarks/gpu.py`` measures it."""


def takes(
    x: Tensor, hidden: int, kernel_size: int, groups: int, statistics: Sequence[Tensor | None], save: bool
) -> bool:
    """Whether `small_gcsa` computes it: with all statistics given, nothing kept for a backward pass, and a
    map that makes little work."""
    N, C, H, W = x.shape
    if save or any(value is None for value in statistics):
        return False
    if N * H * W > POSITIONS or 2 * N * C * H * W * hidden * kernel_size**2 > MULTIPLY_ADDS[x.element_size()]:
        return False
    return _plan(*_arguments(x, hidden, kernel_size, groups, True)) is not None


def _arguments(x: Tensor, hidden: int, kernel_size: int, groups: int, sigmoid: bool) -> tuple[Any, ...]:
    limits = target(x)[2:]
    settings = (hidden, groups, kernel_size, sigmoid)
    units = (tf32(x), convolution_tf32(x))
    last = memory_format(x) == torch.channels_last
    return limits, ELEMENTS[x.dtype], tuple(x.shape), settings, units, last


def convolution_tf32(x: Tensor) -> bool:
    """Whether float32 is multiplied as tf32 in convolutions: where torch's own are."""
    if x.dtype != torch.float32 or not x.is_cuda:
        return False
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # once the newer switch was used
        return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=256)
def _plan(limits: tuple[int, int], *arguments: Any) -> tuple[int, int, int] | None:
    """The elements of the workspaces, or None where it does not fit."""
    try:
        z, hidden, partial, _launch = kernels().plan_small_gcsa((0, 0, *limits), *arguments)
    except ValueError:
        return None
    return z, hidden, partial


def small_gcsa(
    x: Tensor,
    gate: Sequence[Tensor],
    convolutions: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    norms: Sequence[Tensor | None],
    statistics: Sequence[Tensor],
    eps: tuple[float, float],
    groups: int,
    sigmoid: bool,
) -> tuple[Tensor, ...]:
    """See reference.gcsa, whose arguments and results these are; in the layout of x."""
    hidden, kernel_size = convolutions[0].shape[0], convolutions[0].shape[-1]
    x = x.contiguous(memory_format=memory_format(x))
    arguments = _arguments(x, hidden, kernel_size, groups, sigmoid)
    elements = cast("tuple[int, int, int]", _plan(*arguments))
    z, between = (x.new_empty(count) for count in elements[:2])
    partial = x.new_empty(elements[2], dtype=torch.float32)
    out = torch.empty_like(x)
    used = [x.new_empty(value.shape, dtype=torch.float32) for value in statistics]
    gate = [w.to(x.dtype).contiguous() for w in gate]
    weights = [w.to(x.dtype).contiguous() for w in (convolutions[0], convolutions[2])]
    vectors = [
        [
            None if vector is None else vector.contiguous()
            for vector in (convolutions[2 * i + 1], *norms[2 * i : 2 * i + 2], *statistics[2 * i : 2 * i + 2])
        ]
        for i in range(2)
    ]
    kernels().small_gcsa(
        target(x),
        *arguments[1:],
        address(x),
        [address(w) for w in gate],
        *(
            (
                address(weights[i]),
                [
                    (0, 0) if vector is None else (vector.data_ptr(), VECTOR_ELEMENTS[vector.dtype])
                    for vector in vectors[i]
                ],
                eps[i],
                address(used[2 * i]),
                address(used[2 * i + 1]),
            )
            for i in range(2)
        ),
        address(out),
        [address(z), address(between), address(partial)],
    )
    return out, *used
