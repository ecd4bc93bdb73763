"""How exact a fused result has to be, decided once for all tests.

Every result is compared with the definition computed in float64. Rounding errors depend on the input, so
the yardstick is what plain PyTorch makes of the same input in the same dtype: a fused result may be off by at
most 1.5 times plain PyTorch's largest error, plus a floor, relative to the largest value. The floor is a few
roundings of the dtype: where plain PyTorch happens to be exact, another order of summation need not be wrong.

A whole module in training amplifies the rounding errors of its early layers by chance, plain PyTorch's as
well as ours, with an average ratio of 1; there the factor is MODULE_FACTOR.
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
