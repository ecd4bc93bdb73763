"""Whether a call can go past PyTorch's dispatcher, and whether operators can take it at all."""

from __future__ import annotations

import torch
from torch import Tensor, is_grad_enabled
from torch._C import (
    _are_functorch_transforms_active,
    _get_tracing_state,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._autograd import _profiler_enabled
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from gcsa_ext.backends import native


def transformed() -> bool:
    """Whether torch.func (vmap, grad, jvp, ...) or forward-mode differentiation is at work.

    torch.library's operators know only plain backward differentiation and would fail there, or drop the
    tangent without a word; the definition in plain PyTorch takes every transform.
    """
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0


_ORDINARY = (Tensor, torch.nn.Parameter)


def goes_directly(*tensors: Tensor | None, differentiable: bool = False) -> bool:
    """Whether a call can go past PyTorch's dispatcher, whose way here takes as long as masking a small batch.

    It can where the dispatcher would only pass it on: ordinary tensors on the CPU (no subclass, negative
    view, inference or zero tensor), no gradient wanted (or, if `differentiable`, the call records one
    itself), and no compiler, transform, mode, trace or profiler that wants to see the call.
    """
    # Bound names, since each attribute looked up on the way costs a wait for memory when the caches are full
    # of spectrograms.
    if (
        is_compiling()
        or _are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or _len_torch_dispatch_stack() > 0
        or _len_torch_function_stack() > 0
        or _get_tracing_state() is not None
        or _profiler_enabled()
    ):
        return False
    if native.extension is None:  # nothing here is fast enough for the way to matter
        return False
    without_gradient = not differentiable and is_grad_enabled()
    return bool(native.extension.ordinary_tensors(tensors, _ORDINARY, without_gradient))
