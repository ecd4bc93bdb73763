"""How much faster gcsa_ext is than its best peer: ``python benchmarks/report.py --help``.

Prints Markdown tables. A case whose results differ from eager PyTorch's gets no figures, and the exit status
is then 1.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from cases import CASES, MAPS, Build, Case, gcsa_case
from ceiling import Ceiling
from memory import peak_bytes, saved_bytes
from paired import error_of, measure

import gcsa_ext


def run(case: Case, seconds: float, compiling: str) -> dict[str, Any]:
    """Check and time one case.

    Args:
        case: what to run.
        seconds: about how long to time it for.
        compiling: which peers to compile: "all", "short" (those that compile in seconds) or "none".

    Returns:
        "operation", "shape", "error" (of ours against the first peer), "passed", "dropped" (peers that cannot
        run or are wrong, with the reason), and if it passed "times" (seconds: median, quartiles, rounds, by
        contender), "best_peer", "ratio" (its median over ours) and "ratio_quartiles" (of the ratios within
        a round).
    """
    torch._dynamo.reset()  # it stops compiling a function after a few shapes
    (first_peer, build_truth), *other_peers = case.peers.items()
    truth = build_truth()
    calls = {name: build() for name, build in case.ours.items()}
    errors = {name: error_of(call, truth) for name, call in calls.items()}
    error = max(errors.values())
    result: dict[str, Any] = {
        "operation": case.operation,
        "shape": list(case.shape),
        "error": error,
        "dropped": {},
    }
    result["passed"] = error <= case.tolerance
    if not result["passed"]:
        return result

    calls[first_peer] = truth
    peers = [first_peer]
    for name, build in other_peers:
        if name == "torch.compile" and (compiling == "none" or (compiling == "short" and case.compiles_long)):
            result["dropped"][name] = f"--compile {compiling}"
            continue
        call, reason = _checked(case, build, truth)
        if call is None:
            result["dropped"][name] = reason
        else:
            calls[name] = call
            peers.append(name)
    calls |= {name: build() for name, build in case.floor.items()}

    spans = measure(calls, seconds)
    result["times"] = {
        name: {"median": statistics.median(span), "quartiles": _quartiles(span), "rounds": len(span)}
        for name, span in spans.items()
    }
    ours = next(iter(case.ours))
    best = min(peers, key=lambda name: result["times"][name]["median"])
    result["ours"], result["best_peer"] = ours, best
    result["ratio"] = result["times"][best]["median"] / result["times"][ours]["median"]
    result["ratio_quartiles"] = _quartiles([b / a for a, b in zip(spans[ours], spans[best], strict=True)])
    return result


def _checked(case: Case, build: Build, truth: Any) -> tuple[Any, str]:
    """The peer's call, or None and the reason why it is left out."""
    try:
        call = build()
        error = error_of(call, truth)
    except Exception as problem:  # torch.compile raises anything
        return None, f"{type(problem).__name__}: {str(problem).strip().splitlines()[0][:200]}"
    if error > case.tolerance:
        return None, f"its result differs from the first peer's by {error:.1e}"
    return call, ""


