"""ProportionalFusion against its formula in float64, its properties, and its edges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gcsa_ext.nn import ProportionalFusion
from gcsa_ext.nn.fusion import class_f1

RULES = ("score", "class", "confidence")
SCORES = [0.3, 0.6, 0.2]
CLASS_SCORES = [[0.1, 0.5, 0.0, 0.9], [0.7, 0.2, 0.4, 0.3], [0.2, 0.2, 0.6, 0.1]]


def fusion(rule: str) -> ProportionalFusion:
    module = ProportionalFusion(4, num_modalities=3, rule=rule)  # type: ignore[arg-type]
    module.set_scores(SCORES, CLASS_SCORES)
    return module


def formula(rule: str, logits: list[Tensor], present: Tensor) -> Tensor:
    """The sums of the specification, one sample and one modality at a time, in float64."""
    rows = []
    for n in range(len(logits[0])):
        there = [m for m in range(3) if present[n, m]]
        if not there:
            rows.append(torch.full((4,), 0.25, dtype=torch.float64))
            continue
        p = {m: logits[m][n].double().softmax(0) for m in there}
        if rule == "score":
            weight = {m: torch.tensor(SCORES[m]).double() for m in there}
        elif rule == "class":
            weight = {m: torch.tensor(CLASS_SCORES[m]).double().clamp(min=1e-6) for m in there}
        else:
            weight = {m: p[m].max() for m in there}
        total = torch.stack(list(weight.values())).sum(dim=0)
        row = torch.stack([weight[m] / total * p[m] for m in there]).sum(dim=0)
        rows.append(row / row.sum())
    return torch.stack(rows)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_formula(rule: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = [3 * torch.randn(8, 4, dtype=dtype) for _ in range(3)]
    present = torch.tensor([[n & 1, n & 2, n & 4] for n in range(8)]).bool()
    out = fusion(rule)(logits, present)
    assert out.dtype == dtype
    torch.testing.assert_close(
        out.exp().double(),
        formula(rule, logits, present),
        rtol=1e-5 if dtype == torch.float32 else 1e-7,
        atol=0,
    )


@pytest.mark.parametrize("rule", RULES)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_rows_sum_to_one_and_lie_between_the_modalities(rule: str, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 4))
    value = st.floats(-1e4, 1e4, width=32)
    logits = [
        torch.tensor(data.draw(st.lists(st.lists(value, min_size=4, max_size=4), min_size=n, max_size=n)))
        for _ in range(3)
    ]
    present = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=n, max_size=n))
    )
    out = fusion(rule)(logits, present).exp()
    torch.testing.assert_close(out.sum(dim=1), torch.ones(n), rtol=0, atol=1e-5)
    if rule != "class":  # a convex combination; the class rule is one only up to its divisor
        p = torch.stack([x.softmax(dim=1) for x in logits], dim=1)
        some = present.any(dim=1)
        low = p.masked_fill(~present[:, :, None], torch.inf).amin(dim=1)[some]
        high = p.masked_fill(~present[:, :, None], 0.0).amax(dim=1)[some]
        assert (out[some] >= low - 1e-5).all()
        assert (out[some] <= high + 1e-5).all()


@pytest.mark.parametrize("rule", RULES)
def test_extreme_logits_stay_finite(rule: str) -> None:
    rows = torch.tensor([[1e4, -1e4, 0, 0], [-1e4, -1e4, -1e4, -1e4], [1e4, 1e4, 0, 0]])
    logits = [rows.clone().requires_grad_() for _ in range(3)]
    out = fusion(rule)(logits, torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0]]).bool())
    out.sum().backward()
    assert out.isfinite().all()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in logits)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -torch.inf])
def test_absent_modality_is_not_looked_at(rule: str, garbage: float) -> None:
    torch.manual_seed(0)
    logits = [torch.randn(3, 4) for _ in range(3)]
    present = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0]]).bool()
    expected = fusion(rule)(logits, present)
    spoiled = [x.masked_fill(~present[:, m : m + 1], garbage).requires_grad_() for m, x in enumerate(logits)]
    out = fusion(rule)(spoiled, present)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    out.square().sum().backward()
    for modality, x in enumerate(spoiled):
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert (x.grad[~present[:, modality]] == 0).all()


@pytest.mark.parametrize("rule", RULES)
def test_gradcheck(rule: str) -> None:
    torch.manual_seed(0)
    module = fusion(rule).double()
    logits = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 0]]).bool()
    assert torch.autograd.gradcheck(lambda *x: module(x, present), logits)


def test_one_modality_decides_alone_even_with_score_zero() -> None:
    module = ProportionalFusion(3)
    module.set_scores([0.0, 0.0])
    logits = [torch.randn(2, 3), torch.randn(2, 3)]
    out = module(logits, torch.tensor([[True, False], [False, True]])).exp()
    torch.testing.assert_close(out[0], logits[0][0].softmax(0))
    torch.testing.assert_close(out[1], logits[1][1].softmax(0))
    mixed = module(logits).exp()
    torch.testing.assert_close(mixed, (logits[0].softmax(1) + logits[1].softmax(1)) / 2)


def test_class_f1_by_hand() -> None:
    predicted = torch.tensor([0, 0, 1, 1, 2])
    target = torch.tensor([0, 1, 1, 1, 0])
    # class 0: TP 1, FP 1, FN 1; class 1: TP 2, FN 1; class 2: FP 1; class 3: never named.
    torch.testing.assert_close(
        class_f1(predicted, target, 4), torch.tensor([0.5, 0.8, 0.0, 0.0], dtype=torch.float64)
    )


def test_fit_scores_each_modality_on_what_it_has() -> None:
    labels = torch.tensor([0, 1, 2, -1, 2])
    right = torch.eye(3)[labels.clamp(min=0)]
    wrong = right.roll(1, dims=1)
    second = torch.where(torch.tensor([1, 0, 1, 0, 1]).bool()[:, None], right, wrong)
    present = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1], [0, 1]]).bool()
    module = ProportionalFusion(3)
    macro = module.fit([right, second], labels, present)
    # The second modality errs only where it is absent or nothing is labelled, and never sees class 1.
    torch.testing.assert_close(macro, torch.tensor([1.0, 2 / 3], dtype=torch.float64))
    torch.testing.assert_close(module.scores, torch.tensor([1.0, 2 / 3]))
    torch.testing.assert_close(module.class_scores[1], torch.tensor([1.0, 0.0, 1.0]))
    restored = ProportionalFusion(3)
    restored.load_state_dict(module.state_dict())
    torch.testing.assert_close(restored.scores, module.scores, rtol=0, atol=0)


def test_bfloat16_logits_are_fused_in_float32() -> None:
    assert ProportionalFusion(3)([torch.randn(2, 3).bfloat16()] * 2).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ProportionalFusion(3, rule="vote"), "'vote'"),  # type: ignore[arg-type]
        (lambda: ProportionalFusion(0), "0"),
        (lambda: ProportionalFusion(3)([torch.zeros(2, 3)]), "2 modalities, got 1"),
        (lambda: ProportionalFusion(3)([torch.zeros(2, 3), torch.zeros(2, 4)]), "\\(2, 4\\)"),
        (lambda: ProportionalFusion(3)([torch.zeros(2, 3)] * 2, torch.ones(2, 2)), "float32"),
        (lambda: ProportionalFusion(3).set_scores([1.0]), "\\(1,\\)"),
        (lambda: ProportionalFusion(3).set_scores([1.0, -0.5]), "-0.5"),
        (lambda: ProportionalFusion(3).set_scores([1.0, float("nan")]), "nan"),
        (lambda: ProportionalFusion(3).fit([torch.zeros(2, 3)] * 2, torch.tensor([-1, -1])), "none of the 2"),
        (lambda: ProportionalFusion(3).fit([torch.zeros(2, 3)] * 2, torch.tensor([1])), "\\(1,\\)"),
    ],
)
def test_errors(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()
