"""Whether a call can go past PyTorch's dispatcher."""

from __future__ import annotations

from torch import Tensor, is_grad_enabled
from torch.compiler import is_compiling

from gcsa_ext.backends import native


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
