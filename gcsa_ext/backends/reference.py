"""Backend "reference": the definitions of gcsa_ext/reference.py, with gradients by autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gcsa_ext import reference
from gcsa_ext.backends import cpu
from gcsa_ext.backends.gpu import maps
from gcsa_ext.backends.operands import Arguments, ChannelGateArguments, NormGateArguments
from gcsa_ext.layout import memory_format


def unsupported(operator: str, device: torch.device, dtype: torch.dtype) -> None:
    """Always None: this backend runs every operator on every device and dtype."""


def differentiate(
    function: Callable[..., Tensor], inputs: Sequence[Any], needs_grad: Sequence[bool], grad_out: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of a plain PyTorch function by autograd, themselves differentiable if grad mode is on.

    Args:
        function: takes `inputs`, returns one tensor.
        inputs: tensors and other arguments.
        needs_grad: for each input, whether its gradient is needed.
        grad_out: gradient of the function's result.

    Returns:
        The gradient of each input, None where not needed.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Fresh tensors cut the graph behind the inputs. Where one input was computed from another, the outer
        # autograd carries the gradient from the first to the second, and it must not be counted here as well.
        inputs = [
            (x.view_as(x) if create_graph else x.detach().requires_grad_()) if need else x
            for x, need in zip(inputs, needs_grad, strict=True)
        ]
        needed = [x for x, need in zip(inputs, needs_grad, strict=True) if need]
        grads = iter(torch.autograd.grad(function(*inputs), needed, grad_out, create_graph=create_graph))
    return tuple(next(grads) if need else None for need in needs_grad)


def channel_gate(*args: Any) -> Tensor:
    """See reference.channel_gate; the result is in the layout of x."""
    a = ChannelGateArguments(*args)
    return reference.channel_gate(*a).contiguous(memory_format=memory_format(a.x))


def channel_gate_backward(grad_out: Tensor, *args: Any) -> tuple[Tensor | None, ...]:
    """The gradients of x, w1, b1, w2, b2, None where not needed.

    Args:
        grad_out: gradient of the result.
        args: those of `channel_gate`, then whether the gradient of x and those of the weights are needed.
    """
    *inputs, need_x, need_weights = args
    needs = (need_x, *4 * (need_weights,), False, False)
    return differentiate(reference.channel_gate, inputs, needs, grad_out)[:5]


def norm_gate(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """See reference.norm_gate; also copies of the used mean and (biased) variance, in the dtype of sums."""
    a = NormGateArguments(*args)
    dtype = reference.accumulator_dtype(a.u.dtype)
    if a.mean is None or a.var is None:
        var, mean = torch.var_mean(a.u.to(dtype), (0, 2, 3), correction=0)
    else:
        mean, var = a.mean.to(dtype, copy=True), a.var.to(dtype, copy=True)
    return reference.norm_gate(*a).contiguous(memory_format=memory_format(a.z)), mean, var


def norm_gate_backward(grad_out: Tensor, *args: Any) -> tuple[Tensor | None, ...]:
    """The gradients of u, z, weight, bias, None where not needed.

    Args:
        grad_out: gradient of the result.
        args: those of `norm_gate`, with the statistics that it used; then whether these are those of the
            batch, and which of the four gradients are needed.
    """
    a, (batch_statistics, *need) = NormGateArguments(*args[:7]), args[7:]
    if batch_statistics:
        a = a._replace(mean=None, var=None)
    return differentiate(reference.norm_gate, a, (*need, False, False, False), grad_out)[:4]


def conv2d_same(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See reference.conv2d_same; the result is in the layout of x."""
    return reference.conv2d_same(x, weight, bias).contiguous(memory_format=memory_format(x))


