"""How much faster gcsa_ext is than its best peer: ``python benchmarks/report.py --help``.

Prints Markdown tables. A case whose results differ from eager PyTorch's, or that raises an error, gets no
figures, and the exit status is then 1. A missed bar leaves it 0.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import memory, verdicts
from harness.bars import BARS, Bar
from harness.case import CLONE, COMPILED, Case, shape_name
from harness.ceilings import Ceilings
from harness.disturbances import WAITED, Disturbances
from harness.errors import error_of, in_one_line
from harness.machine import description, write_json
from harness.operators import MAPS
from harness.run import run
from harness.suite import CASES
from harness.timing import quartiles

MEMORY_SHAPES = [(8, *sizes) for sizes in MAPS]


def select(only: str | None, quick: bool, bars_alone: bool) -> tuple[list[Case], list[Bar]]:
    """The cases and bars to run.

    Args:
        only: text in the names of what is wanted, None for everything.
        quick: quick cases only; they are too few for bars.
        bars_alone: leave out the cases that no bar needs.

    Returns:
        cases, including those that the bars need, and bars: those whose name contains the text, or the names
        of whose cases all do.
    """
    text = (only or "").lower()
    named = [case for case in CASES if (case.quick or not quick) and text in str(case).lower()]
    wanted = [
        bar
        for bar in BARS
        if not quick
        and (text in bar.what.lower() or (bar.cases and all(case in named for case in bar.cases)))
    ]
    needed = {case for bar in wanted for case in bar.cases} | set(() if bars_alone else named)
    return [case for case in CASES if case in needed], wanted


def run_case(case: Case, seconds: float, compiling: str, ceilings: Ceilings) -> dict[str, Any]:
    """Check and time one case.

    Args:
        case: what to run.
        seconds: about how long to time it for.
        compiling: which peers to compile: "all", "short" (those that compile in seconds) or "none".
        ceilings: already measured.

    Returns:
        What `run` returns, without "spans", and what Disturbances finds. Without a failure also "ours" (the
        contender that ratios are about), "peers", "best_peer", "ratio" (its median over ours),
        "ratio_quartiles" (of the ratios within a round), "least_seconds" and "bound" (see Ceilings).
    """
    ours, (first, *others) = case.ours(), case.peers()
    left_out = compiling == "none" or (compiling == "short" and case.compiles_long)
    peers = [name for name in others if not (left_out and name == COMPILED)]
    watch = Disturbances()
    try:
        result = run(
            case,
            [first, *ours, *peers, *[CLONE] * case.clone],
            error=partial(_error, case.build(first)),
            allowed=lambda _: case.tolerance,
            seconds=seconds,
            between=watch.between,
        )
    except Exception as problem:  # the other cases are still worth running
        return {"operation": case.operation, "shape": list(case.shape), "failure": in_one_line(problem)}
    spans = result.pop("spans")
    result |= watch.found()
    if left_out and COMPILED in others:
        result["dropped"][COMPILED] = f"--compile {compiling}"
    if result["failure"]:
        return result
    result |= {"ours": ours[0], "peers": [name for name in [first, *peers] if name in spans]}
    times = result["times"]
    best = min(result["peers"], key=lambda name: times[name]["median"])
    low, _, high = quartiles([b / a for a, b in zip(spans[ours[0]], spans[best], strict=True)])
    least, bound = ceilings.least_time(result["flops"], result["bytes"], result["dtype"])
    return {
        **result,
        "best_peer": best,
        "ratio": times[best]["median"] / times[ours[0]]["median"],
        "ratio_quartiles": [low, high],
        "least_seconds": least,
        "bound": bound,
    }


def _error(truth: Any, call: Any) -> float:
    return 0.0 if call.function is torch.clone else error_of(call, truth)


def speed_table(results: Iterable[dict[str, Any]]) -> str:
    """The Markdown table of the ratios."""
    lines = [
        "| operation | shape | ours ms | best peer | its ms | ratio (quartiles) | cores apart | achieved "
        "| of ceiling |",
        "|---|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for result in results:
        head = f"| {result['operation']} | {shape_name(result['shape'])} | "
        if result["failure"]:
            lines.append(head + f"FAILED: {result['failure']} | | | | | | |")
            continue
        ours, best = (result["times"][result[name]] for name in ("ours", "best_peer"))
        low, high = result["ratio_quartiles"]
        achieved, of_ceiling = "", ""
        if result["least_seconds"]:
            unit, amount = ("GFLOP/s", "flops") if result["bound"] == "flops" else ("GB/s", "bytes")
            achieved = f"{result[amount] / ours['median'] / 1e9:.1f} {unit}"
            of_ceiling = f"{result['least_seconds'] / ours['median']:.0%}"
        cells = [
            _milliseconds(ours["median"]),
            result["best_peer"],
            _milliseconds(best["median"]),
            f"**{result['ratio']:.2f}** ({low:.2f} to {high:.2f})",
            f"{result['rounds_on_separate_caches']} of {ours['rounds']}",
            achieved,
            of_ceiling,
        ]
        lines.append(head + " | ".join(cells) + " |")
    return "\n".join(lines)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def contenders_table(results: Iterable[dict[str, Any]]) -> str:
    """Every contender's median time."""
    lines = ["| operation | shape | ms (median) |", "|---|---|---|"]
    for result in results:
        times, dropped = result.get("times", {}), result.get("dropped", {})
        found = [f"{name} {_milliseconds(time['median'])}" for name, time in times.items()]
        found += [f"{name} left out ({reason})" for name, reason in dropped.items()]
        lines.append(f"| {result['operation']} | {shape_name(result['shape'])} | {', '.join(found)} |")
    return "\n".join(lines)


