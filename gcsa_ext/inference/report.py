"""Scores as a table of text, as JSON, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from gcsa_ext.atomic import whole_file
from gcsa_ext.inference.metrics import Scores
from gcsa_ext.inference.plots import plot_confusion

COLUMNS = {"audio": "audio", "visual": "face", "fused": "fused"}


def format_scores(scores: Mapping[str, Scores], classes: Sequence[str]) -> str:
    """A table of F1 scores: one line per class, and the macro-F1 in the last line."""
    width = max(len("macro-F1"), *map(len, classes))
    lines = [" " * width + "".join(f"{title:>8}" for title in COLUMNS.values())]
    for index, name in enumerate(classes):
        lines.append(f"{name:<{width}}" + "".join(f"{scores[key].class_f1[index]:8.3f}" for key in COLUMNS))
    lines.append(f"{'macro-F1':<{width}}" + "".join(f"{scores[key].macro_f1:8.3f}" for key in COLUMNS))
    return "\n".join(lines)


def write_scores(
    folder: str | Path, split: str, scores: Mapping[str, Scores], classes: Sequence[str]
) -> tuple[Path, Path]:
    """Write ``scores-<split>.json`` and the fused confusion matrix ``confusion-<split>.png``.

    Returns:
        The two files' paths.
    """
    folder = Path(folder)
    values = {
        "split": split,
        "classes": list(classes),
        **{
            key: {
                "macro_f1": value.macro_f1,
                "class_f1": dict(zip(classes, value.class_f1, strict=True)),
                "clips": value.count,
                "confusion": value.confusion.tolist(),
            }
            for key, value in scores.items()
        },
    }
    table = folder / f"scores-{split}.json"
    with whole_file(table) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    fused = scores["fused"]
    title = f"{split}: fused macro-F1 {fused.macro_f1:.3f}, {fused.count} clips"
    return table, plot_confusion(folder / f"confusion-{split}.png", fused.confusion, classes, title)
