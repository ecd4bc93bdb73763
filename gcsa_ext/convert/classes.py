"""Classes of attention modules that are fused: every object that is made of them, or found in use."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gcsa_ext.convert.fused import fuse, has_other_forward
from gcsa_ext.convert.proof import is_proving
from gcsa_ext.convert.recognition import NotAttentionError
from gcsa_ext.transforms import needs_plain_torch

_left: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Objects of fused classes that are not to be fused: they were refused, or restored."""


def leave(module: nn.Module) -> None:
    """Keep an object of a fused class from being fused."""
    _left.add(module)


def is_fused(kind: type[nn.Module]) -> bool:
    """Whether the class itself is fused."""
    return hasattr(kind.__dict__.get("forward"), "replaced")


def _fuse_object(module: nn.Module, warn: bool) -> bool:
    """Fuse an object unless that failed before; whether it is fused now.

    With `warn` an object that is refused is left for good, with a warning.
    """
    if module in _left or is_proving():  # a proof runs copies of objects
        return False
    try:
        fuse(module)
    except NotAttentionError as difference:
        if warn:
            leave(module)
            kind = type(module).__name__
            warnings.warn(f"replace_attention leaves a {kind} alone: {difference}", stacklevel=4)
        return False
    return True


def fuse_class(kind: type[nn.Module]) -> bool:
    """Fuse every object of a class when it is made, or else in its first forward pass.

    Objects of subclasses with another forward pass are left alone.

    Returns:
        False if the class is fused already.
    """
    if is_fused(kind):
        return False
    init: Callable[..., None] = kind.__init__
    forward: Callable[..., Any] = kind.forward

    @functools.wraps(init)
    def fused_init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if type(self) is kind:  # an object of a subclass may not be complete yet
            _fuse_object(self, warn=False)  # nor may one with lazy layers

    @functools.wraps(forward)
    def fused_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        same = getattr(type(self).forward, "replaced", None) is forward
        if (
            same
            and not has_other_forward(self)
            and not torch.compiler.is_compiling()
            and not needs_plain_torch()
            and all(isinstance(arg, Tensor) for arg in args)  # none of torch.fx's proxies
            and _fuse_object(self, warn=True)
        ):
            return self.forward(*args, **kwargs)
        return forward(self, *args, **kwargs)

    # What the class itself had of the two; None for an inherited method.
    fused_init.replaced = kind.__dict__.get("__init__")  # type: ignore[attr-defined]
    fused_forward.inherited = "forward" not in kind.__dict__  # type: ignore[attr-defined]
    fused_forward.replaced = forward  # type: ignore[attr-defined]
    kind.__init__ = fused_init  # type: ignore[method-assign]
    kind.forward = fused_forward
    return True


def restore_class(kind: type[nn.Module]) -> bool:
    """Undo `fuse_class`; objects that are fused stay so. False if the class was not fused."""
    if not is_fused(kind):
        return False
    init, forward = kind.__dict__["__init__"], kind.__dict__["forward"]
    if init.replaced is None:
        del kind.__init__
    else:
        kind.__init__ = init.replaced  # type: ignore[method-assign]
    if forward.inherited:
        del kind.forward
    else:
        kind.forward = forward.replaced
    return True
