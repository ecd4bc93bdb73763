"""Writes measured numbers into README.md and docs/measurements: ``python benchmarks/tables.py``.

A number that was measured is kept in one file, benchmarks/measurements/<machine>.json, which
``python benchmarks/report.py --json`` writes. README.md shows a few rows of one machine between

    <!-- speed table begin -->
    <!-- speed table end -->

and docs/measurements/<machine>.md all rows; between markers with "limits table" and "memory table" in their
place also what is demanded and the memory of a training step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.case import shape_name
from harness.machine import ROOT, write

README_MACHINE = "zen5"
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
    """A Markdown table; columns of numbers, which are all but "operation" and the like, are aligned right."""
    words = ("operation", "shape", "fastest peer", "what", "demanded", "met", "contender")
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
        found.append([*_times(row), ratio, f"{row['rounds_apart']} of {rounds}"])
    return caption(report) + markdown([*HEAD, "ratio (quartiles)", "cores apart"], found)


def limits_table(report: dict[str, Any]) -> str:
    """What is demanded, what was found, and whether that is enough."""
    found = []
    for bar in report["bars"]:
        value = "failed" if bar["failure"] else "" if bar["found"] is None else f"{bar['found']:.3g}"
        met = {None: "unknown", True: "yes", False: "no"}[bar["met"]]
        found.append([bar["what"], value, f"{bar['comparison']} {bar['limit']:.3g} {bar['of']}", met])
    return caption(report) + markdown(["what", "found", "demanded", "met"], found)


def memory_table(report: dict[str, Any]) -> str:
    """Memory of a training step of GCSA."""
    found = []
    for row in [row for rows in report["memory"] if not isinstance(rows, str) for row in rows]:
        peak = "" if row["peak"] is None else f"{row['peak'] / 1e6:.1f}"
        saved = f"{row['saved'] / row['input']:.2f}"
        found.append([shape_name(row["shape"]), row["contender"], saved, peak])
    return caption(report) + markdown(["shape", "contender", "saved, times the input", "peak MB"], found)


def between_markers(text: str, kind: str, content: str) -> str:
    """The text with `content` between the markers <!-- KIND begin --> and <!-- KIND end -->.

    Raises:
        ValueError: the text has not exactly one pair of them.
    """
    begin, end = f"<!-- {kind} begin -->", f"<!-- {kind} end -->"
    before, *rest = text.split(begin)
    if len(rest) != 1 or rest[0].count(end) != 1 or end in before:
        raise ValueError(f"expected one {begin} and one {end} behind it")
    return f"{before}{begin}\n{content}\n{end}{rest[0].partition(end)[2]}"


def page(text: str, report: dict[str, Any]) -> str:
    """A page of docs/measurements with the tables that it has markers for."""
    for kind, table in (
        ("speed table", speed_table),
        ("limits table", limits_table),
        ("memory table", memory_table),
    ):
        if f"<!-- {kind} begin -->" in text:
            text = between_markers(text, kind, table(report))
    return text


def pages() -> dict[Path, str]:
    """All files that show measured numbers, with the text that they should have."""
    readme = ROOT / "README.md"
    table = short_speed_table(load(README_MACHINE))
    found = {readme: between_markers(readme.read_text(), "speed table", table)}
    for file in sorted((ROOT / "docs" / "measurements").glob("*.md")):
        if (ROOT / "benchmarks" / "measurements" / f"{file.stem}.json").exists():
            found[file] = page(file.read_text(), load(file.stem))
    return found


def main() -> int:
    for file, text in pages().items():
        if file.read_text() != text:
            write(file, text)
            print(file.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
