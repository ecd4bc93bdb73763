"""How exact GCSA's result and gradients are: errors against float64, beside those of eager PyTorch."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from cases import Call
from plain import plain_copy
from torch import Tensor, nn

from gcsa_ext.nn import GCSA

FACTOR, FLOOR = 1.5, 1e-6
"""What is allowed: so many times eager's own error, or this relative to the size of the tensor."""

CANCELS = ("gradient of spatial_attention.0.bias", "gradient of spatial_attention.3.bias")
"""Gradients that are 0 in training: the norm behind a convolution takes its bias out again."""

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Error:
    """Errors of one tensor, root mean square over all its elements, relative to that of the exact one.

    Attributes:
        tensor: "result", "gradient of x" and so on.
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
    """Of GCSA's result and all gradients on (N, C, H, W) standard normal input, see `_steps`.

    Squares are averaged over several inputs and weights: the error of one sum is a matter of chance.
    """
    squares: dict[str, Tensor] = {}
    for seed in SEEDS:
        torch.manual_seed(seed)
        module, x, grad = GCSA(shape[1]), torch.randn(shape), torch.randn(shape)
        _use_statistics_of(x, module)
        plain = plain_copy(module.train(training))
        exact = copy.deepcopy(plain).double()
        names = ["result without a graph", "result", "gradient of x"]
        names += [f"gradient of {name}" for name, _ in module.named_parameters()]
        ours, eager, truth = (_steps(function, x, grad) for function in (module, plain, exact))
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


def _use_statistics_of(x: Tensor, module: GCSA) -> None:
    """Make the running statistics those of a batch, as after training; fresh ones hide most of the error."""
    for layer in module.spatial_attention:
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        module.train()(x)


def _steps(module: nn.Module, x: Tensor, grad: Tensor) -> Sequence[Tensor]:
    """The result of inference, then the result and the gradients of a step with a backward pass."""
    dtype = next(module.parameters()).dtype
    inputs = (x.to(dtype, copy=True).requires_grad_(),)
    calls = [Call(module, inputs, grad.to(dtype), backward) for backward in (False, True)]
    return [tensor for call in calls for tensor in call()]


def _mean_square(x: Tensor) -> float:
    return x.double().square().mean().item()
