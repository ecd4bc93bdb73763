"""How exact GCSA's result and gradients are: errors against float64, beside those of eager PyTorch."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from cases import Call
from plain import plain_copy
from torch import Tensor

from gcsa_ext.nn import GCSA

FACTOR, FLOOR = 1.5, 1e-6
"""What is allowed: so many times eager's own error, or this relative to the size of the tensor."""

CANCELS = ("spatial_attention.0.bias", "spatial_attention.3.bias")
"""In training the norm behind a convolution takes its bias out again: the exact gradient is 0."""

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Error:
    """Errors of one tensor, root mean square over all its elements, relative to that of the exact one.

    Attributes:
        tensor: "result", "gradient of x", or the name of the parameter whose gradient it is.
        ours, eager: of gcsa_ext and of plain PyTorch, both in float32.
    """

    tensor: str
    ours: float
    eager: float

    @property
    def of_allowed(self) -> float:
        """Ours in terms of what is allowed: more than 1 is too much."""
        return self.ours / max(FACTOR * self.eager, FLOOR)


@functools.cache
def errors(shape: tuple[int, ...], training: bool) -> list[Error]:
    """Of GCSA on (N, C, H, W) standard normal input; in training also of every gradient.

    Squares are averaged over several inputs and weights: the error of one sum is a matter of chance.
    """
    squares: dict[str, Tensor] = {}
    for seed in SEEDS:
        torch.manual_seed(seed)
        module, x, grad = GCSA(shape[1]).train(training), torch.randn(shape), torch.randn(shape)
        plain = plain_copy(module)
        exact = copy.deepcopy(plain).double()
        names = ["result"]
        if training:
            names += ["gradient of x", *(name for name, _ in module.named_parameters())]
        ours, eager, truth = (_step(function, x, grad, training) for function in (module, plain, exact))
        # Where the exact value is 0, the summands' size is the scale.
        largest = max(t.abs().max().item() for t in truth)
        for name, a, b, c in zip(names, ours, eager, truth, strict=True):
            scale = largest**2 if training and name in CANCELS else _mean_square(c)
            found = torch.tensor([_mean_square(a - c), _mean_square(b - c), scale], dtype=torch.float64)
            squares[name] = squares.get(name, torch.zeros(3, dtype=torch.float64)) + found
    return [
        Error(name, (ours / scale) ** 0.5, (eager / scale) ** 0.5)
        for name, (ours, eager, scale) in ((name, found.tolist()) for name, found in squares.items())
    ]


def _step(module: torch.nn.Module, x: Tensor, grad: Tensor, training: bool) -> Sequence[Tensor]:
    dtype = next(module.parameters()).dtype
    return Call(module, (x.to(dtype, copy=True).requires_grad_(training),), grad.to(dtype), training)()


def _mean_square(x: Tensor) -> float:
    return x.double().square().mean().item()
