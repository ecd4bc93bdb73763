"""Whether a call can go past PyTorch's dispatcher, and whether operators can take it at all."""

from __future__ import annotations

from torch import Tensor, is_grad_enabled
from torch._C import _are_functorch_transforms_active
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from gcsa_ext.backends import native


def transformed() -> bool:
    """Whether torch.func (vmap, grad, jvp, ...) or forward-mode differentiation is at work.

    torch.library's operators know only plain backward differentiation and would fail there, or drop the
    tangent without a word; the definition in plain PyTorch takes every transform.
    """
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0


def goes_directly(*tensors: Tensor | None) -> bool:
    """Whether a call can go past PyTorch's dispatcher, whose way here takes as long as masking a small batch.

    It can where the dispatcher would only pass it on: ordinary tensors on the CPU (no subclass, negative
    view, inference or zero tensor), no gradient wanted, and no compiler, transform, mode, trace or profiler
    that wants to see the call.
    """
    # Without the compiled module nothing here is fast enough for the way to matter.
    return (
        not is_compiling()
        and native.extension is not None
        and bool(native.extension.go_directly(tensors, is_grad_enabled()))
    )
