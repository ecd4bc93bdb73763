"""Does GCSA slow down in a process that has run other shapes? ``python benchmarks/slow_state.py --help``.

Fresh processes take turns, each in one of three states, and the time of a call is compared between them:

- alone: the process runs one shape only, in a loop;
- after: it has run all shapes, then loops over this one;
- among: it runs all shapes in turn, so that this one comes every so many calls.

Beside the times stands what usually explains them, per call: minor page faults (memory that the allocator
gave back to the system, and that is zeroed and mapped again) and context switches. `--settings` repeats
everything under other settings of the allocator and of OpenMP, to see which of them changes the picture.

A process whose threads had to wait for a core was disturbed by another one: OpenMP's threads then take turns
on one core, and every parallel region waits for a time slice of the scheduler, milliseconds, so that a call
takes many times as long. Such processes are counted and left out, unless all were.

Before each process the time is printed in which a cache line goes from one core to the other and back. A host
may move the two cores of a virtual machine to places without a common cache; then threads that work on one
image wait for each other's spectra, and a call takes up to 1.7 times as long.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from cases import MAPS, Call, gcsa_case
from cores import round_trip
from paired import DISTURBED, waited

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    # glibc keeps all memory that it ever got
    "keep": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36), "MALLOC_TOP_PAD_": str(2**26)},
    # glibc gets every large block from the system and gives it back at once
    "give back": {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
    # pages of 2 MB for glibc's and torch's large blocks, where the kernel has them on request
    "huge pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "THP_MEM_ALLOC_ENABLE": "1"},
    # waiting threads sleep rather than spin
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
"""Environment variables of the measured process, by name."""

STATES = ("alone", "after", "among")
PER_CALL = ("faults", "switches")


@dataclass(frozen=True)
class Sample:
    """One shape in one process.

    Attributes:
        seconds: of a call, median.
        faults, switches: minor page faults and context switches per call, mean.
        waited: part of the time for which a thread was without a core that it needed.
    """

    seconds: float
    faults: float
    switches: float
    waited: float


class _Recorder:
    """Calls, and what the system says about each."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._rows: list[tuple[float, ...]] = []

    def __call__(self) -> None:
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        self._call()
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        self._rows.append(
            (
                seconds,
                after.ru_minflt - before.ru_minflt,
                after.ru_nvcsw - before.ru_nvcsw + after.ru_nivcsw - before.ru_nivcsw,
            )
        )

    def sample(self, waited: float) -> Sample:
        """What was found; `waited` as in Sample."""
        seconds, faults, switches = zip(*self._rows, strict=True)
        return Sample(
            statistics.median(seconds), statistics.fmean(faults), statistics.fmean(switches), waited
        )


def samples(
    shapes: Sequence[Sequence[int]], contender: str, training: bool, seconds: float
) -> dict[str, list[Sample]]:
    """Measure GCSA in this process.

    Args:
        shapes: (N, C, H, W) of the maps; of one alone, the only state is "alone".
        contender: of `gcsa_case`, such as "gcsa_ext".
        training: forward and backward with the batch's statistics, rather than inference.
        seconds: for each shape and state, about.

    Returns:
        a sample for each shape, by state.
    """
    calls = []
    for shape in shapes:
        case = gcsa_case(shape, training, backward=training)
        calls.append({**case.ours, **case.peers}[contender]())
    for _ in range(3):
        for call in calls:
            call()

    def rounds(recorders: list[_Recorder]) -> list[Sample]:
        begin, before, done = time.perf_counter(), waited(), 0
        while done < 3 or time.perf_counter() - begin < seconds * len(recorders):
            done += 1
            for recorder in recorders:
                recorder()
        part = (waited() - before) / (time.perf_counter() - begin)
        return [recorder.sample(part) for recorder in recorders]

    if len(calls) == 1:
        return {"alone": rounds([_Recorder(calls[0])])}
    among = rounds([_Recorder(call) for call in calls])
    return {"among": among, "after": [rounds([_Recorder(call)])[0] for call in calls]}


def _in_process(environment: dict[str, str], threads: int, *arguments: Any) -> dict[str, list[Sample]]:
    """`samples` in a fresh process."""
    command = [sys.executable, __file__, "--threads", str(threads), "--samples", json.dumps(arguments)]
    found = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True
    )
    return {
        state: [Sample(**values) for values in rows]
        for state, rows in json.loads(found.stdout.splitlines()[-1]).items()
    }


def _undisturbed(processes: list[Sample]) -> list[Sample]:
    return [sample for sample in processes if sample.waited < DISTURBED] or processes


def table(found: dict[tuple[str, ...], list[Sample]]) -> str:
    """The Markdown table.

    Args:
        found: samples of several processes, by setting, contender, shape and state.
    """
    lines = [
        "| settings | contender | shape | state | ms (slowest) | x alone | faults | switches | disturbed |",
        "|---|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for (*which, state), processes in found.items():
        kept = _undisturbed(processes)
        seconds = statistics.median(sample.seconds for sample in kept)
        reference = (*which, "alone")
        alone = statistics.median(sample.seconds for sample in _undisturbed(found[reference]))
        slowest = max(sample.seconds for sample in kept)
        cells = [*which, state, f"{1e3 * seconds:.3g} ({1e3 * slowest:.3g})", f"{seconds / alone:.2f}"]
        cells += [f"{statistics.fmean(getattr(sample, field) for sample in kept):.0f}" for field in PER_CALL]
        disturbed = sum(sample.waited >= DISTURBED for sample in processes)
        cells.append(f"{disturbed} of {len(processes)}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Does GCSA slow down in a process that runs other shapes too?"
    )
    parser.add_argument(
        "--settings",
        nargs="+",
        choices=SETTINGS,
        default=["default", "keep"],
        help="of allocator and threads (default: default keep)",
    )
    parser.add_argument("--contenders", nargs="+", default=["eager", "gcsa_ext"], metavar="NAME")
    parser.add_argument("--training", action="store_true", help="forward and backward; else inference")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="samples (default 8)")
    parser.add_argument("--processes", type=int, default=3, help="of each kind (default 3)")
    parser.add_argument("--seconds", type=float, default=0.5, help="per shape and state (default 0.5)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--samples", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the processes and print the table."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.samples:
        states = samples(*arguments.samples)
        print(json.dumps({state: [vars(sample) for sample in row] for state, row in states.items()}))
        return
    shapes = [(arguments.batch, *sizes) for sizes in MAPS]
    found: dict[tuple[str, ...], list[Sample]] = {
        (setting, contender, "x".join(map(str, shape)), state): []
        for setting in arguments.settings
        for contender in arguments.contenders
        for shape in shapes
        for state in STATES
    }
    for process in range(arguments.processes):
        for setting in arguments.settings:
            for contender in arguments.contenders:
                taken = round_trip()
                print(
                    f"[{process + 1}/{arguments.processes}] {setting}, {contender}"
                    + (
                        f"; a cache line goes from core to core and back in {taken * 1e9:.0f} ns"
                        if taken
                        else ""
                    ),
                    file=sys.stderr,
                )
                for together in (*([shape] for shape in shapes), shapes):
                    measured = _in_process(
                        SETTINGS[setting],
                        arguments.threads,
                        together,
                        contender,
                        arguments.training,
                        arguments.seconds,
                    )
                    for state, row in measured.items():
                        for shape, sample in zip(together, row, strict=True):
                            found[setting, contender, "x".join(map(str, shape)), state].append(sample)
    print(table(found))


if __name__ == "__main__":
    main()
