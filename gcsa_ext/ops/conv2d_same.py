"""Contract of conv2d_same: schema, checks, shape rule, autograd formula, autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gcsa_ext import backends, reference
from gcsa_ext.backends.reference import differentiate as differentiate_reference
from gcsa_ext.layout import memory_format
from gcsa_ext.ops import registration


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.dim() != 4:
        raise ValueError(f"conv2d_same: expected x of shape (N, C, H, W), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"conv2d_same: expected x of a floating dtype, got {x.dtype}")
    C = x.shape[1]
    shape = tuple(weight.shape)
    if len(shape) != 4 or shape[1] != C or shape[2] != shape[3] or shape[2] % 2 == 0:
        raise ValueError(
            f"conv2d_same: expected weight of shape (O, C, k, k) with odd k and C = {C} as in x "
            f"{tuple(x.shape)}, got {shape}"
        )
    if bias is not None and bias.shape != shape[:1]:
        raise ValueError(f"conv2d_same: expected bias of shape ({shape[0]},), got {tuple(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype != x.dtype or tensor.device != x.device):
            raise TypeError(
                f"conv2d_same: expected {name} of the dtype and device of x ({x.dtype}, {x.device}), "
                f"got {tensor.dtype}, {tensor.device}"
            )


def _select(operator: str, x: Tensor, weight: Tensor) -> Callable[..., Any]:
    """The function of the selected backend, or torch's convolution for kernel sizes that no backend has."""
    if weight.numel() > 0 and 3 <= weight.shape[-1] <= 11:
        return backends.select(operator, x)
    return backends.reference.function(operator)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    _check(x, weight, bias)
    if x.numel() == 0:  # torch's convolution refuses maps without positions
        return _forward_fake(x, weight, bias)
    out: Tensor = _select("conv2d_same", x, weight)(x, weight, bias)
    return out


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    _check(x, weight, bias)
    N, _, H, W = x.shape
    return torch.empty(
        (N, weight.shape[0], H, W), dtype=x.dtype, device=x.device, memory_format=memory_format(x)
    )


def _backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    _check(x, weight, None)
    registration.check_gradient("conv2d_same", grad_out, (x.shape[0], weight.shape[0], *x.shape[2:]), x)
    grads: tuple[Tensor | None, ...]
    if x.numel() == 0:
        grads = (torch.empty_like(x), torch.zeros_like(weight))
    else:
        differentiate = _select("conv2d_same_backward", x, weight)
        grads = differentiate(grad_out, x, weight, need_x, need_weight)
    needs, layouts = (need_x, need_weight), (memory_format(x), torch.contiguous_format)
    grad_x, grad_weight = (
        x.new_empty(0) if grad is None or not need else grad.contiguous(memory_format=layout)
        for grad, need, layout in zip(grads, needs, layouts, strict=True)
    )
    return grad_x, grad_weight


def _backward_fake(
    grad_out: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(x, memory_format=memory_format(x)) if need_x else x.new_empty(0),
        weight.new_empty(weight.shape) if need_weight else weight.new_empty(0),
    )


registration.define("conv2d_same(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _forward, _forward_fake)
registration.define(
    "conv2d_same_backward(Tensor grad_out, Tensor x, Tensor weight, bool need_x, bool need_weight) "
    "-> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight, bias)


def _autograd(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    need_x, need_weight, need_bias = ctx.needs_input_grad
    # With create_graph=True the gradient must itself be differentiable. That of the reference is, to any
    # order.
    if torch.is_grad_enabled():
        return differentiate_reference(
            reference.conv2d_same, (x, weight, bias), (need_x, need_weight, need_bias), grad_out
        )
    grad_x = grad_weight = None
    if need_x or need_weight:
        grad_x, grad_weight = torch.ops.gcsa_ext.conv2d_same_backward(
            grad_out, x, weight, need_x, need_weight
        )
    return (
        grad_x if need_x else None,
        grad_weight if need_weight else None,
        grad_out.sum((0, 2, 3)) if need_bias else None,
    )


torch.library.register_autograd(
    "gcsa_ext::conv2d_same", _autograd, setup_context=_setup_context, lib=registration.LIBRARY
)
registration.cast_in_autocast("conv2d_same", torch.ops.gcsa_ext.conv2d_same.default)
