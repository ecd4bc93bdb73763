"""Transforms of torch.func and forward-mode differentiation, which the operators do not support."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether torch.func (vmap, grad, jvp, ...) or forward-mode differentiation is active.

    The operators have a formula for plain backward differentiation alone. Under a transform they would fail,
    or drop the tangent without an error, so callers compute with gcsa_ext/reference.py instead, which is
    always right. Both names below are private; the result is True if the first is missing.
    """
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return active is None or active() or getattr(forward_ad, "_current_level", 0) >= 0
