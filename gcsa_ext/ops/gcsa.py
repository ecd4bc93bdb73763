"""Contract of gcsa, the whole attention as one operator: schema, checks, shape rule, autograd formula.

The operator takes maps with at least one element, and odd kernel sizes up to 11. nn/attention.py computes
every other attention layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from gcsa_ext import backends, reference
from gcsa_ext.backends.gpu import capture
from gcsa_ext.backends.operands import DIFFERENTIABLE, Arguments
from gcsa_ext.layout import memory_format
from gcsa_ext.ops import registration

__all__ = ["Arguments"]

_INPUTS = (
    "Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, "
    "Tensor conv1_weight, Tensor? conv1_bias, Tensor conv2_weight, Tensor? conv2_bias, "
    "Tensor? norm1_weight, Tensor? norm1_bias, Tensor? norm2_weight, Tensor? norm2_bias"
)
_SETTINGS = (
    "float eps1, float eps2, int groups, bool sigmoid, bool mixed=False, "
    "int gate_groups=1, bool gate_sigmoid=True, bool replicate=False"
)

_TENSORS = Arguments._fields.index("eps1")


def _check(a: Arguments) -> None:
    x = a.x
    if x.dim() != 4 or x.numel() == 0:
        raise ValueError(f"gcsa: expected x of shape (N, C, H, W), not empty, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"gcsa: expected x of a floating dtype, got {x.dtype}")
    C, h, m, device = x.shape[1], a.w1.shape[0], a.hidden, x.device
    if h < 1 or m < 1 or a.groups < 1 or C % a.groups or a.gate_groups < 1 or C % a.gate_groups:
        raise ValueError(
            f"gcsa: expected hidden channels, and groups and gate_groups that divide C = {C}, got h = {h}, "
            f"m = {m}, groups = {a.groups}, gate_groups = {a.gate_groups}"
        )
    taps1, taps2 = _taps(a.conv1_weight, "conv1_weight", C, m), _taps(a.conv2_weight, "conv2_weight", m, C)
    layers = ((h, C), (h,), (C, h), (C,), taps1, (m,), taps2, (C,))
    shapes = (*layers, (m,), (m,), (C,), (C,), (m,), (m,), (C,), (C,))
    tensors = cast("tuple[Tensor | None, ...]", a[1:_TENSORS])
    for i, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True), start=1):
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(
                f"gcsa: expected {a._fields[i]} of shape {shape} for x {tuple(x.shape)}, "
                f"got {tuple(tensor.shape)}"
            )
        if tensor.device != device or not tensor.is_floating_point():
            raise TypeError(
                f"gcsa: expected {a._fields[i]} of a floating dtype on {device}, "
                f"got {tensor.dtype}, {tensor.device}"
            )
    for number, mean, var in ((1, a.mean1, a.var1), (2, a.mean2, a.var2)):
        if (mean is None) != (var is None):
            raise ValueError(f"gcsa: expected both mean{number} and var{number}, or neither")


def _taps(weight: Tensor, name: str, inputs: int, outputs: int) -> tuple[int, ...]:
    """The shape that a convolution's weight must have: that of its groups and kernel size, if these fit."""
    shape = tuple(weight.shape)
    k, per_group = shape[-1], shape[1] if len(shape) == 4 else 0
    if k % 2 == 0 or not 1 <= k <= 11:
        raise ValueError(f"gcsa: expected {name} with an odd kernel size up to 11, got {shape}")
    if per_group < 1 or inputs % per_group or outputs % (inputs // per_group):
        raise ValueError(
            f"gcsa: expected {name} (outputs, inputs / groups, k, k) of groups that divide {inputs} inputs "
            f"and {outputs} outputs, got {shape}"
        )
    return outputs, per_group, k, k


def _forward(*args: Any) -> tuple[Tensor, ...]:
    a = Arguments(*args)
    _check(a)
    compute = backends.select_gcsa("gcsa", a)
    if compute is backends.reference.gcsa:
        _reference_has_run.add((a.x.device, a.x.dtype))
    results: tuple[Tensor, ...] = compute(a)
    return results


def _inference(*args: Any) -> Tensor:
    a = Arguments(*args)
    _check(a)
    out: Tensor = backends.select_gcsa("gcsa_inference", a)(a)
    return out


def _inference_fake(*args: Any) -> Tensor:
    a = Arguments(*args)
    _check(a)
    return torch.empty_like(a.x, memory_format=memory_format(a.x))


def _saved_shapes(a: Arguments) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes in which the backend saves the convolutions' outputs."""
    saved_shape = backends.select_gcsa("saved_shape", a, warn=False)
    return saved_shape(a.hidden, a.x), saved_shape(a.x.shape[1], a.x)


def _forward_fake(*args: Any) -> tuple[Tensor, ...]:
    a = Arguments(*args)
    m, C = a.hidden, a.x.shape[1]
    dtype = reference.accumulator_dtype(a.x.dtype)
    statistics = (a.x.new_empty(channels, dtype=dtype) for channels in (m, m, C, C))
    return _inference_fake(*args), *map(a.x.new_empty, _saved_shapes(a)), *statistics


_reference_has_run: set[tuple[torch.device, torch.dtype]] = set()
"""The devices and dtypes for which the reference has computed a forward pass in this process."""


def _saved_by_reference(u1: Tensor) -> bool:
    """Whether the reference may have run the forward pass that saved u1.

    Reading u1 on a GPU waits for the GPU, so it is read only if the reference has run at all. While a CUDA
    graph is captured it cannot be read.
    """
    if (u1.device, u1.dtype) not in _reference_has_run:
        return False
    return capture.is_capturing(u1) or bool(u1.flatten()[0].isnan())


def _backward(
    grad_out: Tensor,
    u1: Tensor,
    u2: Tensor,
    batch_statistics1: bool,
    batch_statistics2: bool,
    need: Sequence[bool],
    *args: Any,
) -> tuple[Tensor, ...]:
    a = Arguments(*args)
    _check(a)
    registration.check_gradient("gcsa", grad_out, a.x.shape, a.x)
    differentiate = backends.select_gcsa("gcsa_backward", a)
    # Another backend may have run the forward pass and saved u1 and u2 in its own layout, which this backend
    # cannot read. The reference reads neither, and saves NaN.
    saved = tuple((tuple(u.shape), u.dtype, u.device) for u in (u1, u2))
    fits = saved == tuple((shape, a.x.dtype, a.x.device) for shape in _saved_shapes(a))
    if not fits or (differentiate is not backends.reference.gcsa_backward and _saved_by_reference(u1)):
        differentiate = backends.reference.gcsa_backward
    grads = differentiate(grad_out, a, u1, u2, (batch_statistics1, batch_statistics2), need)
    return tuple(
        a.x.new_empty(0) if grad is None or not needed else grad
        for grad, needed in zip(grads, need, strict=True)
    )


def _backward_fake(
    grad_out: Tensor,
    u1: Tensor,
    u2: Tensor,
    batch_statistics1: bool,
    batch_statistics2: bool,
    need: list[bool],
    *args: Any,
) -> tuple[Tensor, ...]:
    def gradient(tensor: Tensor | None, needed: bool) -> Tensor:
        if tensor is None or not needed:
            return args[0].new_empty(0)  # type: ignore[no-any-return]
        layout = memory_format(tensor) if tensor.dim() == 4 else torch.contiguous_format
        return torch.empty_like(tensor, memory_format=layout)

    return tuple(map(gradient, Arguments(*args).differentiable, need))


_ALL_INPUTS = f"{_INPUTS}, Tensor? mean1, Tensor? var1, Tensor? mean2, Tensor? var2, {_SETTINGS}"
_SEVEN_TENSORS = "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"

# Both compute the same. gcsa has a gradient; gcsa_forward is what its autograd formula calls.
for _name in ("gcsa", "gcsa_forward"):
    registration.define(f"{_name}({_ALL_INPUTS}) -> {_SEVEN_TENSORS}", _forward, _forward_fake)
registration.define(
    f"gcsa_inference({_INPUTS}, Tensor mean1, Tensor var1, Tensor mean2, Tensor var2, {_SETTINGS}) -> Tensor",
    _inference,
    _inference_fake,
)
registration.define(
    "gcsa_backward(Tensor grad_out, Tensor u1, Tensor u2, bool batch_statistics1, bool batch_statistics2, "
    f"bool[] need, {_INPUTS}, Tensor mean1, Tensor var1, Tensor mean2, Tensor var2, {_SETTINGS}) -> ("
    + ", ".join(DIFFERENTIABLE * ["Tensor"])
    + ")",
    _backward,
    _backward_fake,
)


class _Gcsa(torch.autograd.Function):
    """gcsa_forward with its gradient, gcsa_backward.

    It is written out since torch.library.register_autograd looks up the schema of every argument in every
    call, which for 22 arguments takes longer than a small map.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        a = Arguments(*args)
        out, *others = torch.ops.gcsa_ext.gcsa_forward.default(*a)
        ctx.batch = a.mean1 is None, a.mean2 is None
        ctx.settings = a[_TENSORS:]
        ctx.mark_non_differentiable(*others)
        ctx.set_materialize_grads(False)  # no zeros, as large as u1 and u2, for what has no gradient
        ctx.save_for_backward(*a.differentiable, *others)
        return out, *others

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad_out is None:
            return len(ctx.needs_input_grad) * (None,)
        need, constants = ctx.needs_input_grad[:DIFFERENTIABLE], ctx.needs_input_grad[DIFFERENTIABLE:]
        if any(constants):
            raise RuntimeError("gcsa: mean and var are constants and have no gradient; detach them")
        *inputs, u1, u2, mean1, var1, mean2, var2 = ctx.saved_tensors
        a = Arguments(*(*inputs, mean1, var1, mean2, var2, *ctx.settings))
        grads: Sequence[Tensor | None]
        # With create_graph=True the gradient must be differentiable. The definition's is, to any order.
        if torch.is_grad_enabled():
            grads = backends.reference.gcsa_backward(grad_out, a, u1, u2, ctx.batch, need)
        else:
            grads = torch.ops.gcsa_ext.gcsa_backward.default(grad_out, u1, u2, *ctx.batch, list(need), *a)
            grads = [grad if needed else None for grad, needed in zip(grads, need, strict=True)]
        return *grads, *len(constants) * (None,)


def _gcsa(*args: Any) -> tuple[Tensor, ...]:
    differentiates = torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in args[:_TENSORS]
    )
    function: Callable[..., tuple[Tensor, ...]] = torch.ops.gcsa_ext.gcsa_forward.default
    return _Gcsa.apply(*args) if differentiates else function(*args)  # type: ignore[no-untyped-call]


registration.LIBRARY.impl("gcsa", _gcsa, "Autograd")
