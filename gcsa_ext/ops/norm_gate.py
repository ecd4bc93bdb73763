"""Contract of norm_gate: schema, checks, shape rule, autograd formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gcsa_ext import reference
from gcsa_ext.backends import select
from gcsa_ext.backends.operands import NormGateArguments
from gcsa_ext.backends.reference import differentiate as differentiate_reference
from gcsa_ext.layout import memory_format
from gcsa_ext.ops import registration


def _check(a: NormGateArguments) -> None:
    u, z, weight, bias, mean, var, _ = a
    if u.dim() != 4 or u.shape != z.shape:
        raise ValueError(
            "norm_gate: expected u and z of one shape (N, C, H, W), "
            f"got {tuple(u.shape)} and {tuple(z.shape)}"
        )
    if not u.is_floating_point() or u.dtype != z.dtype or u.device != z.device:
        raise TypeError(
            "norm_gate: expected u and z of one floating dtype and device, "
            f"got {u.dtype}, {u.device} and {z.dtype}, {z.device}"
        )
    C = u.shape[1]
    for name, vector in (("weight", weight), ("bias", bias), ("mean", mean), ("var", var)):
        if vector is None:
            continue
        if vector.shape != (C,):
            raise ValueError(
                f"norm_gate: expected {name} of shape ({C},) for u {tuple(u.shape)}, "
                f"got {tuple(vector.shape)}"
            )
        if not vector.is_floating_point() or vector.device != u.device:
            raise TypeError(
                f"norm_gate: expected {name} of a floating dtype on {u.device}, "
                f"got {vector.dtype}, {vector.device}"
            )
    if (mean is None) != (var is None):
        raise ValueError("norm_gate: expected both mean and var, or neither")


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = NormGateArguments(*args)
    _check(a)
    out, used_mean, used_var = select("norm_gate", a.z)(*a)
    return out, used_mean, used_var


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = NormGateArguments(*args)
    _check(a)
    out = torch.empty_like(a.z, memory_format=memory_format(a.z))
    statistics = a.u.new_empty(a.u.shape[1], dtype=reference.accumulator_dtype(a.u.dtype))
    return out, statistics, torch.empty_like(statistics)


def _backward(grad_out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    a = NormGateArguments(*args[:7])
    _check(a)
    registration.check_gradient("norm_gate", grad_out, a.z.shape, a.z)
    grads = select("norm_gate_backward", a.z)(grad_out, *args)
    return tuple(a.u.new_empty(0) if grad is None else grad for grad in grads)


def _backward_fake(grad_out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    a, (_batch_statistics, *need) = NormGateArguments(*args[:7]), args[7:]
    layout = memory_format(a.z)
    layouts = (layout, layout, torch.contiguous_format, torch.contiguous_format)
    return tuple(
        a.u.new_empty(0) if tensor is None or not needed else torch.empty_like(tensor, memory_format=layout)
        for tensor, needed, layout in zip(a[:4], need, layouts, strict=True)
    )


registration.define(
    "norm_gate(Tensor u, Tensor z, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, float eps) "
    "-> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
registration.define(
    "norm_gate_backward(Tensor grad_out, Tensor u, Tensor z, Tensor? weight, Tensor? bias, Tensor mean, "
    "Tensor var, float eps, bool batch_statistics, bool need_u, "
    "bool need_z, bool need_weight, bool need_bias) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    u, z, weight, bias, mean, _, ctx.eps = inputs
    # The copies of the statistics that the operator returns: running ones may change before the backward
    # pass.
    _, used_mean, used_var = output
    ctx.batch_statistics = mean is None
    ctx.mark_non_differentiable(used_mean, used_var)
    ctx.save_for_backward(u, z, weight, bias, used_mean, used_var)


def _autograd(ctx: Any, grad_out: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    u, z, weight, bias, mean, var = ctx.saved_tensors
    needs = ctx.needs_input_grad[:4]
    if any(ctx.needs_input_grad[4:6]):
        raise RuntimeError("norm_gate: mean and var are constants and have no gradient; detach them")
    # With create_graph=True the gradient must itself be differentiable. That of the reference is, to any
    # order.
    if torch.is_grad_enabled():
        statistics = (None, None) if ctx.batch_statistics else (mean, var)
        inputs = (u, z, weight, bias, *statistics, ctx.eps)
        return differentiate_reference(reference.norm_gate, inputs, (*needs, False, False, False), grad_out)
    grads = torch.ops.gcsa_ext.norm_gate_backward(
        grad_out, u, z, weight, bias, mean, var, ctx.eps, ctx.batch_statistics, *needs
    )
    return *(grad if need else None for grad, need in zip(grads, needs, strict=False)), None, None, None


torch.library.register_autograd(
    "gcsa_ext::norm_gate", _autograd, setup_context=_setup_context, lib=registration.LIBRARY
)
