"""The launches of the gates, as gcsa_ext/backends/gpu.py asks for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gcsa_ext.backends.cuda import channel_gate as channel_gates
from gcsa_ext.backends.cuda.channel_gate import channel_gate, takes_channel_gate
from gcsa_ext.backends.cuda.norm import batch_statistics, norm_backward, norm_forward

__all__ = [
    "batch_statistics",
    "channel_gate",
    "channel_gate_backward",
    "norm_backward",
    "norm_forward",
    "takes_channel_gate",
]


def channel_gate_backward(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    groups: int,
    sigmoid: bool,
    layout: torch.memory_format,
    grad_layout: torch.memory_format,
    need_x: bool,
    need_weights: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients of x and of the weights, from one gradient of the result; the kernel could add up two."""
    return channel_gates.channel_gate_backward(
        (grad, None), x, weights, groups, sigmoid, layout, grad_layout, need_x, need_weights
    )
