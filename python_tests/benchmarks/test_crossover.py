"""benchmarks/crossover.py: both ways are compared and timed, and where the rule is wrong is marked."""

from __future__ import annotations

from typing import Any

import crossover
import pytest
import torch

from gcsa_ext import use_backend
from gcsa_ext.backends import cpu


@pytest.mark.parametrize(
    ("shape", "dtype", "layout", "rules"),
    [
        (crossover.Shape(3, 4, 5, 2, 6), torch.float32, torch.contiguous_format, {"direct"}),
        (crossover.Shape(7, 16, 16, 1, 7), torch.float32, torch.contiguous_format, {"fft"}),
        (crossover.Shape(7, 16, 16, 1, 7), torch.bfloat16, torch.channels_last, {"fft", "amx", "direct"}),
    ],
    ids=["torch's are the rule", "transforms are the rule", "bfloat16"],
)
def test_the_transforms_are_forced_on_every_shape(
    monkeypatch: pytest.MonkeyPatch,
    shape: crossover.Shape,
    dtype: torch.dtype,
    layout: torch.memory_format,
    rules: set[str],
) -> None:
    asked, rule = [], cpu.explain_convolution

    def measure(calls: dict[str, Any], seconds: float, **_: Any) -> dict[str, list[float]]:
        asked.append((cpu.explain_convolution(None, None)[0], seconds))
        results = {name: call() for name, call in calls.items()}
        assert {(result.shape, result.dtype) for result in results.values()} == {
            ((shape.batch, shape.outputs, shape.size, shape.size), dtype)
        }
        return {"direct": [3.0, 1.0, 9.0], "ours": [1.5, 1.0, 2.0]}

    monkeypatch.setattr(crossover, "measure", measure)
    found = crossover.compare(shape, 0.25, dtype, layout)
    assert asked == [("fft", 0.25)]
    assert found.ratio == 2.0 and found.rule in rules
    assert cpu.explain_convolution is rule


def test_a_wrong_result_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossover.functional, "conv2d_same", lambda x, *_: torch.zeros(2, 5, 6, 6))
    with pytest.raises(RuntimeError, match="3x3, 4 to 5, 2x6x6: error 1"):
        crossover.compare(crossover.Shape(3, 4, 5, 2, 6), 0.0)


def test_another_backend_cannot_be_compared() -> None:
    with use_backend("reference"), pytest.raises(RuntimeError, match="'reference' is forced"):
        crossover.compare(crossover.Shape(3, 4, 5, 2, 6), 0.0)


def test_it_is_marked_where_the_rule_is_wrong() -> None:
    def shape(inputs: int, batch: int) -> crossover.Shape:
        return crossover.Shape(5, inputs, 4, batch, 7)

    found = {
        shape(4, 1): crossover.Found(2.0, "fft"),
        shape(4, 8): crossover.Found(0.5, "fft"),
        shape(16, 1): crossover.Found(0.95, "fft", disturbed=True),
        shape(16, 8): crossover.Found(2.0, "direct"),
        shape(64, 8): crossover.Found(0.5, "direct"),
    }
    lines = crossover.tables(found).splitlines()
    assert lines[:5] == [
        "| 5x5 | 1x7x7 | 8x7x7 |",
        "|---|--:|--:|",
        "| 4 to 4 | 2.00 | **0.50** |",
        "| 16 to 4 | 0.95 disturbed | **(2.00)** |",
        "| 64 to 4 |  | (0.50) |",
    ]
    assert "wrong by more than 10% for 2 of 5 shapes" in lines[-1]
    assert "at worst 2.00 times" in lines[-1]


def test_quick_has_few_shapes() -> None:
    everything, few = list(crossover.shapes(quick=False)), list(crossover.shapes(quick=True))
    assert len(set(everything)) == len(everything) == 320
    assert 0 < len(few) <= 12 and set(few) <= set(everything)
