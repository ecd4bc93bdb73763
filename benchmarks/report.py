"""How much faster gcsa_ext is than its best peer: ``python benchmarks/report.py --help``.

Prints Markdown tables. A case whose results differ from eager PyTorch's, or that raises an error, gets no
figures, and the exit status is then 1. A missed bar leaves it 0.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bars
import memory
import torch
from bars import BARS, Bar
from cases import CASES, MAPS, Build, Case
from ceiling import Ceiling
from cores import RoundTrips, median_together
from inside import inside
from paired import DISTURBED, error_of, measure, waited

import gcsa_ext

NETWORKS = [case for case in CASES if case.operation.startswith(("GCSA in", "BimodalNet"))]
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
        and (text in str(bar).lower() or (bar.cases and all(case in named for case in bar.cases)))
    ]
    needed = {case for bar in wanted for case in bar.cases} | set(() if bars_alone else named)
    return [case for case in CASES if case in needed], wanted


def run(case: Case, seconds: float, compiling: str) -> dict[str, Any]:
    """Check and time one case.

    Args:
        case: what to run.
        seconds: about how long to time it for.
        compiling: which peers to compile: "all", "short" (those that compile in seconds) or "none".

    Returns:
        "operation", "shape", "passed", "failure" (the reason, if not), "dropped" (peers that cannot run or
        are wrong, with the reason), "error" (of ours against the first peer), "flops" and "bytes" (see Case),
        and if it passed "times" (seconds: median, quartiles, rounds, by contender), "ours", "peers",
        "best_peer", "ratio" (its median over ours), "ratio_quartiles" (of the ratios within a round),
        "waited" (part of the time for which a thread was without a core that it needed) and "alone" (seconds
        of ours in a loop of its own, where nobody else displaces what the caches hold).
    """
    result: dict[str, Any] = {"operation": case.operation, "shape": list(case.shape), "dropped": {}}
    try:
        result |= {"passed": True, "failure": None, **_run(case, seconds, compiling, result["dropped"])}
    except Exception as problem:  # the other cases are still worth running
        result |= {"passed": False, "failure": _reason(problem)}
    return result


def _run(case: Case, seconds: float, compiling: str, dropped: dict[str, str]) -> dict[str, Any]:
    torch._dynamo.reset()  # it stops compiling a function after a few shapes
    (first_peer, build_truth), *other_peers = case.peers.items()
    truth = build_truth()
    calls = {name: build() for name, build in case.ours.items()}
    errors = {name: error_of(call, truth) for name, call in calls.items()}
    result: dict[str, Any] = {
        "error": max(errors.values()),
        "bytes": case.bytes,
        "flops": case.flops() if callable(case.flops) else case.flops,
    }
    if result["error"] > case.tolerance:
        return {**result, "passed": False, "failure": f"error {result['error']:.1e}"}

    calls[first_peer] = truth
    peers = [first_peer]
    for name, build in other_peers:
        if name == "torch.compile" and (compiling == "none" or (compiling == "short" and case.compiles_long)):
            dropped[name] = f"--compile {compiling}"
            continue
        call, reason = _checked(case, build, truth)
        if call is None:
            dropped[name] = reason
        else:
            calls[name] = call
            peers.append(name)
    calls |= {name: build() for name, build in case.floor.items()}

    start, before = time.perf_counter(), waited()
    trips = RoundTrips()
    spans = measure(calls, seconds, between=trips)
    result["waited"] = (waited() - before) / (time.perf_counter() - start)
    result["times"] = {
        name: {
            "median": statistics.median(span),
            "median_together": median_together(span, trips.together()),
            "quartiles": _quartiles(span),
            "rounds": len(span),
        }
        for name, span in spans.items()
    }
    result["together"] = trips.together()
    ours = next(iter(case.ours))
    result["alone"] = statistics.median(measure({ours: calls[ours]}, 0.25 * seconds)[ours])
    best = min(peers, key=lambda name: result["times"][name]["median"])
    result |= {"ours": ours, "peers": peers, "best_peer": best}
    result["ratio"] = result["times"][best]["median"] / result["times"][ours]["median"]
    result["ratio_quartiles"] = _quartiles([b / a for a, b in zip(spans[ours], spans[best], strict=True)])
    return result


def _checked(case: Case, build: Build, truth: Any) -> tuple[Any, str]:
    """The peer's call, or None and the reason why it is left out."""
    try:
        call = build()
        error = error_of(call, truth)
    except Exception as problem:  # torch.compile raises anything
        return None, _reason(problem)
    if error > case.tolerance:
        return None, f"its result differs from the first peer's by {error:.1e}"
    return call, ""


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, or the reason (str) why it does not: the rest is still worth measuring."""
    try:
        return function(*arguments)
    except Exception as problem:
        return _reason(problem)


def _reason(problem: Exception) -> str:
    return f"{type(problem).__name__}: {''.join(str(problem).strip().splitlines()[:1])[:200]}"


def _quartiles(values: Sequence[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive")


def speed_table(results: Iterable[dict[str, Any]]) -> str:
    """The Markdown table of the ratios."""
    lines = [
        "| operation | shape | ours ms | best peer | its ms | ratio (quartiles) | cores apart | achieved "
        "| of ceiling |",
        "|---|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for result in results:
        head = f"| {result['operation']} | {'x'.join(map(str, result['shape']))} | "
        if not result["passed"]:
            lines.append(head + f"FAILED: {result['failure']} | | | | | | |")
            continue
        times, best = result["times"], result["best_peer"]
        low, _, high = result["ratio_quartiles"]
        cells = [
            _milliseconds(times[result["ours"]]["median"]),
            best,
            _milliseconds(times[best]["median"]),
            f"**{result['ratio']:.2f}** ({low:.2f} to {high:.2f})",
            f"{result['together'].count(False)} of {len(result['together'])}",
            *_achieved(result),
        ]
        lines.append(head + " | ".join(cells) + " |")
    return "\n".join(lines)


def _achieved(result: dict[str, Any]) -> tuple[str, str]:
    seconds = result["times"][result["ours"]]["median"]
    if not result["least_seconds"]:
        return "", ""
    unit, amount = ("GFLOP/s", result["flops"]) if result["bound"] == "flops" else ("GB/s", result["bytes"])
    return f"{amount / seconds / 1e9:.1f} {unit}", f"{100 * result['least_seconds'] / seconds:.0f} %"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def means_table(results: Iterable[dict[str, Any]]) -> str:
    """The geometric mean of the ratios of every operation that has several shapes."""
    ratios: dict[str, list[float]] = {}
    for result in results:
        if result["passed"]:
            ratios.setdefault(result["operation"], []).append(result["ratio"])
    lines = ["| operation | shapes | least ratio | geometric mean |", "|---|--:|--:|--:|"]
    lines += [
        f"| {operation} | {len(found)} | {min(found):.2f} | {statistics.geometric_mean(found):.2f} |"
        for operation, found in ratios.items()
        if len(found) > 1
    ]
    return "\n".join(lines)


def contenders_table(results: Iterable[dict[str, Any]]) -> str:
    """Every contender's median time."""
    lines = ["| operation | shape | ms (median) |", "|---|---|---|"]
    for result in results:
        found = [
            f"{name} {_milliseconds(time['median'])}" for name, time in result.get("times", {}).items()
        ] + [f"{name} left out ({reason})" for name, reason in result["dropped"].items()]
        shape = "x".join(map(str, result["shape"]))
        lines.append(f"| {result['operation']} | {shape} | {', '.join(found)} |")
    return "\n".join(lines)


