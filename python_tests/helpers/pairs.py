"""GCSA beside the plain public module with the same parameters, and one step of both compared."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from accuracy import MODULE_FACTOR, assert_as_accurate
from public_attention import PlainAttention, randomize_statistics
from torch import Tensor, nn

from gcsa_ext import GCSA


def pair(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[GCSA, PlainAttention]:
    """The fused and the plain module with the same parameters and statistics."""
    plain = PlainAttention(**options)
    randomize_statistics(plain)
    fused = GCSA(**options)
    fused.load_state_dict(plain.state_dict())
    return fused.to(dtype), plain.to(dtype)


def replace_norms(module: nn.Module, indices: Sequence[int] = (1, 4), **options: Any) -> None:
    """New batch norms with these options, at these places of the spatial branch."""
    branch = module.spatial_attention
    for i in indices:
        branch[i] = nn.BatchNorm2d(branch[i].num_features, **options)


def step(module: nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
    """The result, and the gradients of the input and of the parameters."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = module(x)
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, [x, *parameters], grad.to(out.dtype))]


def assert_same_step(
    fused: nn.Module,
    plain: nn.Module,
    x: Tensor,
    summands: float = 0.0,
    buffers: float = 1e-5,
    sums: tuple[str, ...] = (),
) -> None:
    """Compare one step of both with float64.

    Args:
        summands: the size of the summands that may cancel in a gradient.
        buffers: relative tolerance of the running statistics.
        sums: names of the parameters to which `summands` applies; of all gradients where empty.
    """
    grad = torch.randn(x.shape)
    exact = copy.deepcopy(plain).double()
    names = ["result", "gradient of x", *(n for n, p in plain.named_parameters() if p.requires_grad)]
    steps = step(fused, x, grad), step(plain, x, grad), step(exact, x.double(), grad)
    for name, a, b, c in zip(names, *steps, strict=True):
        # In training the norm subtracts the bias of the convolution before it: the exact gradient is 0.
        cancels = name in ("spatial_attention.0.bias", "spatial_attention.3.bias")
        least_scale = 0.0 if sums and name not in sums else summands
        if cancels:
            least_scale = max(g.abs().max().item() for g in steps[2])
        assert_as_accurate(a, b, c, name, MODULE_FACTOR, least_scale)
    for a, b in zip(fused.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=buffers, atol=0.1 * buffers)
