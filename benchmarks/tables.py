"""Writes measured numbers into README.md and docs/measurements: ``python benchmarks/tables.py``.

A measured number is kept in one file, benchmarks/measurements/<machine>.json, which
``python benchmarks/report.py --json`` writes. Between the markers BEGIN and END, README.md shows a few rows
of one machine and docs/measurements/<machine>.md all rows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.case import shape_name
from harness.machine import ROOT, write

BEGIN, END = "<!-- speed table begin -->", "<!-- speed table end -->"
README_MACHINE = "zen4"
README_ROWS = (
    "GCSA eval forward 8x64x56x56",
    "GCSA eval forward 8x512x7x7",
    "GCSA train forward + backward 8x64x56x56",
    "GCSA train forward + backward 8x512x7x7",
    "GCSA eval forward N=1 1x64x7x7",
    "GCSA eval forward bfloat16 autocast 8x128x28x28",
    "FrequencyMasking iid 64x1x80x400",
    "FrequencyMasking iid in place 64x1x80x400",
)


def load(machine: str) -> dict[str, Any]:
    """The report of benchmarks/measurements/<machine>.json."""
    report: dict[str, Any] = json.loads(
        (ROOT / "benchmarks" / "measurements" / f"{machine}.json").read_text()
    )
    return report


def caption(report: dict[str, Any]) -> str:
    """Of what, when and how the report was measured."""
    return (
        f"Revision {report['revision']}, torch {report['versions']['torch']}, {report['date']}, "
        f"`{report['command']}`:\n\n"
    )


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with numbers aligned right."""
    words = ("operation", "shape", "fastest peer")
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join('---' if name in words else '--:' for name in head)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def passed(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of the cases that passed, by name."""
    rows = (row for row in report["rows"] if not row["failure"])
    return {f"{row['operation']} {shape_name(row['shape'])}": row for row in rows}


def _times(row: dict[str, Any]) -> list[str]:
    """Operation, shape, our time, the fastest peer and its time."""
    ours, its = (f"{1e3 * row['times'][row[who]]['median']:.3g}" for who in ("ours", "best_peer"))
    return [row["operation"], shape_name(row["shape"]), ours, row["best_peer"], its]


HEAD = ("operation", "shape", "gcsa_ext ms", "fastest peer", "peer ms")


def short_speed_table(report: dict[str, Any], names: Iterable[str] = README_ROWS) -> str:
    """The named cases, in this order.

    Raises:
        KeyError: the report lacks one of them.
    """
    rows = passed(report)
    chosen = [rows[name] for name in names]
    return markdown([*HEAD, "ratio"], ([*_times(row), f"**{row['ratio']:.2f}**"] for row in chosen))


def speed_table(report: dict[str, Any]) -> str:
    """All cases that passed; of a report without times the ratios alone."""
    rows = passed(report).values()
    if not any("times" in row for row in rows):
        cells = ([row["operation"], shape_name(row["shape"]), f"{row['ratio']:.2f}"] for row in rows)
        return caption(report) + markdown(["operation", "shape", "ratio"], cells)
    found = []
    for row in rows:
        low, high = row["ratio_quartiles"]
        rounds = row["times"][row["ours"]]["rounds"]
        ratio = f"**{row['ratio']:.2f}** ({low:.2f} to {high:.2f})"
        found.append([*_times(row), ratio, f"{row['rounds_on_separate_caches']} of {rounds}"])
    return caption(report) + markdown([*HEAD, "ratio (quartiles)", "cores apart"], found)


def between_markers(text: str, table: str) -> str:
    """The text with the table between its markers.

    Raises:
        ValueError: the text has not exactly one pair of them.
    """
    before, *rest = text.split(BEGIN)
    if len(rest) != 1 or rest[0].count(END) != 1 or END in before:
        raise ValueError(f"expected one {BEGIN} and one {END} behind it")
    return f"{before}{BEGIN}\n{table}\n{END}{rest[0].partition(END)[2]}"


def pages() -> dict[Path, str]:
    """All files that show measured numbers, with the text that they should have."""
    tables = {ROOT / "README.md": short_speed_table(load(README_MACHINE))}
    for file in sorted((ROOT / "docs" / "measurements").glob("*.md")):
        if (ROOT / "benchmarks" / "measurements" / f"{file.stem}.json").exists():
            tables[file] = speed_table(load(file.stem))
    return {file: between_markers(file.read_text(), table) for file, table in tables.items()}


def main() -> int:
    for file, text in pages().items():
        if file.read_text() != text:
            write(file, text)
            print(file.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
