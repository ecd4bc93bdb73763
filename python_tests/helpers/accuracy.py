"""The largest error that a fused result may have, in all tests.

Every result is compared with the definition in float64. Rounding errors depend on the input, so the error may
be at most 1.5 times the largest error of plain PyTorch on the same input in the same dtype, plus a floor
relative to the largest value. The floor is a few roundings of the dtype: where plain PyTorch is exact by
chance, another order of summation is not wrong.

A whole module in training amplifies the rounding errors of its early layers, those of plain PyTorch as well,
by factors that depend on chance and have an average ratio of 1: there the factor is MODULE_FACTOR.
"""

from __future__ import annotations

import torch
from torch import Tensor

FACTOR = 1.5
MODULE_FACTOR = 4.0
FLOOR = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}


def assert_as_accurate(
    found: Tensor,
    plain: Tensor,
    exact: Tensor,
    what: str = "result",
    factor: float = FACTOR,
    least_scale: float = 0.0,
) -> None:
    """Check `found` against `exact` (float64), by the error of `plain` (of found's dtype).

    `least_scale` is the size of the summands where the exact sum is 0 because they cancel.
    """
    assert found.shape == plain.shape == exact.shape, what
    assert found.dtype == plain.dtype, what
    floor = FLOOR[found.dtype]
    found, plain, exact = found.detach().double(), plain.detach().double(), exact.detach().double()
    assert torch.equal(found.isnan(), exact.isnan()), f"{what}: NaN in other places"
    infinite = exact.isinf()
    assert torch.equal(found[infinite], exact[infinite]), f"{what}: infinite in other places"
    finite = exact.isfinite()
    if not finite.any():
        return
    error, allowed = (found - exact)[finite].abs().max(), (plain - exact)[finite].abs().max() * factor
    allowed = allowed.nan_to_num(0.0) + floor * max(exact[finite].abs().max().item(), least_scale)
    assert error <= allowed, f"{what}: off by {error:.3g}, allowed are {allowed:.3g}"
