"""Backend "reference": the definitions of gcsa_ext/reference.py, their gradients by autograd; any tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gcsa_ext import reference
from gcsa_ext.backends import cpu
from gcsa_ext.layout import memory_format


def unsupported(operator: str, device: torch.device, dtype: torch.dtype) -> None:
    """Nothing is: None."""


def differentiate(
    function: Callable[..., Tensor], inputs: Sequence[Any], needs_grad: Sequence[bool], grad_out: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of a plain PyTorch function by autograd, themselves differentiable if grad mode is on.

    Args:
        function: takes `inputs`, returns one tensor.
        inputs: tensors and other arguments.
        needs_grad: for each input, whether its gradient is wanted.
        grad_out: gradient of the function's result.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Fresh tensors: where one input was computed from another, its gradient must not flow on into that
        # one here, since autograd carries it there itself.
        inputs = [
            (x.view_as(x) if create_graph else x.detach().requires_grad_()) if need else x
            for x, need in zip(inputs, needs_grad, strict=True)
        ]
        wanted = [x for x, need in zip(inputs, needs_grad, strict=True) if need]
        found = iter(torch.autograd.grad(function(*inputs), wanted, grad_out, create_graph=create_graph))
    return tuple(next(found) if need else None for need in needs_grad)


def channel_gate(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, groups: int, sigmoid: bool
) -> Tensor:
    """See reference.channel_gate; in the layout of x."""
    out = reference.channel_gate(x, w1, b1, w2, b2, groups, sigmoid)
    return out.contiguous(memory_format=memory_format(x))


def channel_gate_backward(
    grad_out: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    groups: int,
    sigmoid: bool,
    need_x: bool,
    need_weights: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, w1, b1, w2, b2, None where not needed."""
    inputs = (x, w1, b1, w2, b2, groups, sigmoid)
    needs = (need_x, *4 * (need_weights,), False, False)
    grads = differentiate(reference.channel_gate, inputs, needs, grad_out)
    return grads[0], grads[1], grads[2], grads[3], grads[4]


def norm_gate(
    u: Tensor,
    z: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See reference.norm_gate; also copies of the statistics it used (biased variance)."""
    out = reference.norm_gate(u, z, weight, bias, mean, var, eps)
    dtype = reference.accumulator_dtype(u.dtype)
    if mean is None or var is None:
        used_var, used_mean = torch.var_mean(u.to(dtype), (0, 2, 3), correction=0)
    else:
        used_mean, used_var = mean.to(dtype, copy=True), var.to(dtype, copy=True)
    return out.contiguous(memory_format=memory_format(z)), used_mean, used_var


def norm_gate_backward(
    grad_out: Tensor,
    u: Tensor,
    z: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    batch_statistics: bool,
    need: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of u, z, weight, bias, None where not needed."""
    statistics = (None, None) if batch_statistics else (mean, var)
    inputs = (u, z, weight, bias, *statistics, eps)
    grads = differentiate(reference.norm_gate, inputs, (*need, False, False, False), grad_out)
    return grads[0], grads[1], grads[2], grads[3]


def conv2d_same(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See reference.conv2d_same; in the layout of x."""
    return reference.conv2d_same(x, weight, bias).contiguous(memory_format=memory_format(x))


def conv2d_same_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and weight, None where not needed."""
    needs = (need_x, need_weight, False)
    grads = differentiate(reference.conv2d_same, (x, weight, None), needs, grad_out)
    return grads[0], grads[1]


def frequency_mask(spectrogram: Tensor, start: Tensor, width: Tensor, value: float) -> Tensor:
    """See reference.frequency_mask; contiguous."""
    return reference.frequency_mask(spectrogram, start, width, value).contiguous()


def frequency_mask_(spectrogram: Tensor, start: Tensor, width: Tensor, value: float) -> None:
    """Mask a spectrogram of any strides in place."""
    spectrogram.masked_fill_(reference.frequency_bands(spectrogram, start, width), value)


def saved_shape(channels: int, x: Tensor) -> tuple[int, ...]:
    """Nothing is kept, but a compiled graph that was made for kernels asks for results of their shape."""
    N, _, H, W = x.shape
    return cpu.saved_shape(channels, x) if x.device.type == "cpu" else (N, channels, H * W)


def gcsa(
    x: Tensor,
    gate: Sequence[Tensor],
    convolutions: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    norms: Sequence[Tensor | None],
    statistics: Sequence[Tensor | None],
    eps: tuple[float, float],
    groups: int,
    sigmoid: bool,
    mixed: bool,
    save: bool,
) -> tuple[Tensor, ...]:
    """See reference.gcsa; arguments and results as those of cpu.gcsa, but what is kept has no values."""
    inputs: Any = (x, *gate, *convolutions, *norms, *statistics, *eps, groups, sigmoid)
    out, *used = reference.gcsa(*inputs)
    # NaN shows, should the backward pass be left to a backend that takes them for its own.
    shapes = (saved_shape(c, x) if save else (0,) for c in (gate[0].shape[0], x.shape[1]))
    saved = (x.new_full(shape, torch.nan) for shape in shapes)
    copies = (value.clone() for value in used)  # an operator's result may not be its argument
    return out.contiguous(memory_format=memory_format(x)), *saved, *copies


def gcsa_backward(
    grad_out: Tensor,
    x: Tensor,
    gate: Sequence[Tensor],
    convolutions: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    norms: Sequence[Tensor | None],
    used: Sequence[Tensor | None],
    saved: tuple[Tensor, Tensor],
    batch_statistics: tuple[bool, bool],
    eps: tuple[float, float],
    groups: int,
    sigmoid: bool,
    mixed: bool,
    need: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of x, gate, convolutions and norms, None where not needed; the statistics of a
    batch are computed anew."""
    statistics = [None if batch_statistics[i // 2] else value for i, value in enumerate(used)]
    inputs = (x, *gate, *convolutions, *norms, *statistics, *eps, groups, sigmoid)
    needs = (*need, *(len(inputs) - len(need)) * (False,))
    grads = differentiate(lambda *args: reference.gcsa(*args)[0], inputs, needs, grad_out)
    return list(grads[: len(need)])
