"""The whole attention in one launch, for small maps and given statistics; see csrc/cuda/small_gcsa.h."""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor

from gcsa_ext.backends.cuda.launch import ELEMENTS, address, kernels, target, vector
from gcsa_ext.backends.gpu.support import convolution_tf32, tf32
from gcsa_ext.backends.operands import Arguments
from gcsa_ext.layout import memory_format

POSITIONS = 2048
"""The largest number of positions N * H * W."""

MULTIPLY_ADDS = {2: 3e9, 4: 4e8}
"""The largest number of multiplications in both convolutions together, by the size of an element in bytes.

With this number the one launch takes about as long as one launch per layer. The number is a prediction, which
``python benchmarks/gpu.py`` can measure.
"""


def takes(a: Arguments) -> bool:
    """Whether `small_gcsa` is to compute gcsa_inference: the map is small, the arguments are plain."""
    if not a.plain:
        return False
    N, C, H, W = a.x.shape
    hidden, kernel_size = a.w1.shape[0], a.conv1_weight.shape[-1]
    if N * H * W > POSITIONS:
        return False
    if 2 * N * C * H * W * hidden * kernel_size**2 > MULTIPLY_ADDS[a.x.element_size()]:
        return False
    return _plan(*_arguments(a.x, hidden, kernel_size, a.groups, True)) is not None


def _arguments(x: Tensor, hidden: int, kernel_size: int, groups: int, sigmoid: bool) -> tuple[Any, ...]:
    """The arguments of the compiled functions but the device: limits, sizes, settings, layout."""
    limits = target(x)[2:]
    settings = (hidden, groups, kernel_size, sigmoid)
    units = (tf32(x), convolution_tf32(x))
    last = memory_format(x) == torch.channels_last
    return limits, ELEMENTS[x.dtype], tuple(x.shape), settings, units, last


@functools.lru_cache(maxsize=256)
def _plan(limits: tuple[int, int], *arguments: Any) -> tuple[int, int, int] | None:
    """The numbers of elements of the workspaces, or None if the kernel does not fit in shared memory."""
    try:
        z, hidden, partial, _launch = kernels().plan_small_gcsa((0, 0, *limits), *arguments)
    except ValueError:
        return None
    return z, hidden, partial


def small_gcsa(a: Arguments) -> Tensor:
    """gcsa_inference of backends/reference.py where `takes` is true; the result is in the layout of x."""
    hidden, kernel_size = a.w1.shape[0], a.conv1_weight.shape[-1]
    with torch.cuda.device_of(a.x):
        x = a.x.contiguous(memory_format=memory_format(a.x))
        arguments = _arguments(x, hidden, kernel_size, a.groups, a.sigmoid)
        z_elements, between_elements, partial_elements = cast("tuple[int, int, int]", _plan(*arguments))
        z, between_convolutions = x.new_empty(z_elements), x.new_empty(between_elements)
        partial = x.new_empty(partial_elements, dtype=torch.float32)
        out = torch.empty_like(x)
        channels = hidden, hidden, x.shape[1], x.shape[1]
        used = [x.new_empty(count, dtype=torch.float32) for count in channels]
        gate = [w.to(x.dtype).contiguous() for w in a.gate]
        first, second = (w.to(x.dtype).contiguous() for w in (a.conv1_weight, a.conv2_weight))
        vectors1 = [a.conv1_bias, a.norm1_weight, a.norm1_bias, a.mean1, a.var1]
        vectors2 = [a.conv2_bias, a.norm2_weight, a.norm2_bias, a.mean2, a.var2]
        vectors1, vectors2 = (
            [None if v is None else v.contiguous() for v in vectors] for vectors in (vectors1, vectors2)
        )
        kernels().small_gcsa(
            target(x),
            *arguments[1:],
            address(x),
            [address(w) for w in gate],
            (address(first), list(map(vector, vectors1)), a.eps1, address(used[0]), address(used[1])),
            (address(second), list(map(vector, vectors2)), a.eps2, address(used[2]), address(used[3])),
            address(out),
            [address(z), address(between_convolutions), address(partial)],
        )
    return out
