"""The cases of single operators and of the module GCSA, for the CPU and for GPUs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from harness import plain
from harness.case import BACKWARD_TOLERANCE, BFLOAT16_TOLERANCE, FORWARD_TOLERANCE, Case, passes
from torch import Tensor, nn

from gcsa_ext import GCSA, functional

MAPS = ((64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7))
"""(C, H, W) of the four stages of an ordinary backbone."""


def randn(shape: Sequence[int], dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Standard normal numbers, drawn in float32 whatever the dtype."""
    return torch.randn(tuple(shape), device=device).to(dtype)


def _tolerance(dtype: torch.dtype, backward: bool) -> float:
    if dtype == torch.bfloat16:
        return BFLOAT16_TOLERANCE
    return BACKWARD_TOLERANCE if backward else FORWARD_TOLERANCE


def channel_gate_case(
    shape: Sequence[int],
    backward: bool,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    **options: Any,
) -> Case:
    """The operator on a map of `shape` (N, C, H, W) with C / 4 hidden channels and 4 groups."""
    N, C, H, W = shape
    h = C // 4

    def make(is_plain: bool) -> Any:
        weights = [randn(sizes, device=device) for sizes in ((h, C), (h,), (C, h), (C,))]
        inputs = (randn(shape, dtype, device), *((w / w[0].numel() ** 0.5).to(dtype) for w in weights))
        function = plain.channel_gate if is_plain else functional.channel_gate
        return partial(function, groups=4), inputs, randn(shape, dtype, device)

    return Case(
        f"channel_gate {passes(backward)}",
        shape,
        make,
        backward,
        dtype,
        device,
        operator="channel_gate",
        # two products per position; backward, the gradients of the inputs and of the weights
        flops=(3 if backward else 1) * 2 * N * H * W * 2 * C * h,
        # x, out; then grad_out, x, grad_x
        bytes=(5 if backward else 2) * dtype.itemsize * math.prod(shape),
        tolerance=_tolerance(dtype, backward),
        **options,
    )


def norm_gate_case(
    shape: Sequence[int],
    training: bool,
    backward: bool,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    **options: Any,
) -> Case:
    """The operator on two maps of `shape` (N, C, H, W), with the batch's or running statistics."""
    C = shape[1]

    def make(is_plain: bool) -> Any:
        u, z, grad = (randn(shape, dtype, device) for _ in range(3))
        weight, bias = (randn((C,), device=device) for _ in range(2))
        mean, var = torch.zeros(C, device=device), torch.ones(C, device=device)
        function = plain.norm_gate if is_plain else functional.norm_gate

        def call(u: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            statistics = (mean.to(weight.dtype), var.to(weight.dtype))
            return function(u, z, weight, bias, *statistics, training=training)

        return call, (u, z, weight, bias), grad

    # u, z and out; u once more for the statistics; backward: grad_out, u, z, grad_u, grad_z, with batch
    # statistics the first three once more for the sums that grad_u needs.
    maps = 3 + training + backward * (5 + 3 * training)
    return Case(
        f"norm_gate {'train' if training else 'eval'} {passes(backward)}",
        shape,
        make,
        backward,
        dtype,
        device,
        operator="norm_gate",
        bytes=maps * dtype.itemsize * math.prod(shape),
        tolerance=_tolerance(dtype, False),
        **options,
    )


def frequency_mask_case(
    shape: Sequence[int],
    iid: bool,
    backward: bool = False,
    inplace: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    **options: Any,
) -> Case:
    """The operator on spectrograms of `shape` (N, C, freq, time): one band, per sample or shared."""
    name = "frequency_mask_" if inplace else "frequency_mask"
    widest = shape[2] // 4
    generator = torch.Generator().manual_seed(0)
    width = torch.randint(widest, (*shape[:2], 1) if iid else (1,), generator=generator)
    start = torch.randint(shape[2] - widest, width.shape, generator=generator)

    def make(is_plain: bool) -> Any:
        function = getattr(plain if is_plain else functional, name)
        bands = (start.to(device), width.to(device))
        return function, (randn(shape, dtype, device), *bands), randn(shape, dtype, device)

    masked = width.double().mean().item() / shape[2]
    # in place: the masked bins alone; else all bins written, and those kept read; the same backward
    share = masked if inplace else (1 + backward) * (2 - masked)
    return Case(
        f"{name} {'per sample' if iid else 'shared'} {passes(backward)}",
        shape,
        make,
        backward,
        dtype,
        device,
        operator="spectrogram_mask_" if inplace else "spectrogram_mask",
        layouts=False,
        bytes=share * dtype.itemsize * math.prod(shape),
        **options,
    )


def gcsa_case(
    shape: Sequence[int],
    training: bool = False,
    backward: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    autocast: bool = False,
    **options: Any,
) -> Case:
    """The module on a map of `shape` (N, C, H, W).

    Args:
        dtype: of x and of all weights but those of batch normalisations, which stay float32; with `autocast`,
            which is bfloat16's, of the arithmetic alone.
    """
    N, C, H, W = shape
    h, k = C // 4, 7
    stored = torch.float32 if autocast else dtype

    def make(is_plain: bool) -> Any:
        module: nn.Module = GCSA(C).to(device).train(training)
        module = plain.plain_copy(module) if is_plain else module
        for child in module.modules():
            if not isinstance(child, nn.BatchNorm2d):
                for parameter in child.parameters(recurse=False):
                    parameter.data = parameter.data.to(stored)
        return module, (randn(shape, stored, device),), randn(shape, stored, device)

    words = ["GCSA", "train" if training else "eval", passes(backward)]
    words += ["N=1"] * (N == 1 and device == "cpu") + ["bfloat16 autocast"] * autocast
    return Case(
        " ".join(words),
        shape,
        make,
        backward,
        dtype,
        device,
        autocast,
        "gcsa",
        flops=(3 if backward else 1) * 2 * N * H * W * (2 * C * h + 2 * k * k * C * h),
        bytes=(5 if backward else 2) * stored.itemsize * math.prod(shape),  # as for channel_gate
        tolerance=_tolerance(dtype, backward),
        **options,
    )
