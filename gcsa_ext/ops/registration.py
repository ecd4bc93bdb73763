"""What the contracts of all operators share: the torch.library, registration, the check of a gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("gcsa_ext", "DEF")
"""The namespace torch.ops.gcsa_ext."""


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define an operator.

    Args:
        schema: the operator's name and signature in torch's schema language.
        implementation: computes it on every device, by the backend that it selects.
        fake: the shape rule: checks the arguments and returns uninitialised results.
    """
    name = schema.split("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gcsa_ext::{name}", fake, lib=LIBRARY)


def check_gradient(name: str, grad_out: Tensor, shape: Sequence[int], x: Tensor) -> None:
    """Check, in a backward pass, that the gradient of the result has `shape`, and the dtype and device of x.

    Autograd does not notice when ``tensor.data = other`` or a hook on saved tensors changes a shape, and a
    kernel sees addresses only. For the same reason the backward pass repeats the forward pass's checks of the
    inputs.

    Raises:
        ValueError: the gradient does not fit.
    """
    if grad_out.shape != tuple(shape) or grad_out.dtype != x.dtype or grad_out.device != x.device:
        raise ValueError(
            f"{name}: expected the gradient of a result {tuple(shape)}, {x.dtype}, {x.device}, got "
            f"{tuple(grad_out.shape)}, {grad_out.dtype}, {grad_out.device}: was a tensor exchanged between "
            "both passes?"
        )


def cast_weights_in_autocast(name: str, operator: Callable[..., Any]) -> None:
    """Register for autocast: every floating tensor is cast to the dtype of the first, x.

    The result so keeps the dtype of x, as the plain module's product x * gate does for a float32 x.
    """
    _cast_in_autocast(name, operator, lambda device, x: x.dtype, lambda value: True)


def cast_in_autocast(name: str, operator: Callable[..., Any]) -> None:
    """Register for autocast: floating tensors but float64 are cast to autocast's dtype, as for torch's
    convolutions."""
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
    is_cast: Callable[[Tensor], bool],
) -> None:
    """Register for autocast: tensors for which `is_cast` holds are cast to `dtype_of(device type, x)`."""
    for key, device in (("AutocastCPU", "cpu"), ("AutocastCUDA", "cuda")):

        def kernel(x: Tensor, *args: Any, device: str = device) -> Any:
            dtype = dtype_of(device, x)
            cast = (
                value.to(dtype)
                if isinstance(value, Tensor) and value.is_floating_point() and is_cast(value)
                else value
                for value in (x, *args)
            )
            with torch.autocast(device, enabled=False):
                return operator(*cast)

        LIBRARY.impl(name, kernel, key)
