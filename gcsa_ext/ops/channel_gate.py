"""Contract of channel_gate: schema, checks, shape rule, autograd formula, autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gcsa_ext import reference
from gcsa_ext.backends import select
from gcsa_ext.backends.operands import ChannelGateArguments
from gcsa_ext.backends.reference import differentiate as differentiate_reference
from gcsa_ext.layout import memory_format
from gcsa_ext.ops import registration


def _check(a: ChannelGateArguments) -> None:
    x, w1, b1, w2, b2, groups, _ = a
    if x.dim() != 4:
        raise ValueError(f"channel_gate: expected x of shape (N, C, H, W), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"channel_gate: expected x of a floating dtype, got {x.dtype}")
    C = x.shape[1]
    if w1.dim() != 2 or w1.shape[1] != C or w1.shape[0] < 1:
        raise ValueError(
            f"channel_gate: expected w1 of shape (h, C) with C = {C} as in x {tuple(x.shape)} and h >= 1, "
            f"got {tuple(w1.shape)}"
        )
    h = w1.shape[0]
    for name, tensor, shape in (("b1", b1, (h,)), ("w2", w2, (C, h)), ("b2", b2, (C,))):
        if tensor.shape != shape:
            raise ValueError(f"channel_gate: expected {name} of shape {shape}, got {tuple(tensor.shape)}")
    if groups < 1 or C % groups:
        raise ValueError(f"channel_gate: expected groups that divide C = {C}, got groups = {groups}")
    for name, tensor in (("w1", w1), ("b1", b1), ("w2", w2), ("b2", b2)):
        if tensor.dtype != x.dtype or tensor.device != x.device:
            raise TypeError(
                f"channel_gate: expected {name} of the dtype and device of x ({x.dtype}, {x.device}), "
                f"got {tensor.dtype}, {tensor.device}"
            )


def _forward(*args: Any) -> Tensor:
    a = ChannelGateArguments(*args)
    _check(a)
    out: Tensor = select("channel_gate", a.x)(*a)
    return out


def _forward_fake(*args: Any) -> Tensor:
    a = ChannelGateArguments(*args)
    _check(a)
    return torch.empty_like(a.x, memory_format=memory_format(a.x))


def _backward(grad_out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    a = ChannelGateArguments(*args[:7])
    _check(a)
    registration.check_gradient("channel_gate", grad_out, a.x.shape, a.x)
    grads = select("channel_gate_backward", a.x)(grad_out, *args)
    return tuple(a.x.new_empty(0) if grad is None else grad for grad in grads)


def _backward_fake(grad_out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    x, *weights, _groups, _sigmoid, need_x, need_weights = args
    grad_x = torch.empty_like(x, memory_format=memory_format(x)) if need_x else x.new_empty(0)
    return grad_x, *(w.new_empty(w.shape if need_weights else 0) for w in weights)


registration.define(
    "channel_gate(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, int groups, bool sigmoid=True) "
    "-> Tensor",
    _forward,
    _forward_fake,
)
registration.define(
    "channel_gate_backward(Tensor grad_out, Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, "
    "int groups, bool sigmoid, bool need_x, bool need_weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.groups, ctx.sigmoid = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, *weights = ctx.saved_tensors
    needs = ctx.needs_input_grad[:5]
    # With create_graph=True the gradient must itself be differentiable. That of the reference is, to any
    # order.
    if torch.is_grad_enabled():
        inputs = (x, *weights, ctx.groups, ctx.sigmoid)
        return differentiate_reference(reference.channel_gate, inputs, (*needs, False, False), grad_out)
    grads = torch.ops.gcsa_ext.channel_gate_backward(
        grad_out, x, *weights, ctx.groups, ctx.sigmoid, needs[0], any(needs[1:])
    )
    return *(grad if need else None for grad, need in zip(grads, needs, strict=False)), None, None


torch.library.register_autograd(
    "gcsa_ext::channel_gate", _autograd, setup_context=_setup_context, lib=registration.LIBRARY
)
registration.cast_weights_in_autocast("channel_gate", torch.ops.gcsa_ext.channel_gate.default)
