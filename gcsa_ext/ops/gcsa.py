"""Contract of gcsa, the whole attention as one operator: schema, checks, shape rule, autograd formula.

It is for maps with at least one position, kernels of 3 to 11 and the backends that have it; everything
else is computed by the operators it is made of (see nn/attention.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.compiler import is_compiling

from gcsa_ext import backends, reference
from gcsa_ext.backends import forced, native
from gcsa_ext.layout import memory_format
from gcsa_ext.ops import registration

_INPUTS = (
    "Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, "
    "Tensor conv1_weight, Tensor? conv1_bias, Tensor conv2_weight, Tensor? conv2_bias, "
    "Tensor? norm1_weight, Tensor? norm1_bias, Tensor? norm2_weight, Tensor? norm2_bias"
)
_SETTINGS = "float eps1, float eps2, int groups, bool sigmoid, bool mixed"
_DIFFERENTIABLE = 13


class Arguments(NamedTuple):
    """Of reference.gcsa, in its order, which is that of the schema; shapes as there.

    With `mixed` the layers may round what they multiply to bfloat16, as under autocast; sums and results stay
    as they are.
    """

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
    mixed: bool

    @property
    def differentiable(self) -> tuple[Tensor | None, ...]:
        return self.x, *self.gate, *self.convolutions, *self.norms

    @property
    def gate(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.w1, self.b1, self.w2, self.b2

    @property
    def convolutions(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        return self.conv1_weight, self.conv1_bias, self.conv2_weight, self.conv2_bias

    @property
    def norms(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        return self.norm1_weight, self.norm1_bias, self.norm2_weight, self.norm2_bias

    @property
    def statistics(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        return self.mean1, self.var1, self.mean2, self.var2

    @property
    def eps(self) -> tuple[float, float]:
        return self.eps1, self.eps2


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
    layers = ((h, C), hidden, (C, h), full, (h, C, k, k), hidden, (C, h, k, k), full)
    shapes = (*layers, hidden, hidden, full, full, hidden, hidden, full, full)
    tensors = cast("tuple[Tensor | None, ...]", a[1:17])
    for name, tensor, shape in zip(Arguments._fields[1:17], tensors, shapes, strict=True):
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(
                f"gcsa: expected {name} of shape {shape} for x {tuple(x.shape)}, got {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point() or tensor.device != x.device:
            raise TypeError(
                f"gcsa: expected {name} of a floating dtype on {x.device}, "
                f"got {tensor.dtype}, {tensor.device}"
            )
    for number, mean, var in ((1, a.mean1, a.var1), (2, a.mean2, a.var2)):
        if (mean is None) != (var is None):
            raise ValueError(f"gcsa: expected both mean{number} and var{number}, or neither")


def _forward(*args: Any) -> tuple[Tensor, ...]:
    *inputs, save = args
    a = Arguments(*inputs)
    _check(a)
    backend = backends.select("gcsa", a.x.device, a.x.dtype, a.x.shape)
    settings = a.eps, a.groups, a.sigmoid, a.mixed
    out, u1, u2, *used = backend.gcsa(a.x, a.gate, a.convolutions, a.norms, a.statistics, *settings, save)
    # What an operator returns must not be an argument of it.
    return out, u1, u2, *(u.clone() if u is g else u for u, g in zip(used, a.statistics, strict=True))


def _saved_shapes(a: Arguments) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the convolutions' outputs, in the layout that the backend chooses."""
    backend = backends.select("gcsa", a.x.device, a.x.dtype, a.x.shape, warn=False)
    return backend.saved_shape(a.w1.shape[0], a.x), backend.saved_shape(a.x.shape[1], a.x)


def _forward_fake(*args: Any) -> tuple[Tensor, ...]:
    *inputs, save = args
    a = Arguments(*inputs)
    _check(a)
    h, C = a.w1.shape[0], a.x.shape[1]
    dtype = reference.accumulator_dtype(a.x.dtype)
    used = (a.x.new_empty(channels, dtype=dtype) for channels in (h, h, C, C))
    saved = (a.x.new_empty(shape) for shape in (_saved_shapes(a) if save else (0, 0)))
    return torch.empty_like(a.x, memory_format=memory_format(a.x)), *saved, *used


def _gradients(
    grad_out: Tensor,
    u1: Tensor,
    u2: Tensor,
    batch_statistics1: bool,
    batch_statistics2: bool,
    need: Sequence[bool],
    *args: Any,
) -> Sequence[Tensor | None]:
    a = Arguments(*args)
    _check(a)
    registration.check_gradient("gcsa", grad_out, a.x.shape, a.x)
    batch = (batch_statistics1, batch_statistics2)
    backend = backends.select("gcsa", a.x.device, a.x.dtype, a.x.shape)
    # What another backend has kept in its own layout is of no use; the reference needs nothing that was kept.
    kept = [tuple(u1.shape), u1.dtype, tuple(u2.shape), u2.dtype]
    h_shape, C_shape = _saved_shapes(a)
    if kept != [h_shape, a.x.dtype, C_shape, a.x.dtype]:
        backend = backends.reference
    return _differentiate(backend, grad_out, a, (u1, u2), batch, need)


def _backward(*args: Any) -> tuple[Tensor, ...]:
    need, x = args[5], args[6]
    return tuple(
        x.new_empty(0) if grad is None or not needed else grad
        for grad, needed in zip(_gradients(*args), need, strict=True)
    )


