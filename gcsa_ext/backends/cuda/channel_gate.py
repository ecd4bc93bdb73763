"""The launches of the channel gate, see csrc/cuda/channel_gate.h.

gcsa_ext/backends/gpu/launches.py has their contract.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from torch import Tensor

from gcsa_ext.backends.cuda import launch
from gcsa_ext.backends.cuda.launch import ELEMENTS, VECTOR_ELEMENTS, address, kernels, target
from gcsa_ext.backends.gpu import ChannelGate
from gcsa_ext.backends.gpu.maps import is_last
from gcsa_ext.backends.gpu.support import tf32


def takes_channel_gate(channels: int, hidden: int, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for `hidden`, and 16 positions of all channels fit in shared memory.

    A larger gate spends nearly all of its time in matrix products, and torch computes it.
    """
    return hidden <= kernels().largest_gate_hidden and _fits(channels, hidden, dtype, _shared_bytes())


@functools.cache
def _fits(channels: int, hidden: int, dtype: torch.dtype, shared_bytes: int) -> bool:
    """Whether the kernels fit in either layout, forward and backward, with tf32 and without."""
    limits = (0, 0, 1, shared_bytes)
    try:
        for last, other_last, tf32 in itertools.product((False, True), repeat=3):
            gate = (hidden, 1, True, tf32)
            # Images of fewer than 64 positions are read as a whole, which takes less memory.
            arguments = (limits, ELEMENTS[dtype], (1, channels, 64), gate, last, other_last)
            kernels().plan_channel_gate(*arguments)
            kernels().plan_channel_gate_backward(*arguments, True, (16, 16, 16))
    except ValueError:
        return False
    return True


def _shared_bytes() -> int:
    """The bytes of shared memory that a block of threads may have on each of the devices."""
    return launch.EMULATED_TARGET[3] if launch.emulated() else _least_shared_bytes()


@functools.cache
def _least_shared_bytes() -> int:
    return min(launch.limits(device)[1] for device in range(torch.cuda.device_count()))


def _arguments(
    x: Tensor, gate: ChannelGate, layout: torch.memory_format, other: torch.memory_format
) -> tuple[Any, ...]:
    """The first arguments of the compiled functions: device, sizes, settings, layouts of both maps."""
    N, C, H, W = x.shape
    return (
        target(x),
        ELEMENTS[x.dtype],
        (N, C, H * W),
        (gate.weights[0].shape[0], gate.groups, gate.sigmoid, tf32(x)),
        is_last(layout),
        is_last(other),
    )


def channel_gate(
    x: Tensor, gate: ChannelGate, layout: torch.memory_format, out_layout: torch.memory_format
) -> Tensor:
    """See `Gates.channel_gate`."""
    weights = [w.to(x.dtype) for w in gate.weights]
    out = torch.empty_like(x, memory_format=out_layout)
    kernels().channel_gate(
        *_arguments(x, gate, layout, out_layout),
        address(x),
        tuple(map(address, weights)),
        address(out),
    )
    return out


def channel_gate_backward(
    grad: Tensor,
    x: Tensor,
    gate: ChannelGate,
    layout: torch.memory_format,
    grad_layout: torch.memory_format,
    need_x: bool,
    need_weights: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """See `Gates.channel_gate_backward`."""
    weights = gate.weights
    grad_x = torch.empty_like(x, memory_format=layout) if need_x else None
    grads = [torch.empty_like(w) if need_weights else None for w in weights]
    cast_weights = [w.to(x.dtype) for w in weights]
    arguments = _arguments(x, gate, layout, grad_layout)
    maps = tuple(map(address, (x, grad, grad_x)))
    workspace: list[Tensor | None] = [None, None, None, None]
    rows = units = 0
    if need_weights:
        rows, units = kernels().channel_gate_backward_workspace(*arguments, True, maps)
        workspace[0] = x.new_empty((rows, sum(w.numel() for w in weights)), dtype=torch.float32)
        if units:
            positions = x.numel() // x.shape[1]
            workspace[1:] = (x.new_empty((positions, columns)) for columns in (units, units, x.shape[1]))
    kernels().channel_gate_backward(
        *arguments,
        maps,
        tuple(map(address, cast_weights)),
        list(map(address, workspace)),
        (rows, units),
        [(address(g), VECTOR_ELEMENTS[w.dtype]) for g, w in zip(grads, weights, strict=True)],
    )
    return grad_x, grads
