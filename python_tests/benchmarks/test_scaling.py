"""benchmarks/scaling.py: what is timed, and that the same times give the same picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import scaling
from PIL import Image


def test_ours_is_beside_the_faster_layout_of_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(calls: dict[str, Any], seconds: float) -> dict[str, list[float]]:
        assert list(calls) == ["gcsa_ext", "eager", "eager channels_last"] and seconds == 0.5
        for call in calls.values():
            result, grad, *weights = call()  # a training step
            assert result.shape == grad.shape == (1, 4, 3, 3) and len(weights) == 12
        return {"gcsa_ext": [2.0, 1.0, 9.0], "eager": [7.0] * 3, "eager channels_last": [5.0] * 3}

    monkeypatch.setattr(scaling, "measure", measure)
    assert scaling.times((1, 4, 3, 3), training=True, seconds=0.5) == {"ours": 2.0, "eager": 5.0}


def test_the_same_times_are_drawn_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def draw(name: str, slowdown: float) -> bytes:
        found = {
            passed: {
                growing: [{"value": v, "ours": 1e-4 * v, "eager": slowdown * 1e-4 * v} for v in values]
                for growing, (values, _, _) in scaling.SIZES.items()
            }
            for passed in scaling.PASSES
        }
        (tmp_path / "times.json").write_text(json.dumps({"found": found, "note": "a note"}))
        argv = ["scaling.py", "--redraw", str(tmp_path / "times.json"), "--output", str(tmp_path / name)]
        monkeypatch.setattr("sys.argv", argv)
        scaling.main()
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (900, 560) and len(picture.getcolors()) > 10
        return (tmp_path / name).read_bytes()

    assert draw("a.png", 5.0) == draw("b.png", 5.0) != draw("c.png", 9.0)
