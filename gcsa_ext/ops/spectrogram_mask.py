"""Contract of spectrogram_mask and spectrogram_mask_: schema, checks, shape rule, autograd formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gcsa_ext import reference as definitions
from gcsa_ext.backends import reference, select
from gcsa_ext.ops import registration


def _check(spectrogram: Tensor, start: Tensor, width: Tensor, time_bands: int, fill: Tensor | None) -> None:
    name = "spectrogram_mask"
    if time_bands == 0:
        name = "frequency_mask"
    elif time_bands == definitions.ALL_BANDS:
        name = "time_mask"
    if spectrogram.dim() < 2:
        raise ValueError(f"{name}: expected a spectrogram (..., freq, time), got {tuple(spectrogram.shape)}")
    if not spectrogram.is_floating_point():
        raise TypeError(f"{name}: expected a spectrogram of a floating dtype, got {spectrogram.dtype}")
    batch = tuple(spectrogram.shape[:-2])
    if start.shape != width.shape or start.dim() < 1 or start.shape[-1] < 1:
        raise ValueError(
            f"{name}: expected start and width of one shape (*batch, bands) with at least one band, "
            f"got {tuple(start.shape)} and {tuple(width.shape)}"
        )
    if time_bands < 0:
        raise ValueError(f"{name}: expected time_bands of at least 0, got {time_bands}")
    trailing = tuple(start.shape[:-1])
    fits = len(trailing) <= len(batch) and all(
        s in (1, b) for s, b in zip(reversed(trailing), reversed(batch), strict=False)
    )
    if not fits:
        raise ValueError(
            f"{name}: expected start and width of shape (*batch, bands) with batch broadcastable to "
            f"{batch}, got {tuple(start.shape)} for a spectrogram {tuple(spectrogram.shape)}"
        )
    for tensor_name, tensor in (("start", start), ("width", width)):
        if tensor.is_floating_point() or tensor.is_complex() or tensor.device != spectrogram.device:
            raise TypeError(
                f"{name}: expected {tensor_name} of an integer dtype on {spectrogram.device}, "
                f"got {tensor.dtype}, {tensor.device}"
            )
    if fill is None:
        return
    if fill.dim() > 0:
        raise ValueError(f"{name}: expected a value of shape (), got {tuple(fill.shape)}")
    if fill.dtype != spectrogram.dtype or fill.device != spectrogram.device:
        raise TypeError(
            f"{name}: expected a value in {spectrogram.dtype} on {spectrogram.device}, as the spectrogram, "
            f"got {fill.dtype}, {fill.device}"
        )


def _forward(
    spectrogram: Tensor, start: Tensor, width: Tensor, value: float, time_bands: int, fill: Tensor | None
) -> Tensor:
    _check(spectrogram, start, width, time_bands, fill)
    out: Tensor = select("spectrogram_mask", spectrogram)(spectrogram, start, width, value, time_bands, fill)
    return out


def _forward_fake(
    spectrogram: Tensor, start: Tensor, width: Tensor, value: float, time_bands: int, fill: Tensor | None
) -> Tensor:
    _check(spectrogram, start, width, time_bands, fill)
    return torch.empty_like(spectrogram, memory_format=torch.contiguous_format)


def _in_place(
    spectrogram: Tensor, start: Tensor, width: Tensor, value: float, time_bands: int, fill: Tensor | None
) -> None:
    _check(spectrogram, start, width, time_bands, fill)
    contiguous = spectrogram.is_contiguous()
    if not contiguous and any(
        stride == 0 < size - 1 for size, stride in zip(spectrogram.shape, spectrogram.stride(), strict=True)
    ):
        raise ValueError(
            "masking in place: expected a spectrogram whose elements do not share memory (clone it, or mask "
            f"out of place), got {tuple(spectrogram.shape)} with strides {spectrogram.stride()}"
        )
    in_place = select("spectrogram_mask_", spectrogram)
    (in_place if contiguous else reference.spectrogram_mask_)(
        spectrogram, start, width, value, time_bands, fill
    )
    # Autograd compares versions to detect that a saved tensor has been overwritten.
    if not spectrogram.is_inference():
        torch.autograd.graph.increment_version(spectrogram)


def _in_place_fake(
    spectrogram: Tensor, start: Tensor, width: Tensor, value: float, time_bands: int, fill: Tensor | None
) -> None:
    _check(spectrogram, start, width, time_bands, fill)


registration.define(
    "spectrogram_mask(Tensor spectrogram, Tensor start, Tensor width, float value, int time_bands, "
    "Tensor? fill) -> Tensor",
    _forward,
    _forward_fake,
)
registration.define(
    "spectrogram_mask_(Tensor(a!) spectrogram, Tensor start, Tensor width, float value, int time_bands, "
    "Tensor? fill) -> ()",
    _in_place,
    _in_place_fake,
)
# PyTorch's fallback for negative views (the imaginary part of a conjugate) supports only operators with a
# result.
registration.LIBRARY.impl("spectrogram_mask_", reference.spectrogram_mask_, "Negative")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, start, width, _, ctx.time_bands, _ = inputs
    ctx.save_for_backward(start, width)


def _autograd(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    # The operator is linear in the spectrogram and in `fill`. The gradient of the spectrogram is that of the
    # result, masked with 0. That of `fill` is the sum over the masked elements. Both can be differentiated
    # again.
    start, width = ctx.saved_tensors
    grad = grad_fill = None
    if ctx.needs_input_grad[0]:
        grad = torch.ops.gcsa_ext.spectrogram_mask(grad_out, start, width, 0.0, ctx.time_bands, None)
    if ctx.needs_input_grad[-1]:
        bands = definitions.spectrogram_bands(grad_out, start, width, ctx.time_bands)
        grad_fill = grad_out.masked_fill(~bands, 0.0).sum()
    return grad, None, None, None, None, grad_fill


torch.library.register_autograd(
    "gcsa_ext::spectrogram_mask", _autograd, setup_context=_setup_context, lib=registration.LIBRARY
)
