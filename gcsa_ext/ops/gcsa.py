"""Contract of gcsa, the whole attention as one operator: schema, checks, shape rule, autograd formula.

It is for maps with at least one position, kernels of 3 to 11 and the backends that have it; everything else is
computed by the operators it is made of (see nn/attention.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gcsa_ext import reference
from gcsa_ext.backends import cpu, select
from gcsa_ext.layout import memory_format
from gcsa_ext.ops import registration

_INPUTS = (
    "Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, "
    "Tensor conv1_weight, Tensor? conv1_bias, Tensor conv2_weight, Tensor? conv2_bias, "
    "Tensor? norm1_weight, Tensor? norm1_bias, Tensor? norm2_weight, Tensor? norm2_bias"
)
_SETTINGS = "float eps1, float eps2, int groups, bool sigmoid"
_DIFFERENTIABLE = 13


class Arguments(NamedTuple):
    """Of the operator, in the order of its schema; shapes as in reference.gcsa."""

    x: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    conv1_weight: Tensor
    conv1_bias: Tensor | None
    conv2_weight: Tensor
    conv2_bias: Tensor | None
    norm1_weight: Tensor | None
    norm1_bias: Tensor | None
    norm2_weight: Tensor | None
    norm2_bias: Tensor | None
    mean1: Tensor | None
    var1: Tensor | None
    mean2: Tensor | None
    var2: Tensor | None
    eps1: float
    eps2: float
    groups: int
    sigmoid: bool
    save: bool
    """Keep what the backward pass needs."""

    @property
    def gate(self) -> tuple[Tensor, ...]:
        return self.w1, self.b1, self.w2, self.b2

    @property
    def convolutions(self) -> tuple[Tensor | None, ...]:
        return self.conv1_weight, self.conv1_bias, self.conv2_weight, self.conv2_bias

    @property
    def norms(self) -> tuple[Tensor | None, ...]:
        return self.norm1_weight, self.norm1_bias, self.norm2_weight, self.norm2_bias

    @property
    def statistics(self) -> tuple[Tensor | None, ...]:
        return self.mean1, self.var1, self.mean2, self.var2


def _check(a: Arguments) -> None:
    x = a.x
    if x.dim() != 4 or x.numel() == 0:
        raise ValueError(f"gcsa: expected x of shape (N, C, H, W), not empty, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"gcsa: expected x of a floating dtype, got {x.dtype}")
    C, h, k = x.shape[1], a.w1.shape[0], a.conv1_weight.shape[-1]
    if k % 2 == 0 or not 3 <= k <= 11:
        raise ValueError(f"gcsa: expected an odd kernel size from 3 to 11, got {k}")
    if h < 1 or a.groups < 1 or C % a.groups:
        raise ValueError(
            f"gcsa: expected h >= 1 and groups that divide C = {C}, got h = {h}, groups = {a.groups}"
        )
    hidden, full = (h,), (C,)
    shapes = ((h, C), hidden, (C, h), full, (h, C, k, k), hidden, (C, h, k, k), full)
    for name, shape in zip(
        Arguments._fields[1:17],
        (*shapes, hidden, hidden, full, full, hidden, hidden, full, full),
        strict=True,
    ):
        tensor = getattr(a, name)
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(
                f"gcsa: expected {name} of shape {shape} for x {tuple(x.shape)}, got {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point() or tensor.device != x.device:
            raise TypeError(
                f"gcsa: expected {name} of a floating dtype on {x.device}, got {tensor.dtype}, {tensor.device}"
            )
    for number in "12":
        if (getattr(a, f"mean{number}") is None) != (getattr(a, f"var{number}") is None):
            raise ValueError(f"gcsa: expected both mean{number} and var{number}, or neither")


def _definition(*args: Any) -> Tensor:
    """reference.gcsa with the operator's order of arguments."""
    a = Arguments(*args, save=False)
    first, second = a.convolutions[:2] + a.norms[:2], a.convolutions[2:] + a.norms[2:]
    return reference.gcsa(
        a.x,
        *a.gate,
        *first,
        *second,
        *a.statistics,
        a.eps1,
        a.eps2,
        a.groups,
        a.sigmoid,  # type: ignore[arg-type]
    )


def _forward(*args: Any) -> tuple[Tensor, ...]:
    a = Arguments(*args)
    _check(a)
    if select("gcsa", a.x.device, a.x.dtype) == "cpu":
        return cpu.gcsa(
            a.x, a.gate, a.convolutions, a.norms, a.statistics, (a.eps1, a.eps2), a.groups, a.sigmoid, a.save
        )
    # The statistics of a batch are those of intermediate values: the definition, in two steps.
    dtype = reference.accumulator_dtype(a.x.dtype)
    z = reference.channel_gate(a.x, *(w.to(a.x.dtype) for w in a.gate), a.groups, a.sigmoid)
    used: list[Tensor] = []
    u = z
    for i, (mean, var) in enumerate((a.statistics[:2], a.statistics[2:])):
        weight, bias = (None if v is None else v.to(u.dtype) for v in a.convolutions[2 * i : 2 * i + 2])
        u = reference.conv2d_same(u, weight, bias)  # type: ignore[arg-type]
        if mean is None or var is None:
            var, mean = torch.var_mean(u.to(dtype), (0, 2, 3), correction=0)
        used += [mean.to(dtype, copy=True), var.to(dtype, copy=True)]
        scale, shift = a.norms[2 * i : 2 * i + 2]
        if i == 0:
            vectors = (None if v is None else v.to(dtype) for v in (*used, scale, shift))
            u = torch.relu(torch.nn.functional.batch_norm(u, *vectors, eps=a.eps1))  # type: ignore[arg-type]
        else:
            out = reference.norm_gate(u, z, scale, shift, *used[2:], a.eps2)
    u1, u2 = _saved(a)
    return out.contiguous(memory_format=memory_format(a.x)), u1, u2, *used


