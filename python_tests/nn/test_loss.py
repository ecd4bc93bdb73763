"""CoarseFineLoss and BimodalLoss against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gcsa_ext.nn import BimodalLoss, BimodalOutput, CoarseFineLoss

GROUPS = ((0, 2), (1,), (3, 4))


def batch(n: int = 7, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(n, 5, generator=generator, dtype=torch.float64).to(dtype)
    target = torch.randint(0, 5, (n,), generator=generator)
    target[1] = -1
    return logits, target


@pytest.mark.parametrize("coarse_weight", [0.0, 0.5, 2.0])
def test_formula(coarse_weight: float) -> None:
    logits, target = batch(dtype=torch.float64)
    group_of = {k: group for group in GROUPS for k in group}
    expected = []
    for row, y in zip(logits, target.tolist(), strict=True):
        p = row.softmax(0).tolist()
        coarse = sum(p[k] for k in group_of.get(y, ()))
        expected.append(0.0 if y < 0 else -math.log(p[y]) - coarse_weight * math.log(coarse))
    loss = CoarseFineLoss(GROUPS, coarse_weight, reduction="none")
    torch.testing.assert_close(loss(logits, target), torch.tensor(expected, dtype=torch.float64))
    mean = CoarseFineLoss(GROUPS, coarse_weight)(logits, target)
    torch.testing.assert_close(mean.item(), sum(expected) / (len(expected) - 1))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weight", [None, [0.5, 1.0, 2.0, 0.0, 3.0]])
def test_without_coarse_term_it_is_cross_entropy(
    reduction: str, smoothing: float, weight: list[float] | None
) -> None:
    logits, target = batch()
    mine = CoarseFineLoss(GROUPS, 0.0, weight, smoothing, reduction=reduction)  # type: ignore[arg-type]
    expected = F.cross_entropy(
        logits,
        target,
        None if weight is None else torch.tensor(weight),
        ignore_index=-1,
        reduction=reduction,
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(mine(logits, target), expected)


def test_logits_and_log_probabilities_agree() -> None:
    logits, target = batch()
    loss = CoarseFineLoss(GROUPS, label_smoothing=0.1)
    torch.testing.assert_close(
        loss(logits, target), loss(logits.log_softmax(dim=1), target, log_probabilities=True)
    )


@pytest.mark.parametrize("log_probabilities", [False, True])
def test_gradcheck(log_probabilities: bool) -> None:
    logits, target = batch(4, torch.float64)
    loss = CoarseFineLoss(GROUPS, 0.7, [1.0, 2.0, 0.5, 1.5, 1.0], 0.1).double()
    x = (logits.log_softmax(dim=1) if log_probabilities else logits).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: loss(v, target, log_probabilities), x)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_to_count_gives_zero_with_a_gradient(reduction: str) -> None:
    logits = torch.full((3, 8), torch.nan, requires_grad=True)
    loss = CoarseFineLoss(reduction=reduction)(logits, torch.full((3,), -1))  # type: ignore[arg-type]
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, 0.0, -1e4], [-1e4] * 5], requires_grad=True)
    loss = CoarseFineLoss(GROUPS, label_smoothing=0.1)(logits, torch.tensor([1, 4]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_default_groups_are_those_of_the_abaw_classes() -> None:
    p = torch.tensor([[0.1, 0.1, 0.1, 0.1, 0.2, 0.1, 0.2, 0.1]])
    loss = CoarseFineLoss(coarse_weight=1.0)
    fear = loss(p.log(), torch.tensor([3]), log_probabilities=True)
    torch.testing.assert_close(fear.item(), -math.log(0.1) - math.log(0.4))
    happiness = loss(p.log(), torch.tensor([4]), log_probabilities=True)
    torch.testing.assert_close(happiness.item(), -2 * math.log(0.2))


def test_whole_network() -> None:
    torch.manual_seed(0)
    visual, audio = torch.randn(4, 8), torch.randn(4, 8)
    fused = torch.randn(4, 8).log_softmax(dim=1)
    present = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]]).bool()
    target = torch.tensor([3, 0, 7, 5])
    output = BimodalOutput(visual, audio, fused, fused.exp(), present)
    part = CoarseFineLoss()
    expected = part(fused[:3], target[:3], log_probabilities=True) + 0.5 * (
        part(visual[:2], target[:2]) + part(audio[[0, 2]], target[[0, 2]])
    )
    torch.testing.assert_close(BimodalLoss()(output, target), expected)
    torch.testing.assert_close(
        BimodalLoss(modality_weight=0.0)(output, target), part(fused[:3], target[:3], log_probabilities=True)
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CoarseFineLoss([[0, 1], [1]]), "\\[\\[0, 1\\], \\[1\\]\\]"),
        (lambda: CoarseFineLoss([[0], [2]]), "exactly once"),
        (lambda: CoarseFineLoss([[0], []]), "non-empty"),
        (lambda: CoarseFineLoss(coarse_weight=-1), "-1"),
        (lambda: CoarseFineLoss(label_smoothing=1.5), "1.5"),
        (lambda: CoarseFineLoss(reduction="max"), "'max'"),  # type: ignore[arg-type]
        (lambda: CoarseFineLoss(class_weight=[1.0, 2.0]), "\\(2,\\)"),
        (lambda: CoarseFineLoss()(torch.zeros(2, 7), torch.zeros(2).long()), "\\(2, 7\\)"),
        (lambda: CoarseFineLoss()(torch.zeros(2, 8).long(), torch.zeros(2).long()), "int64"),
        (lambda: CoarseFineLoss()(torch.zeros(2, 8), torch.zeros(3).long()), "\\(3,\\)"),
        (lambda: CoarseFineLoss()(torch.zeros(2, 8), torch.zeros(2)), "float32"),
        (lambda: BimodalLoss(modality_weight=-0.5), "-0.5"),
    ],
)
def test_errors(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()


def test_a_target_that_is_no_class_is_an_error() -> None:
    with pytest.raises((IndexError, RuntimeError)):
        CoarseFineLoss()(torch.zeros(2, 8), torch.tensor([0, 8]))
