"""GCSA beside the plain public module with the same parameters, and one step of both compared."""

from __future__ import annotations

import copy
from typing import Any

import torch
from accuracy import MODULE_FACTOR, assert_as_accurate
from public_attention import PlainAttention, randomize_statistics
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gcsa_ext import GCSA


class PassedOn(TorchDispatchMode):
    """Lets every call through, and makes GCSA go by the dispatcher."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def pair(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[GCSA, PlainAttention]:
    """The fused and the plain module with the same parameters and statistics."""
    plain = PlainAttention(**options)
    randomize_statistics(plain)
    fused = GCSA(**options)
    fused.load_state_dict(plain.state_dict())
    return fused.to(dtype), plain.to(dtype)


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
    """`summands` is the size of what may cancel in any gradient, or, where `sums` names parameters, in theirs
    only; `buffers` is how far statistics may differ."""
    grad = torch.randn(x.shape)
    exact = copy.deepcopy(plain).double()
    names = ["result", "gradient of x", *(n for n, p in plain.named_parameters() if p.requires_grad)]
    steps = step(fused, x, grad), step(plain, x, grad), step(exact, x.double(), grad)
    for name, a, b, c in zip(names, *steps, strict=True):
        # In training the norm behind a convolution takes its bias out again: the exact gradient is 0.
        cancels = name in ("spatial_attention.0.bias", "spatial_attention.3.bias")
        own = 0.0 if sums and name not in sums else summands
        least_scale = max(g.abs().max().item() for g in steps[2]) if cancels else own
        assert_as_accurate(a, b, c, name, MODULE_FACTOR, least_scale)
    for a, b in zip(fused.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=buffers, atol=0.1 * buffers)
