"""Scores, and the files in which they are kept."""

import json
from pathlib import Path

import pytest
import torch

from gcsa_ext.inference.metrics import score
from gcsa_ext.inference.plots import plot_confusion
from gcsa_ext.inference.report import format_scores, write_scores


def test_macro_f1_counts_absent_classes_as_zero() -> None:
    predicted = torch.tensor([0, 0, 1, 1, 2, 3])
    labels = torch.tensor([0, 1, 1, 1, 0, -1])
    result = score(predicted, labels, 4)
    assert result.class_f1 == pytest.approx((0.5, 0.8, 0.0, 0.0))
    assert result.macro_f1 == pytest.approx(1.3 / 4)
    assert result.count == 5
    assert result.confusion.tolist() == [[1, 0, 1, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert score(torch.zeros(2, 4), torch.tensor([-1, -1]), 4).macro_f1 == 0.0


def test_report(tmp_path: Path) -> None:
    result = score(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), 2)
    scores = dict.fromkeys(("fused", "visual", "audio"), result)
    table, picture = write_scores(tmp_path, "test", scores, ["yes", "no"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads(table.read_text())["fused"]["confusion"] == [[1, 1], [0, 1]]
    assert format_scores(scores, ["yes", "no"]).splitlines()[-1].split() == ["macro-F1", *["0.667"] * 3]
    with pytest.raises(ValueError, match="\\(2, 2\\)"):
        plot_confusion(tmp_path / "x.png", result.confusion, ["a", "b", "c"])
