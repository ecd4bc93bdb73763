"""What all operators share: the torch.library they are defined in, and how rules are attached to one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("gcsa_ext", "DEF")


def define(
    schema: str, implementation: Callable[..., Any], fake: Callable[..., Any], tags: Sequence[torch.Tag] = ()
) -> None:
    """Define an operator with one implementation for every device (it picks the backend) and its shape
    rule."""
    name = schema.split("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, *tags))
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gcsa_ext::{name}", fake, lib=LIBRARY)


def check_gradient(name: str, grad_out: Tensor, shape: Sequence[int], x: Tensor) -> None:
    """Check, in a backward pass, that the gradient of the result fits what was saved.

    ``tensor.data = other`` and hooks on saved tensors change a shape without autograd's notice, and kernels
    know addresses only. Checked beside it are the saved tensors themselves, as in the forward pass.
    """
    if grad_out.shape != tuple(shape) or grad_out.dtype != x.dtype or grad_out.device != x.device:
        raise ValueError(
            f"{name}: expected the gradient of a result {tuple(shape)}, {x.dtype}, {x.device}, got "
            f"{tuple(grad_out.shape)}, {grad_out.dtype}, {grad_out.device}: was a tensor exchanged between "
            "both passes?"
        )


def cast_weights_in_autocast(name: str, operator: Callable[..., Any]) -> None:
    """Under autocast, cast the tensors behind the first to its dtype.

    The plain module's product x * gate keeps a float32 x at float32, so the result keeps the dtype of x.
    """
    for key in ("AutocastCPU", "AutocastCUDA"):
        exclude = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def kernel(x: Tensor, *args: Any, exclude: torch._C.DispatchKeySet = exclude) -> Any:
            weights = (
                value.to(x.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
                for value in args
            )
            with torch._C._ExcludeDispatchKeyGuard(exclude):
                return operator(x, *weights)

        LIBRARY.impl(name, kernel, key)


def cast_in_autocast(name: str, operator: Callable[..., Any]) -> None:
    """Under autocast, cast every floating tensor to its dtype, as torch does for its own convolutions."""
    for key, device in (("AutocastCPU", "cpu"), ("AutocastCUDA", "cuda")):
        exclude = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def kernel(*args: Any, exclude: Any = exclude, device: str = device) -> Any:
            dtype = torch.get_autocast_dtype(device)
            cast = (
                value.to(dtype)
                if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
                else value
                for value in args
            )
            with torch._C._ExcludeDispatchKeyGuard(exclude):
                return operator(*cast)

        LIBRARY.impl(name, kernel, key)