def conv2d_same_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and weight, None where not needed."""
    needs = (need_x, need_weight, False)
    grads = differentiate(reference.conv2d_same, (x, weight, None), needs, grad_out)
    return grads[0], grads[1]


def spectrogram_mask(spectrogram: Tensor, *args: Any) -> Tensor:
    """See reference.spectrogram_mask; the result is contiguous."""
    return reference.spectrogram_mask(spectrogram, *args).contiguous()


def spectrogram_mask_(
    spectrogram: Tensor, start: Tensor, width: Tensor, value: float, time_bands: int, fill: Tensor | None
) -> None:
    """Mask a spectrogram of any strides in place."""
    bands = reference.spectrogram_bands(spectrogram, start, width, time_bands)
    spectrogram.masked_fill_(bands, value if fill is None else fill)


def saved_shape(channels: int, x: Tensor) -> tuple[int, ...]:
    """The shape in which the kernels save a convolution's output.

    This backend saves nothing, but the kernels may compute one of both passes, and a compiled graph expects
    one shape whoever computes.
    """
    return cpu.saved_shape(channels, x) if x.device.type == "cpu" else maps.saved_shape(channels, x)


def gcsa(a: Arguments) -> tuple[Tensor, ...]:
    """See reference.gcsa.

    Returns:
        * The result, in the layout of x.
        * The outputs of both convolutions, each of `saved_shape`, for the backward pass. Here they are full
          of NaN, so that a kernel that reads them by mistake is noticed.
        * mean1, var1, mean2 and (biased) var2 that it used. Given statistics are copied.
    """
    out, *used = reference.gcsa(*a)
    shapes = (saved_shape(channels, a.x) for channels in (a.hidden, a.x.shape[1]))
    saved = (a.x.new_full(shape, torch.nan) for shape in shapes)
    return out.contiguous(memory_format=memory_format(a.x)), *saved, *(value.clone() for value in used)


def gcsa_inference(a: Arguments) -> Tensor:
    """The result of `gcsa` alone; all statistics are given."""
    out, *_ = reference.gcsa(*a)
    return out.contiguous(memory_format=memory_format(a.x))


def gcsa_backward(
    grad_out: Tensor,
    a: Arguments,
    u1: Tensor,
    u2: Tensor,
    batch_statistics: tuple[bool, bool],
    need: Sequence[bool],
) -> Sequence[Tensor | None]:
    """The gradients of the differentiable arguments.

    Args:
        grad_out: (N, C, H, W), the gradient of the result.
        a: the arguments; its statistics are those that the forward pass used.
        u1, u2: the saved outputs of both convolutions; not read here.
        batch_statistics: for each normalisation, whether its statistics are those of the batch and hence
            depend on the other arguments.
        need: for each differentiable argument, whether its gradient is needed.

    Returns:
        A gradient per differentiable argument, None where not needed.
    """
    batch1, batch2 = batch_statistics
    if batch1:
        a = a._replace(mean1=None, var1=None)
    if batch2:
        a = a._replace(mean2=None, var2=None)
    needs = (*need, *(len(a) - len(need)) * (False,))
    grads = differentiate(lambda *inputs: reference.gcsa(*inputs)[0], a, needs, grad_out)
    return grads[: len(need)]


operators: Mapping[str, Callable[..., Any]] = {
    "channel_gate": channel_gate,
    "channel_gate_backward": channel_gate_backward,
    "conv2d_same": conv2d_same,
    "conv2d_same_backward": conv2d_same_backward,
    "gcsa": gcsa,
    "gcsa_backward": gcsa_backward,
    "gcsa_inference": gcsa_inference,
    "norm_gate": norm_gate,
    "norm_gate_backward": norm_gate_backward,
    "saved_shape": saved_shape,
    "spectrogram_mask": spectrogram_mask,
    "spectrogram_mask_": spectrogram_mask_,
}


def takes(a: Arguments) -> bool:
    """The reference takes all arguments."""
    return True


def function(operator: str) -> Callable[..., Any]:
    """The function of this backend for an operator: the definition itself unless there is one above."""
    found = operators.get(operator)
    definition: Callable[..., Any] = getattr(reference, operator) if found is None else found
    return definition
