"""Predictions as files: CSV and JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from gcsa_ext.atomic import whole_file
from gcsa_ext.corpora import EMOTIONS
from gcsa_ext.inference.rows import FramePrediction


def write_csv(path: str | Path, rows: Iterable[FramePrediction], classes: Sequence[str] = EMOTIONS) -> None:
    """Write one line per frame: frame, time in s, label, a probability per class, face, audio (0 or 1), note.

    Rows are written as they come, to a temporary name; the file is there whole or not at all.
    """
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["frame", "time", "label", *classes, "face", "audio", "note"])
        for row in rows:
            probabilities = (f"{p:.6f}" for p in row.probabilities)
            writer.writerow(
                [
                    row.frame,
                    f"{row.time:.6f}",
                    row.label,
                    *probabilities,
                    int(row.face),
                    int(row.audio),
                    row.note,
                ]
            )


def write_json(
    path: str | Path, rows: Iterable[FramePrediction], classes: Sequence[str] = EMOTIONS, source: str = ""
) -> None:
    """Write ``{"video": source, "classes": [...], "frames": [{"frame", "time", "label", ...}, ...]}``.

    The frames have the fields of :class:`FramePrediction`. Rows are written as they come, to a temporary
    name; the file is there whole or not at all.
    """
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(f'{{"video": {json.dumps(source)},\n"classes": {json.dumps(list(classes))},\n"frames": [')
        for position, row in enumerate(rows):
            values = row._asdict()
            values["time"] = round(row.time, 6)
            values["probabilities"] = [round(p, 6) for p in row.probabilities]
            file.write(("\n" if position == 0 else ",\n") + json.dumps(values))
        file.write("\n]}\n")
