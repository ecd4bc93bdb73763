"""report.md of ``python benchmarks/gpu.py``: limits met and missed, speeds, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from harness import verdicts
from harness.case import COMPILED, EAGER, LAST, OURS, shape_name
from harness.ceilings import Ceilings
from harness.results import Part, Results
from harness.verdicts import Verdict

GRAPH = " in a graph"
"""End of the name of a replayed CUDA graph."""
LARGE = 100e6
"""Bytes of a map that is larger than the L2 cache of a GPU, which is about 50 MB on Hopper."""


def fastest(row: dict[str, Any], names: Sequence[str], graph: bool = False) -> tuple[str, float] | None:
    """The fastest of these contenders in either memory layout, directly called or as a graph."""
    end = GRAPH if graph else ""
    found = {
        name: row["seconds"][name + layout + end]
        for name in names
        for layout in ("", LAST)
        if name + layout + end in row["seconds"]
    }
    return min(found.items(), key=lambda item: item[1]) if found else None


def our_names(row: dict[str, Any]) -> list[str]:
    """Our contenders by backend, without the memory layout; the chosen one first."""
    return [name for name in row["errors"] if name.startswith(OURS) and not name.endswith(LAST)]


def judge(results: Results) -> list[Verdict]:
    """Everything that has a limit and was measured."""
    found = []

    def faster(row: dict[str, Any], peer: str, limit: float, graph: bool = False) -> None:
        ours, other = fastest(row, our_names(row), graph), fastest(row, [peer], graph)
        if ours and other:
            what = f"{row['name']}{GRAPH if graph else ''}"
            found.append(Verdict(what, other[1] / ours[1], "at least", limit, f"times {peer}'s speed"))

    for row in results.of("row"):
        ours, attention = fastest(row, our_names(row)), row["operation"].startswith("GCSA")
        size = math.prod(row["shape"]) * getattr(torch, row["dtype"].removeprefix("torch.")).itemsize
        if ours and not attention and size >= LARGE:
            for ceilings in results.of("ceilings"):
                share = row["bytes"] / ours[1] / ceilings["bandwidth"]
                found.append(Verdict(row["name"], share, "at least", 0.8, "of the copy bandwidth"))
        if attention and row["backward"] and row["dtype"] == "torch.bfloat16":
            faster(row, EAGER, 1.5)
            faster(row, COMPILED, 1.15)
        if attention and not row["backward"]:
            faster(row, EAGER, 2.0, graph=True)
    peaks = {(tuple(m["shape"]), m["contender"]): m["peak"] for m in results.of("memory")}
    for (shape, contender), peak in peaks.items():
        if contender == OURS and (shape, EAGER) in peaks:
            what = f"peak memory of a training step {shape_name(shape)}"
            found.append(Verdict(what, peak / peaks[shape, EAGER], "at most", 0.5, "times eager's"))
    found += [Verdict(r["name"], r["seconds"], "at most", 10.0, "s") for r in results.of("first call")]
    return found


def row_cells(row: dict[str, Any], ceilings: Ceilings | None) -> list[str]:
    """A row of the table of speeds."""
    cells = [row["operation"], shape_name(row["shape"]), row["dtype"].removeprefix("torch.")]
    ours = None
    for graph in (True, False):
        ours, peer = fastest(row, our_names(row), graph), fastest(row, [EAGER, COMPILED], graph)
        cells[3:3] = [
            f"{ours[1] * 1e3:.4g}" if ours else "",
            *([peer[0], f"{peer[1] * 1e3:.4g}"] if peer else ["", ""]),
            f"**{peer[1] / ours[1]:.2f}**" if ours and peer else "",
        ]
    rate, share = "", ""
    if ours and ceilings:
        least, bound = ceilings.least_time(row["flops"], row["bytes"], row["dtype"])
        rate = f"{row['bytes'] / ours[1] / 1e9:.4g}" if bound == "bytes" else ""
        share = f"{least / ours[1]:.0%}"
    errors = [f"{row['errors'][name]:.1e}" if name in row["errors"] else "" for name in (OURS, EAGER)]
    return [*cells, rate, share, *errors]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> list[str]:
    """A Markdown table under a title; nothing where there are no rows."""
    lines = ["", title, "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows] if rows else []


def by_backend(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Rows that more than one backend has computed: milliseconds of each, as a graph where all have one."""
    found = []
    for row in rows:
        names = our_names(row)
        graph = all(fastest(row, [name], True) for name in names)
        times = [(name, fastest(row, [name], graph)) for name in names]
        measured = {name.removeprefix(OURS).strip() or row["chosen"]: time[1] for name, time in times if time}
        if len(measured) > 1:
            text = ", ".join(f"{name} {1e3 * seconds:.4g}" for name, seconds in measured.items())
            found.append([row["name"], row["chosen"], text, min(measured, key=lambda name: measured[name])])
    return found


def report(identity: dict[str, Any], results: Results, left: Sequence[Part]) -> str:
    """The text of report.md.

    Args:
        left: parts that were not measured yet.
    """
    rows, judged = results.of("row"), judge(results)
    ceilings = next((Ceilings(r["bandwidth"], r["rate"]) for r in results.of("ceilings")), None)
    lines = [f"# gcsa_ext on {identity['device']}", ""]
    lines += ["A dry run: tiny maps on a CPU. The times mean nothing.", ""] if identity["dry_run"] else []
    lines.append(", ".join(f"{name} {value}" for name, value in identity.items() if name != "dry_run") + ".")
    lines += [f"Tests: {found['status']}." for found in results.of("tests")]
    if ceilings:
        rates = ", ".join(f"{dtype} {rate / 1e12:.3g} TFLOP/s" for dtype, rate in ceilings.rate.items())
        lines.append(f"Copy {ceilings.bandwidth / 1e9:.4g} GB/s, products {rates}.")
    lines += ["", verdicts.table(judged)] if judged else []
    lines += table(
        [
            *("operation", "shape", "dtype", "ours", "best peer", "its ms", "ratio"),
            *("ours, graph", "best peer, graph", "its ms", "ratio"),
            *("GB/s", "of ceiling", "error", "eager's"),
        ],
        [row_cells(row, ceilings) for row in rows],
        "Milliseconds per call, median, each contender in its faster memory layout; the ratio is the best "
        "peer's over ours. Of ceiling: the least time for the bytes or FLOP that the definition asks for, "
        "over our time. Error: root mean square against float64, the worst tensor.",
    )
    lines += table(
        ["part", "chosen", "milliseconds", "fastest"],
        by_backend(rows),
        "Our backends:",
    )
    lines += table(
        ["shape", "contender", "kept for the backward pass", "peak"],
        [
            [shape_name(m["shape"]), m["contender"], *(f"{m[k] / m['input']:.2f}" for k in ("kept", "peak"))]
            for m in results.of("memory")
        ],
        "Memory of a training step of GCSA, in times the input:",
    )
    failures = [f"- {r['name']}: {r['raised']}" for r in results.records.values() if "raised" in r]
    failures += [f"- {row['name']} {name}: {why}" for row in rows for name, why in row["dropped"].items()]
    lines += ["", "Failed:", "", *failures] if failures else []
    lines += ["", f"{len(left)} parts are left; the same command goes on with them."] if left else []
    return "\n".join(lines) + "\n"
