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
    _cast_in_autocast(name, operator, lambda device, x: x.dtype, lambda value: True)


def cast_in_autocast(name: str, operator: Callable[..., Any]) -> None:
    """Under autocast, cast every floating tensor to its dtype, as torch does for its own convolutions."""
    _cast_in_autocast(
        name,
        operator,
        lambda device, x: torch.get_autocast_dtype(device),
        lambda value: value.dtype != torch.float64,
    )


def _cast_in_autocast(
    name: str,
    operator: Callable[..., Any],
    dtype_of: Callable[[str, Tensor], torch.dtype],
    takes: Callable[[Tensor], bool],
) -> None:
    for key, device in (("AutocastCPU", "cpu"), ("AutocastCUDA", "cuda")):

        def kernel(x: Tensor, *args: Any, device: str = device) -> Any:
            dtype = dtype_of(device, x)
            cast = (
                value.to(dtype)
                if isinstance(value, Tensor) and value.is_floating_point() and takes(value)
                else value
                for value in (x, *args)
            )
            with torch.autocast(device, enabled=False):
                return operator(*cast)

        LIBRARY.impl(name, kernel, key)