def _saved(a: Arguments) -> tuple[Tensor, Tensor]:
    channels = (a.w1.shape[0], a.x.shape[1])
    u1, u2 = (a.x.new_empty(cpu.saved_shape(c, a.x) if a.save else 0) for c in channels)
    return u1, u2


def _forward_fake(*args: Any) -> tuple[Tensor, ...]:
    a = Arguments(*args)
    _check(a)
    h, C = a.w1.shape[0], a.x.shape[1]
    dtype = reference.accumulator_dtype(a.x.dtype)
    used = (a.x.new_empty(channels, dtype=dtype) for channels in (h, h, C, C))
    return torch.empty_like(a.x, memory_format=memory_format(a.x)), *_saved(a), *used


class _Saved(NamedTuple):
    """Further arguments of the backward pass."""

    grad_out: Tensor
    u1: Tensor
    u2: Tensor
    batch_statistics1: bool
    batch_statistics2: bool
    need: list[bool]


def _backward(*args: Any) -> tuple[Tensor, ...]:
    s = _Saved(*args[:6])
    a = Arguments(*args[6:], save=True)
    batch = (s.batch_statistics1, s.batch_statistics2)
    grads: list[Tensor | None]
    if select("gcsa", a.x.device, a.x.dtype) == "cpu":
        grads = cpu.gcsa_backward(
            s.grad_out,
            a.x,
            a.gate,
            a.convolutions,
            a.norms,
            a.statistics,  # type: ignore[arg-type]
            (s.u1, s.u2),
            batch,
            (a.eps1, a.eps2),
            a.groups,
            a.sigmoid,
            s.need,
        )
    else:
        grads = list(_differentiate(a, batch, s.need, s.grad_out))
    return tuple(
        a.x.new_empty(0) if grad is None or not need else grad
        for grad, need in zip(grads, s.need, strict=True)
    )


def _differentiate(
    a: Arguments, batch: tuple[bool, bool], need: list[bool], grad_out: Tensor
) -> tuple[Tensor | None, ...]:
    statistics = [None if batch[i // 2] else value for i, value in enumerate(a.statistics)]
    inputs = (*a[:_DIFFERENTIABLE], *statistics, a.eps1, a.eps2, a.groups, a.sigmoid)
    needs = (*need, *(len(inputs) - _DIFFERENTIABLE) * (False,))
    return registration.differentiate(_definition, inputs, needs, grad_out)[:_DIFFERENTIABLE]


def _backward_fake(*args: Any) -> tuple[Tensor, ...]:
    s = _Saved(*args[:6])
    a = Arguments(*args[6:], save=True)
    return tuple(
        torch.empty_like(t, memory_format=memory_format(a.x) if i == 0 else torch.contiguous_format)
        if need and t is not None
        else a.x.new_empty(0)
        for i, (t, need) in enumerate(zip(a[:_DIFFERENTIABLE], s.need, strict=True))
    )


registration.define(
    f"gcsa({_INPUTS}, Tensor? mean1, Tensor? var1, Tensor? mean2, Tensor? var2, {_SETTINGS}, bool save) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
registration.define(
    "gcsa_backward(Tensor grad_out, Tensor u1, Tensor u2, bool batch_statistics1, bool batch_statistics2, "
    f"bool[] need, {_INPUTS}, Tensor mean1, Tensor var1, Tensor mean2, Tensor var2, {_SETTINGS}) -> ("
    + ", ".join(_DIFFERENTIABLE * ["Tensor"])
    + ")",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    a = Arguments(*inputs)
    _, u1, u2, *used = output
    ctx.batch = a.mean1 is None, a.mean2 is None
    ctx.settings = inputs[_DIFFERENTIABLE + 4 : -1]
    ctx.saved = a.save
    ctx.mark_non_differentiable(u1, u2, *used)
    ctx.save_for_backward(*inputs[:_DIFFERENTIABLE], u1, u2, *used)


def _autograd(ctx: Any, grad_out: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    *inputs, u1, u2, mean1, var1, mean2, var2 = ctx.saved_tensors
    if any(ctx.needs_input_grad[_DIFFERENTIABLE : _DIFFERENTIABLE + 4]):
        raise RuntimeError("gcsa: mean and var are constants and have no gradient; detach them")
    need = list(ctx.needs_input_grad[:_DIFFERENTIABLE])
    used = (mean1, var1, mean2, var2)
    grads: tuple[Tensor | None, ...]
    # With create_graph=True the gradient must itself be differentiable: the definition's is, to any order.
    if torch.is_grad_enabled() or not ctx.saved:
        a = Arguments(*inputs, *used, *ctx.settings, save=True)
        grads = _differentiate(a, ctx.batch, need, grad_out)
    else:
        grads = torch.ops.gcsa_ext.gcsa_backward(
            grad_out, u1, u2, *ctx.batch, need, *inputs, *used, *ctx.settings
        )
    return *(grad if wanted else None for grad, wanted in zip(grads, need, strict=True)), *9 * (None,)


torch.library.register_autograd(
    "gcsa_ext::gcsa", _autograd, setup_context=_setup_context, lib=registration.LIBRARY
)
