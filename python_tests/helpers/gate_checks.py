"""Arguments of channel_gate and norm_gate, and how their results and gradients are checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accuracy import assert_as_accurate
from layouts import LAYOUTS
from torch import Tensor

from gcsa_ext import backends, functional, reference

EPS = 1e-5
Function = Callable[..., Tensor]


def channel_gate_arguments(x: Tensor, hidden: int) -> list[Tensor]:
    C = x.shape[1]
    shapes = ((hidden, C), (hidden,), (C, hidden), (C,))
    return [x, *(torch.randn(shape, dtype=x.dtype) / math.sqrt(shape[-1]) for shape in shapes)]


def norm_gate_arguments(
    layout: str, shape: tuple[int, ...], dtype: torch.dtype, affine: bool = True
) -> list[Any]:
    u = LAYOUTS[layout](shape, dtype)
    z = LAYOUTS[layout](shape, dtype)
    C = shape[1]
    return [
        u,
        z,
        torch.randn(C, dtype=dtype) if affine else None,
        torch.randn(C, dtype=dtype) if affine else None,
    ]


def statistics(C: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(C, dtype=dtype), torch.rand(C, dtype=dtype) + 0.1


def widened(arguments: Sequence[Any]) -> list[Any]:
    return [a.double() if isinstance(a, Tensor) else a for a in arguments]


def run(
    function: Function, arguments: Sequence[Any], wanted: Sequence[int], grad: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The result, and the gradients of the arguments with the numbers `wanted`."""
    leaves = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
    for i in wanted:
        leaves[i].requires_grad_()
    out = function(*leaves)
    if grad is None or not wanted:
        return out.detach(), ()
    return out.detach(), torch.autograd.grad(out, [leaves[i] for i in wanted], grad.to(out.dtype))


def check(
    fused: Function, plain: Function, arguments: Sequence[Any], wanted: Sequence[int] | None = None
) -> Tensor:
    """Compare the result and every wanted gradient with float64; returns the fused result."""
    if wanted is None:
        wanted = [i for i, a in enumerate(arguments) if isinstance(a, Tensor)]
    grad = torch.randn_like(arguments[0]).contiguous()
    found, plainly, exact = (
        run(f, a, wanted, grad)
        for f, a in ((fused, arguments), (plain, arguments), (plain, widened(arguments)))
    )
    assert_as_accurate(found[0], plainly[0], exact[0])
    # Where a gradient is one sum of many summands that cancel, plain PyTorch may be exact by chance. The
    # scale is then that of all gradients; products on GPUs take operands rounded to the dtype besides.
    largest = max((g.abs().max().item() for g in exact[1] if g.isfinite().all()), default=0.0)
    summands = (2 if backends.forced_backend() in ("triton", "cuda") else 1) * largest
    for i, *grads in zip(wanted, found[1], plainly[1], exact[1], strict=True):
        assert_as_accurate(*grads, what=f"gradient of argument {i}", least_scale=summands)
    return found[0]


def gate(groups: int, sigmoid: bool = True) -> tuple[Function, Function]:
    return (
        lambda *a: functional.channel_gate(*a, groups, sigmoid),
        lambda *a: reference.channel_gate(*a, groups, sigmoid),
    )


def norm(mean: Tensor | None = None, var: Tensor | None = None) -> tuple[Function, Function]:
    """norm_gate with these statistics, or with those of the batch."""
    return (
        lambda *a: functional.norm_gate(*a, mean, var, training=mean is None, eps=EPS),
        lambda u, *a: reference.norm_gate(
            u, *a, *(None if s is None else s.to(u.dtype) for s in (mean, var)), EPS
        ),
    )
