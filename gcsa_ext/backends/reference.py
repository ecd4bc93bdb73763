"""Backend "reference": the definitions of gcsa_ext/reference.py, their gradients by autograd; any tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gcsa_ext import reference
from gcsa_ext.backends import cpu
from gcsa_ext.backends.operands import Arguments
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
    *need: bool,
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
    """The shape in which kernels would save a convolution's output. Nothing is saved here, but a graph that
    was compiled for kernels asks for results of their shape."""
    N, _, H, W = x.shape
    return cpu.saved_shape(channels, x) if x.device.type == "cpu" else (N, channels, H * W)


def gcsa(a: Arguments, save: bool) -> tuple[Tensor, ...]:
    """See reference.gcsa.

    Returns:
        The result in the layout of x; the outputs of both convolutions, of `saved_shape`, full of NaN, which
        shows, should a backend take them for its own; mean and (biased) variance of both normalisations,
        which are copies where they were given. What is not wanted is an empty tensor: saved outputs and given
        statistics without `save`.
    """
    out, *used = reference.gcsa(*a[:-1])
    shapes = (saved_shape(c, a.x) if save else (0,) for c in (a.w1.shape[0], a.x.shape[1]))
    saved = (a.x.new_full(shape, torch.nan) for shape in shapes)
    statistics = (
        value.clone() if save or given is None else value.new_empty(0)
        for value, given in zip(used, a.statistics, strict=True)
    )
    return out.contiguous(memory_format=memory_format(a.x)), *saved, *statistics


def gcsa_backward(
    grad_out: Tensor,
    a: Arguments,
    u1: Tensor,
    u2: Tensor,
    batch_statistics: tuple[bool, bool],
    need: Sequence[bool],
) -> Sequence[Tensor | None]:
    """The gradients of the differentiable arguments, None where not needed. The statistics in `a`, u1 and u2
    are results of the forward pass; those of a batch are computed again."""
    batch1, batch2 = batch_statistics
    if batch1:
        a = a._replace(mean1=None, var1=None)
    if batch2:
        a = a._replace(mean2=None, var2=None)
    needs = (*need, *(len(a) - 1 - len(need)) * (False,))
    grads = differentiate(lambda *inputs: reference.gcsa(*inputs)[0], a[:-1], needs, grad_out)
    return grads[: len(need)]


operators: Mapping[str, Callable[..., Any]] = {
    "channel_gate": channel_gate,
    "channel_gate_backward": channel_gate_backward,
    "conv2d_same": conv2d_same,
    "conv2d_same_backward": conv2d_same_backward,
    "frequency_mask": frequency_mask,
    "frequency_mask_": frequency_mask_,
    "gcsa": gcsa,
    "gcsa_backward": gcsa_backward,
    "norm_gate": norm_gate,
    "norm_gate_backward": norm_gate_backward,
    "saved_shape": saved_shape,
}
