"""The difference between the results of two contenders."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest root mean square difference of two tensors, relative to the root mean square of `expected`.

    A tensor much smaller than the largest, such as the gradient of a bias in front of a batch norm (0 but for
    rounding), is compared on the scale of a tenth of the largest.

    Returns:
        inf where shapes differ or where there is a NaN.
    """
    if [t.shape for t in found] != [t.shape for t in expected]:
        return math.inf
    scales = [_root_mean_square(t) for t in expected]
    smallest = max(0.1 * max(scales), 1e-30)
    errors = [
        _root_mean_square(a.to(b.dtype) - b) / max(scale, smallest)
        for scale, a, b in zip(scales, found, expected, strict=True)
    ]
    return max(error if math.isfinite(error) else math.inf for error in errors)


def _root_mean_square(x: Tensor) -> float:
    return torch.linalg.vector_norm(x, dtype=torch.float64).item() / max(x.numel(), 1) ** 0.5


def error_of(call: Callable[[], Sequence[Tensor]], truth: Callable[[], Sequence[Tensor]]) -> float:
    """`relative_error` of what two calls return, run from the same random state.

    The second result counts: a first call may compile, and draw random numbers as it does. The random state
    is the same both times, so that masking in place masks no more.
    """
    for _ in range(2):
        torch.manual_seed(1)
        expected = truth()
        torch.manual_seed(1)
        found = call()
    return relative_error(found, expected)


def in_one_line(problem: Exception) -> str:
    """Class and first line of an exception."""
    return f"{type(problem).__name__}: {(str(problem).strip().splitlines() or [''])[0][:200]}"
