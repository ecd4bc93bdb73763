"""Transforms of torch.func and forward-mode differentiation, which torch.library's operators do not take."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether torch.func (vmap, grad, jvp, ...) or forward-mode differentiation is active.

    The operators have a rule for plain backward differentiation alone: they would fail here, or drop the
    tangent without an error. The definition in plain PyTorch takes every transform, so True, which leaves a
    call to it, is right whenever torch does not say: both names below are private.
    """
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return active is None or active() or getattr(forward_ad, "_current_level", 0) >= 0
