"""The operators by the CUDA kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from gcsa_ext.backends.cuda import gates
from gcsa_ext.backends.cuda.small_gcsa import small_gcsa, takes
from gcsa_ext.backends.gpu import Operators

_operators = Operators(gates)
channel_gate = _operators.channel_gate
channel_gate_backward = _operators.channel_gate_backward
norm_gate = _operators.norm_gate
norm_gate_backward = _operators.norm_gate_backward
gcsa_backward = _operators.gcsa_backward


def gcsa(
    x: Tensor,
    gate: Sequence[Tensor],
    convolutions: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    norms: Sequence[Tensor | None],
    statistics: Sequence[Tensor | None],
    eps: tuple[float, float],
    groups: int,
    sigmoid: bool,
    mixed: bool,
    save: bool,
) -> tuple[Tensor, ...]:
    """See reference.gcsa; arguments and results as those of cpu.gcsa. Small maps in eval take one launch."""
    hidden, kernel_size = gate[0].shape[0], convolutions[0].shape[-1]
    if not takes(x, hidden, kernel_size, groups, statistics, save):
        return _operators.gcsa(x, gate, convolutions, norms, statistics, eps, groups, sigmoid, mixed, save)
    given = cast("Sequence[Tensor]", statistics)
    with torch.cuda.device_of(x):
        out, *used = small_gcsa(x, gate, convolutions, norms, given, eps, groups, sigmoid)
        return out, x.new_empty(0), x.new_empty(0), *used