def _quartiles(values: Sequence[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive")


def speed_table(results: Iterable[dict[str, Any]]) -> str:
    """The Markdown table of the ratios."""
    lines = [
        "| operation | shape | ours ms | best peer | its ms | ratio (quartiles) | achieved | of ceiling |",
        "|---|---|--:|---|--:|--:|--:|--:|",
    ]
    for result in results:
        head = f"| {result['operation']} | {'x'.join(map(str, result['shape']))} | "
        if not result["passed"]:
            lines.append(head + f"CHECK FAILED: error {result['error']:.1e} | | | | | |")
            continue
        times, best = result["times"], result["best_peer"]
        low, _, high = result["ratio_quartiles"]
        cells = [
            _milliseconds(times[result["ours"]]["median"]),
            best,
            _milliseconds(times[best]["median"]),
            f"**{result['ratio']:.2f}** ({low:.2f} to {high:.2f})",
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


def measure_memory(shapes: Iterable[Sequence[int]]) -> list[dict[str, Any]]:
    """Bytes that a training step of GCSA saves, and its peak, for gcsa_ext and eager PyTorch."""
    results = []
    for shape in shapes:
        case = gcsa_case(shape, training=True, backward=True)
        for name in ("gcsa_ext", "eager", "eager channels_last"):
            build = {**case.ours, **case.peers}[name]
            found = {"saved": saved_bytes(build()), "peak": peak_bytes(shape, name)}
            results.append({"shape": list(shape), "contender": name, "input": 4 * math.prod(shape), **found})
    return results


def memory_table(results: Iterable[dict[str, Any]]) -> str:
    """The Markdown table of `measure_memory`."""
    lines = [
        "| GCSA training step | contender | input MB | saved for backward | peak MB |",
        "|---|---|--:|--:|--:|",
    ]
    for result in results:
        peak = "" if result["peak"] is None else f"{result['peak'] / 1e6:.1f}"
        shape = "x".join(map(str, result["shape"]))
        saved = f"{result['saved'] / result['input']:.2f} x input"
        lines.append(f"| {shape} | {result['contender']} | {result['input'] / 1e6:.1f} | {saved} | {peak} |")
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
    parser.add_argument("--only", metavar="TEXT", help="cases whose name contains TEXT, e.g. 'GCSA eval'")
    parser.add_argument("--seconds", type=float, help="time for each case (default 1.5; 0.5 with --quick)")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's own choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured there")
    parser.add_argument(
        "--quick", action="store_true", help="few cases, no torch.compile, no memory; a minute"
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
    selected = [
        case
        for case in CASES
        if (case.quick or not arguments.quick) and (arguments.only or "").lower() in str(case).lower()
    ]
    if arguments.list or not selected:
        print("\n".join(map(str, selected)) or f"no case contains {arguments.only!r}")
        return 0 if selected else 2
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    seconds = arguments.seconds or (0.5 if arguments.quick else 1.5)
    compiling = "none" if arguments.quick else arguments.compile
    warnings.filterwarnings("ignore", module="torch")

    ceiling = Ceiling()
    ceiling.measure()
    results = []
    for index, case in enumerate(selected, 1):
        print(f"[{index}/{len(selected)}] {case}", file=sys.stderr, flush=True)
        results.append(run(case, seconds, compiling))
    ceiling.measure()
    for case, result in zip(selected, results, strict=True):
        result["flops"] = case.flops() if callable(case.flops) else case.flops
        result["bytes"] = case.bytes
        result["least_seconds"] = ceiling.least_time(result["flops"], case.bytes, case.dtype)
        by_bytes = ceiling.least_time(None, case.bytes, case.dtype)
        result["bound"] = "bytes" if by_bytes == result["least_seconds"] else "flops"
    memory = []
    if not (arguments.quick or arguments.only):
        print("memory of a training step", file=sys.stderr, flush=True)
        memory = measure_memory([(8, *sizes) for sizes in MAPS])

    machine = environment()
    rates = {str(dtype).removeprefix("torch."): rate for dtype, rate in ceiling.rate.items()}
    print(
        f"{machine['processor']}, {machine['isa']}, {machine['threads']} threads, torch "
        f"{machine['versions']['torch']}, revision {machine['revision']}. Ceilings in this run: copy "
        f"{ceiling.bandwidth / 1e9:.1f} GB/s, matrix product "
        + ", ".join(f"{rate / 1e9:.0f} GFLOP/s {name}" for name, rate in rates.items())
        + f". Peers compiled: {compiling}."
    )
    tables = [speed_table(results), contenders_table(results)]
    if len({case.operation for case in selected}) < len(selected):
        tables.insert(1, means_table(results))
    tables += [memory_table(memory)] * bool(memory)
    print("\n" + "\n\n".join(tables))
    if arguments.json:
        report = {
            **machine,
            "ceiling": {"bytes_per_second": ceiling.bandwidth, "flops_per_second": rates},
            "compile": compiling,
            "results": results,
            "memory": memory,
        }
        temporary = arguments.json.with_name(arguments.json.name + ".tmp")
        temporary.write_text(json.dumps(report, indent=1) + "\n")
        temporary.replace(arguments.json)
    return 0 if all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