def memory_table(saved: Mapping[tuple[int, ...], Any]) -> str:
    """The Markdown table of `memory.training_step`, or the reason why that failed, by shape."""
    lines = [
        "| GCSA training step | contender | input MB | saved for backward | peak MB |",
        "|---|---|--:|--:|--:|",
    ]
    for shape, found in saved.items():
        head = f"| {shape_name(shape)} | "
        if isinstance(found, str):
            lines.append(head + f"FAILED: {found} | | | |")
            continue
        for row in found:
            peak = "" if row["peak"] is None else f"{row['peak'] / 1e6:.1f}"
            ratio = f"{row['saved'] / row['input']:.2f} x input"
            lines.append(head + f"{row['contender']} | {row['input'] / 1e6:.1f} | {ratio} | {peak} |")
    return "\n".join(lines)


def _training_step(shape: tuple[int, ...]) -> Any:
    try:
        return memory.training_step(shape)
    except Exception as problem:  # everything else is still worth measuring
        return in_one_line(problem)


def command(arguments: Sequence[str]) -> str:
    """How to repeat a run; the names of its file and machine are left out."""
    words, kept = iter(arguments), []
    for word in words:
        if word in ("--json", "--machine"):
            next(words)
        elif not word.startswith(("--json=", "--machine=")):
            kept.append(word)
    return shlex.join(["python", "benchmarks/report.py", *kept])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How much faster gcsa_ext is than its best peer.")
    parser.add_argument(
        "--only", metavar="TEXT", help="cases and bars whose name contains TEXT, e.g. 'GCSA eval'"
    )
    parser.add_argument("--bars", action="store_true", help="the bars, and only the cases that they need")
    parser.add_argument("--seconds", type=float, help="time for each case (default 1.5; 0.5 with --quick)")
    parser.add_argument(
        "--threads", type=int, default=2, help="torch threads (default 2, which the bars are for)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured there")
    parser.add_argument("--machine", default="", help="what to call this machine in that file")
    parser.add_argument(
        "--quick", action="store_true", help="few cases, no bars, no torch.compile, no memory; a minute"
    )
    parser.add_argument(
        "--compile",
        choices=("none", "short", "all"),
        default="short",
        help="peers to compile; all: also the networks' training steps, which take minutes (default: short)",
    )
    parser.add_argument("--no-compile", dest="compile", action="store_const", const="none")
    parser.add_argument("--list", action="store_true", help="print the cases' names and stop")
    return parser.parse_args()


def main() -> int:
    """Run the report; the exit status."""
    arguments = _arguments()
    selected, wanted = select(arguments.only, arguments.quick, arguments.bars)
    if arguments.list or not (selected or wanted):
        names = [*map(str, selected), *(f"bar: {bar.what}" for bar in wanted)]
        print("\n".join(names) or f"no case or bar contains {arguments.only!r}")
        return 0 if names else 2
    torch.set_num_threads(arguments.threads)
    seconds = arguments.seconds or (0.5 if arguments.quick else 1.5)
    compiling = "none" if arguments.quick else arguments.compile
    warnings.filterwarnings("ignore", module="torch")

    ceilings = Ceilings()
    ceilings.measure()
    results: dict[str, dict[str, Any]] = {}
    for index, case in enumerate(selected, 1):
        print(f"[{index}/{len(selected)}] {case}", file=sys.stderr, flush=True)
        results[str(case)] = run_case(case, seconds, compiling, ceilings)
    judged = [bar.judge(results) for bar in wanted]
    everything = not (arguments.quick or arguments.only or arguments.bars)
    saved = {shape: _training_step(shape) for shape in MEMORY_SHAPES if everything}

    machine = description()
    rates = ", ".join(
        f"{rate / 1e9:.0f} GFLOP/s {dtype.removeprefix('torch.')}" for dtype, rate in ceilings.rate.items()
    )
    print(
        f"{machine['processor']}, {machine['isa']}, {machine['threads']} threads, torch "
        f"{machine['versions']['torch']} {'with' if machine['onednn'] else 'without'} oneDNN, "
        f"revision {machine['revision']}. Ceilings in this run: copy {ceilings.bandwidth / 1e9:.1f} GB/s, "
        f"matrix product {rates}. Peers compiled: {compiling}."
    )
    if disturbed := [name for name, result in results.items() if result.get("waited", 0.0) > WAITED]:
        print("\nOther processes were in the way of: " + ", ".join(disturbed) + ".")
    rows = results.values()
    tables = [verdicts.table(judged)] * bool(judged)
    tables += [speed_table(rows)] * bool(results)
    tables += [contenders_table(rows)] * bool(results) + [memory_table(saved)] * bool(saved)
    print("\n" + "\n\n".join(tables))
    if arguments.json:
        report = {
            "machine": arguments.machine or f"{machine['processor']}, {machine['threads']} threads",
            **machine,
            "command": command(sys.argv[1:]),
            "ceilings": asdict(ceilings),
            "rows": list(rows),
            "bars": [{**asdict(verdict), "met": verdict.met} for verdict in judged],
            "memory": list(saved.values()),
        }
        write_json(arguments.json, report)
    failures = [found["failure"] for found in rows] + [verdict.failure for verdict in judged]
    return 1 if any([*failures, *(isinstance(found, str) for found in saved.values())]) else 0


if __name__ == "__main__":
    sys.exit(main())
