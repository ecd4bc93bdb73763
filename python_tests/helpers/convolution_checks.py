"""Arguments of conv2d_same, and how its result and gradients are checked."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from accuracy import assert_as_accurate
from layouts import LAYOUTS
from torch import Tensor

from gcsa_ext import functional, reference


def arguments(
    shape: tuple[int, int, int, int, int],
    kernel: int,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
) -> list[Tensor]:
    N, C, outputs, H, W = shape
    weight = torch.randn(outputs, C, kernel, kernel) / (kernel * math.sqrt(C))
    return [LAYOUTS[layout]((N, C, H, W), dtype), weight.to(dtype), torch.randn(outputs, dtype=dtype)]


def step(function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def check(inputs: list[Tensor]) -> list[Tensor]:
    """Compare the result and all gradients with float64; returns them."""
    N, _, H, W = inputs[0].shape
    grad = torch.randn(N, inputs[1].shape[0], H, W).to(inputs[0].dtype)
    found, plain, exact = (
        step(functional.conv2d_same, inputs, grad),
        step(reference.conv2d_same, inputs, grad),
        step(reference.conv2d_same, [t.double() for t in inputs], grad),
    )
    # Transforms round relative to the largest of all values that they add up, needed for a result or not.
    x_size, weight_size, grad_size = (t.abs().max().item() for t in (*inputs[:2], grad))
    summands = (x_size * weight_size, grad_size * weight_size, grad_size * x_size, grad_size)
    names = ("result", "gradient of x", "of weight", "of bias")
    for name, size, *values in zip(names, summands, found, plain, exact, strict=True):
        assert_as_accurate(*values, what=name, least_scale=size)
    return found