def memory_table(saved: Mapping[tuple[int, ...], Any]) -> str:
    """The Markdown table of `memory.training_step`, by shape."""
    lines = [
        "| GCSA training step | contender | input MB | saved for backward | peak MB |",
        "|---|---|--:|--:|--:|",
    ]
    for shape, found in saved.items():
        head = f"| {'x'.join(map(str, shape))} | "
        if isinstance(found, str):
            lines.append(head + f"FAILED: {found} | | | |")
            continue
        for row in found:
            peak = "" if row["peak"] is None else f"{row['peak'] / 1e6:.1f}"
            ratio = f"{row['saved'] / row['input']:.2f} x input"
            lines.append(head + f"{row['contender']} | {row['input'] / 1e6:.1f} | {ratio} | {peak} |")
    return "\n".join(lines)


def inside_table(steps: Mapping[Case, Any]) -> str:
    """The Markdown table of `inside`, by network: its step, and the GCSA in it, eager beside gcsa_ext."""
    lines = [
        "| network | shape | plain ms | ours ms | ratio | limit | GCSA's share | its ratio | in a loop |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for case, found in steps.items():
        head = f"| {case.operation} | {'x'.join(map(str, case.shape))} | "
        if isinstance(found, str):
            lines.append(head + f"FAILED: {found} | | | | | | |")
            continue
        cells = [_milliseconds(found.plain_step), _milliseconds(found.our_step)]
        cells += [f"{found.step_ratio:.2f}", f"{found.limit:.2f}", f"{100 * found.plain_share:.0f} %"]
        cells += [f"{found.inside_ratio:.2f}", f"{found.loop_ratio:.2f}"]
        lines.append(head + " | ".join(cells) + " |")
    return "\n".join(lines)


def environment() -> dict[str, Any]:
    """The machine, the versions and the state of the sources."""
    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        processor = names[0] if names else processor
    found = gcsa_ext.info()
    return {
        "processor": processor,
        "system": f"{platform.system()} {platform.machine()}",
        "isa": found["isa"],
        "threads": torch.get_num_threads(),
        "onednn": torch.backends.mkldnn.is_available(),
        "versions": {name: found["versions"][name] for name in ("python", "torch", "torchaudio")},
        "revision": _revision(),
    }


def _revision() -> str:
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


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
        names = [*map(str, selected), *(f"bar: {bar}" for bar in wanted)]
        print("\n".join(names) or f"no case or bar contains {arguments.only!r}")
        return 0 if names else 2
    torch.set_num_threads(arguments.threads)
    seconds = arguments.seconds or (0.5 if arguments.quick else 1.5)
    compiling = "none" if arguments.quick else arguments.compile
    warnings.filterwarnings("ignore", module="torch")

    ceiling = Ceiling()
    ceiling.measure()
    results: dict[str, dict[str, Any]] = {}
    for index, case in enumerate(selected, 1):
        print(f"[{index}/{len(selected)}] {case}", file=sys.stderr, flush=True)
        results[str(case)] = run(case, seconds, compiling)
    ceiling.measure()
    for case, result in zip(selected, results.values(), strict=True):
        result["least_seconds"] = ceiling.least_time(result.get("flops"), case.bytes, case.dtype)
        by_bytes = ceiling.least_time(None, case.bytes, case.dtype)
        result["bound"] = "bytes" if by_bytes == result["least_seconds"] else "flops"
    judged = []
    for index, bar in enumerate(wanted, 1):
        print(f"[bar {index}/{len(wanted)}] {bar}", file=sys.stderr, flush=True)
        judged.append(bars.judge(bar, results))
    everything = not (arguments.quick or arguments.only or arguments.bars)
    networks = [case for case in NETWORKS if case in selected and not (arguments.quick or arguments.bars)]
    steps = {case: attempt(inside, case) for case in networks}
    saved = {shape: attempt(memory.training_step, shape) for shape in MEMORY_SHAPES if everything}

    machine = environment()
    rates = {str(dtype).removeprefix("torch."): rate for dtype, rate in ceiling.rate.items()}
    print(
        f"{machine['processor']}, {machine['isa']}, {machine['threads']} threads, torch "
        f"{machine['versions']['torch']} {'with' if machine['onednn'] else 'without'} oneDNN, "
        f"revision {machine['revision']}. Ceilings in this run: copy "
        f"{ceiling.bandwidth / 1e9:.1f} GB/s, matrix product "
        + ", ".join(f"{rate / 1e9:.0f} GFLOP/s {name}" for name, rate in rates.items())
        + f". Peers compiled: {compiling}."
    )
    if disturbed := [name for name, result in results.items() if result.get("waited", 0.0) > DISTURBED]:
        print("\nOther processes were in the way of: " + ", ".join(disturbed) + ".")
    tables = [bars.table(judged)] * bool(judged)
    tables += [speed_table(results.values())] * bool(results)
    tables += [means_table(results.values())] * (len({case.operation for case in selected}) < len(selected))
    tables += [contenders_table(results.values())] * bool(results)
    tables += [inside_table(steps)] * bool(steps) + [memory_table(saved)] * bool(saved)
    print("\n" + "\n\n".join(tables))
    if arguments.json:
        report = {
            **machine,
            "ceiling": {"bytes_per_second": ceiling.bandwidth, "flops_per_second": rates},
            "compile": compiling,
            "results": list(results.values()),
            "bars": judged,
            "inside": {
                str(case): found if isinstance(found, str) else asdict(found) for case, found in steps.items()
            },
            "memory": list(saved.values()),
        }
        temporary = arguments.json.with_name(arguments.json.name + ".tmp")
        temporary.write_text(json.dumps(report, indent=1) + "\n")
        temporary.replace(arguments.json)
    failures = [result["failure"] for result in [*results.values(), *judged]]
    failures += [found for found in [*steps.values(), *saved.values()] if isinstance(found, str)]
    return 1 if any(failures) else 0


if __name__ == "__main__":
    sys.exit(main())
