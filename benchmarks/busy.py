"""GCSA beside processes that keep the cores busy: ``python benchmarks/busy.py --help``.

Prints a Markdown table of the time per call in evaluation: of ours and of eager PyTorch, on one thread and on
two, quiet and beside busy processes, with OpenMP's default and with the command line's GOMP_SPINCOUNT.
OpenMP reads its environment once, so each setting is measured in processes of its own, which take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from harness.case import EAGER, OURS, shape_name
from harness.errors import relative_error
from harness.machine import cpuinfo
from harness.operators import gcsa_case

from gcsa_ext.openmp import SPIN_COUNT, VARIABLES

SHAPES = ((8, 64, 56, 56), (8, 256, 14, 14))
QUICK_SHAPES = ((1, 8, 7, 7),)
BUSY = (0, 1, 4)
"""Numbers of busy processes."""
THREADS = (1, 2)
SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    f"GOMP_SPINCOUNT={SPIN_COUNT}": {"GOMP_SPINCOUNT": str(SPIN_COUNT)},
}
"""What is set in the environment, of `VARIABLES`."""

Times = dict[str, list[float]]
"""Seconds of each call, by `key`."""


def key(shape: Sequence[int], busy: int, contender: str, threads: int) -> str:
    """The name of one series of calls."""
    return f"{shape_name(shape)}, {busy} busy, {contender}, {threads}"


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many processes that compute without a pause; they end with the block, and with this process."""
    loop = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    processes = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def series(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call, for about so many seconds, after a quarter of that to warm up.

    Contenders take turns by series, not by call: a thread that spins after one contender's call would be in
    the way of the next.
    """
    times: list[float] = []
    begin = before = time.perf_counter()
    while not times or before - begin < 1.25 * seconds:
        call()
        after = time.perf_counter()
        if after - begin > 0.25 * seconds:
            times.append(after - before)
        before = after
    return times


def measure(shapes: Sequence[Sequence[int]], seconds: float) -> Times:
    """All series of this process, which has one of the `SETTINGS`.

    Raises:
        RuntimeError: our result is wrong.
    """
    found: Times = {}
    for shape in shapes:
        case = gcsa_case(shape)
        calls = {name: case.build(name) for name in (EAGER, OURS)}
        error = relative_error(calls[OURS](), calls[EAGER]())
        if not error <= case.tolerance:
            raise RuntimeError(f"{case}: error {error:.1e}")
        for busy in BUSY:
            with busy_processes(busy):
                for name, call in calls.items():
                    for threads in THREADS:
                        torch.set_num_threads(threads)
                        found[key(shape, busy, name, threads)] = series(call, seconds)
    return found


def measure_elsewhere(setting: Mapping[str, str], quick: bool, seconds: float) -> Times:
    """`measure` in a new process with this in its environment."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [
        sys.executable,
        str(Path(__file__)),
        "--measure",
        "--seconds",
        str(seconds),
        *["--quick"] * quick,
    ]
    done = subprocess.run(
        command,
        env={**environment, **setting},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: Times = json.loads(done.stdout)
    return found


def table(found: Mapping[str, Times], shapes: Sequence[Sequence[int]]) -> str:
    """The Markdown table.

    Args:
        found: by setting.
    """
    names = [
        f"{name}, {threads} thread{'s' * (threads > 1)}" for name in (EAGER, OURS) for threads in THREADS
    ]
    lines = [
        "| map | busy processes | environment | " + " | ".join(names) + " | ours, 2 threads over 1 |",
        "|---|--:|---|" + "--:|" * (len(names) + 1),
    ]
    for shape in shapes:
        for busy in BUSY:
            for setting, times in found.items():
                cells = [
                    _cell(times[key(shape, busy, name, threads)])
                    for name in (EAGER, OURS)
                    for threads in THREADS
                ]
                one, two = (times[key(shape, busy, OURS, threads)] for threads in THREADS)
                cells.append(
                    f"{statistics.median(two) / statistics.median(one):.2f} / "
                    f"{statistics.mean(two) / statistics.mean(one):.2f}"
                )
                lines.append(f"| {shape_name(shape)} | {busy} | {setting} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(times: Sequence[float]) -> str:
    return f"{1e3 * statistics.median(times):.2f} / {1e3 * statistics.mean(times):.2f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="GCSA beside processes that keep the cores busy.")
    parser.add_argument("--quick", action="store_true", help="one small map, once; seconds")
    parser.add_argument(
        "--seconds", type=float, help="for each of 24 series in a process (default 0.5; 0.02 with --quick)"
    )
    parser.add_argument("--rounds", type=int, help="processes per environment (default 5; 1 with --quick)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # what a new process does
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    quick = arguments.quick
    shapes = QUICK_SHAPES if quick else SHAPES
    seconds = arguments.seconds if arguments.seconds is not None else 0.02 if quick else 0.5
    if arguments.measure:
        print(json.dumps(measure(shapes, seconds)))
        return
    found: dict[str, Times] = {setting: {} for setting in SETTINGS}
    rounds = arguments.rounds if arguments.rounds is not None else 1 if quick else 5
    for number in range(1, rounds + 1):
        for setting, variables in SETTINGS.items():
            print(f"[{number}/{rounds}] {setting}", file=sys.stderr, flush=True)
            for name, times in measure_elsewhere(variables, quick, seconds).items():
                found[setting].setdefault(name, []).extend(times)
    print(
        f"GCSA in evaluation, float32, torch {torch.__version__}, {os.cpu_count()} cores of "
        f"{cpuinfo().get('model name', 'an unknown processor')}. Milliseconds per call, median / mean.\n"
    )
    print(table(found, shapes))


if __name__ == "__main__":
    main()