def _differentiate(
    backend: backends.Backend,
    grad_out: Tensor,
    a: Arguments,
    saved: tuple[Tensor, Tensor],
    batch: tuple[bool, bool],
    need: Sequence[bool],
) -> Sequence[Tensor | None]:
    return backend.gcsa_backward(
        grad_out,
        a.x,
        a.gate,
        a.convolutions,
        a.norms,
        a.statistics,
        saved,
        batch,
        a.eps,
        a.groups,
        a.sigmoid,
        a.mixed,
        need,
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
    a = Arguments(*args)
    layouts = (memory_format(a.x), *(_DIFFERENTIABLE - 1) * (torch.contiguous_format,))
    return tuple(
        a.x.new_empty(0) if tensor is None or not needed else torch.empty_like(tensor, memory_format=layout)
        for tensor, needed, layout in zip(a.differentiable, need, layouts, strict=True)
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
    *arguments, ctx.save = inputs
    a = Arguments(*arguments)
    _, *others = output
    ctx.batch = a.mean1 is None, a.mean2 is None
    ctx.settings = *a.eps, a.groups, a.sigmoid, a.mixed
    ctx.mark_non_differentiable(*others)
    ctx.set_materialize_grads(False)  # no zeros, as large as u1 and u2, for what has no gradient
    ctx.save_for_backward(*a.differentiable, *others)


def _autograd(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return len(ctx.needs_input_grad) * (None,)
    saved = ctx.saved_tensors  # asked for once: checkpoints give it only once
    inputs, (u1, u2, *used) = saved[:_DIFFERENTIABLE], saved[_DIFFERENTIABLE:]
    need, others = ctx.needs_input_grad[:_DIFFERENTIABLE], ctx.needs_input_grad[_DIFFERENTIABLE:]
    if any(others):
        raise RuntimeError("gcsa: mean and var are constants and have no gradient; detach them")
    a = Arguments(*inputs, *used, *ctx.settings)
    return *_gradients_of(grad_out, a, (u1, u2), ctx.batch, need, ctx.save), *len(others) * (None,)


def _gradients_of(
    grad_out: Tensor,
    a: Arguments,
    saved: tuple[Tensor, Tensor],
    batch: tuple[bool, bool],
    need: Sequence[bool],
    save: bool,
) -> Sequence[Tensor | None]:
    """None where not needed; `saved` is of a forward pass with `save`."""
    # With create_graph=True the gradient must itself be differentiable: the definition's is, to any order.
    if torch.is_grad_enabled() or not save:
        return _differentiate(backends.reference, grad_out, a, saved, batch, need)
    found = torch.ops.gcsa_ext.gcsa_backward(grad_out, *saved, *batch, list(need), *a)
    return [grad if needed else None for grad, needed in zip(found, need, strict=True)]


torch.library.register_autograd(
    "gcsa_ext::gcsa", _autograd, setup_context=_setup_context, lib=registration.LIBRARY
)


class Plan(NamedTuple):
    """What a module with all layers of the attention asks of the operator, as csrc/attention.h takes it."""

    weights: tuple[Tensor | None, ...]
    """Of both linear layers, both convolutions, both normalisations: weight and bias."""
    statistics: tuple[Tensor | None, ...]
    """Mean and variance of both normalisations, None for the batch's."""
    settings: tuple[float, float, int, bool]
    """eps of both, groups, sigmoid."""
    batch: tuple[bool, bool]
    """Whether each normalisation uses the statistics of the batch."""
    updated: tuple[
        tuple[
            int, torch.nn.BatchNorm2d | torch.nn.SyncBatchNorm, Tensor | None, Tensor | None, Tensor | None
        ],
        ...,
    ]
    """The place of its statistics, a normalisation, its running mean and variance that move, its count of
    batches."""


class _Recorded(torch.autograd.Function):
    """The gradient of what `directly` has computed; saves what the operator would save."""

    @staticmethod
    def forward(ctx: Any, found: tuple[Any, ...], plan: Plan, *inputs: Tensor | None) -> Tensor:
        out, *kept, ctx.mixed = found
        ctx.settings, ctx.batch = plan.settings, plan.batch
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *kept)
        return cast("Tensor", out)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, ...]:
        need, saved = ctx.needs_input_grad[2:], ctx.saved_tensors
        if grad_out is None:
            return (2 + len(need)) * (None,)
        grads = None
        # A batched tensor (is_grads_batched) has no memory, and a compiler cannot see into the extension.
        if (
            forced.name in (None, "cpu")
            and not is_compiling()
            and not torch._C._functorch.is_legacy_batchedtensor(grad_out)
        ):
            assert native.extension is not None
            grads = native.extension.differentiate(grad_out, saved, ctx.settings, ctx.batch, ctx.mixed, need)
        if grads is None:
            inputs, (u1, u2, *used) = saved[:_DIFFERENTIABLE], saved[_DIFFERENTIABLE:]
            a = Arguments(*(*inputs, *used, *ctx.settings, ctx.mixed))
            grads = _gradients_of(grad_out, a, (u1, u2), ctx.batch, need, save=True)
        return None, None, *grads


def directly(own: dict[str, Any], x: Tensor, notes: tuple[Any, ...], plan: Plan) -> Tensor | None:
    """The attention of a module in one step past PyTorch's dispatcher and all of Python, whose way takes as
    long as a small map; also moves the running statistics. None where this is not for x, see
    csrc/attention.h, or no longer for the module with the dictionary `own`, whose plan rests on the notes."""
    if forced.name not in (None, "cpu"):
        return None
    assert native.extension is not None
    found = native.extension.attend(own, x, notes, plan)
    if type(found) is tuple:
        found = _Recorded.apply(found, plan, x, *plan.weights)  # type: ignore[no-untyped-call]
    return cast("Tensor | None", found)
