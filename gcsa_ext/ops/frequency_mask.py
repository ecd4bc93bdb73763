"""Contract of frequency_mask and frequency_mask_: schema, checks, shape rule, autograd formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gcsa_ext.backends import reference, select
from gcsa_ext.ops import registration


def _check(spectrogram: Tensor, start: Tensor, width: Tensor) -> None:
    if spectrogram.dim() < 2:
        raise ValueError(
            f"frequency_mask: expected a spectrogram (..., freq, time), got {tuple(spectrogram.shape)}"
        )
    if not spectrogram.is_floating_point():
        raise TypeError(
            f"frequency_mask: expected a spectrogram of a floating dtype, got {spectrogram.dtype}"
        )
    batch = tuple(spectrogram.shape[:-2])
    if start.shape != width.shape or start.dim() < 1 or start.shape[-1] < 1:
        raise ValueError(
            "frequency_mask: expected start and width of one shape (*batch, bands) with at least one band, "
            f"got {tuple(start.shape)} and {tuple(width.shape)}"
        )
    trailing = tuple(start.shape[:-1])
    fits = len(trailing) <= len(batch) and all(
        s in (1, b) for s, b in zip(reversed(trailing), reversed(batch), strict=False)
    )
    if not fits:
        raise ValueError(
            "frequency_mask: expected start and width of shape (*batch, bands) with batch broadcastable to "
            f"{batch}, got {tuple(start.shape)} for a spectrogram {tuple(spectrogram.shape)}"
        )
    for name, tensor in (("start", start), ("width", width)):
        if tensor.is_floating_point() or tensor.is_complex() or tensor.device != spectrogram.device:
            raise TypeError(
                f"frequency_mask: expected {name} of an integer dtype on {spectrogram.device}, "
                f"got {tensor.dtype}, {tensor.device}"
            )


def _forward(spectrogram: Tensor, start: Tensor, width: Tensor, value: float) -> Tensor:
    _check(spectrogram, start, width)
    out: Tensor = select("frequency_mask", spectrogram)(spectrogram, start, width, value)
    return out


def _forward_fake(spectrogram: Tensor, start: Tensor, width: Tensor, value: float) -> Tensor:
    _check(spectrogram, start, width)
    return torch.empty_like(spectrogram, memory_format=torch.contiguous_format)


def _in_place(spectrogram: Tensor, start: Tensor, width: Tensor, value: float) -> None:
    _check(spectrogram, start, width)
    contiguous = spectrogram.is_contiguous()
    if not contiguous and any(
        stride == 0 < size - 1 for size, stride in zip(spectrogram.shape, spectrogram.stride(), strict=True)
    ):
        raise ValueError(
            "frequency_mask_: expected a spectrogram whose elements do not share memory (clone it, or use "
            f"frequency_mask), got {tuple(spectrogram.shape)} with strides {spectrogram.stride()}"
        )
    in_place = select("frequency_mask_", spectrogram)
    (in_place if contiguous else reference.frequency_mask_)(spectrogram, start, width, value)
    # Autograd compares versions to detect that a saved tensor has been overwritten.
    if not spectrogram.is_inference():
        torch.autograd.graph.increment_version(spectrogram)


def _in_place_fake(spectrogram: Tensor, start: Tensor, width: Tensor, value: float) -> None:
    _check(spectrogram, start, width)


registration.define(
    "frequency_mask(Tensor spectrogram, Tensor start, Tensor width, float value) -> Tensor",
    _forward,
    _forward_fake,
)
registration.define(
    "frequency_mask_(Tensor(a!) spectrogram, Tensor start, Tensor width, float value) -> ()",
    _in_place,
    _in_place_fake,
)
# PyTorch's fallback for negative views (the imaginary part of a conjugate) supports only operators with a
# result.
registration.LIBRARY.impl("frequency_mask_", reference.frequency_mask_, "Negative")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, start, width, _ = inputs
    ctx.save_for_backward(start, width)


def _autograd(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    # The operator is linear in the spectrogram: it masks the gradient with 0, and can be differentiated
    # again.
    start, width = ctx.saved_tensors
    return torch.ops.gcsa_ext.frequency_mask(grad_out, start, width, 0.0), None, None, None


torch.library.register_autograd(
    "gcsa_ext::frequency_mask", _autograd, setup_context=_setup_context, lib=registration.LIBRARY
)
