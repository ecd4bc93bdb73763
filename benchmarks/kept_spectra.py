"""Whether keeping the spectra of weights pays: ``python benchmarks/kept_spectra.py --help``.

GCSA in eval mode keeps the spectra of its convolutions' weights from call to call where these are few, and
compares all of them in every call (csrc/kept_spectra.h). Here calls that keep any weights' and calls that
keep none take turns in one process: right after a call of the same kind ("warm"), when all that fits the
caches is there, and after as much other memory has been written as replaces what they hold ("cold"), which is
closer to a layer in a network.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from cases import MAPS
from paired import DISTURBED, measure, waited

from gcsa_ext import functional
from gcsa_ext.backends import cpu, native
from gcsa_ext.nn import GCSA

ANY, NONE = 1 << 60, -1
"""The most bytes of weights whose spectra are kept."""

SHAPES = tuple((N, *sizes) for N in (8, 1) for sizes in ((64, 28, 28), (96, 28, 28), *MAPS))
"""(N, C, H, W). Of up to 64 channels the weights are few enough to be kept."""


@dataclass(frozen=True)
class Found:
    """Of GCSA on one shape (N, C, H, W).

    Attributes:
        kept, transformed: median seconds of a call that keeps spectra and of one that does not, right after
            another one ("warm") and after other memory was written ("cold").
        gain: medians of their ratios, round by round.
        weight_bytes, kept_bytes: of both convolutions, and what is kept of them.
        disturbed: other processes were in the way.
    """

    shape: Sequence[int]
    kept: dict[str, float]
    transformed: dict[str, float]
    gain: dict[str, float]
    weight_bytes: int
    kept_bytes: int
    disturbed: bool = False


def compare(shape: Sequence[int], seconds: float, megabytes: int = 64) -> Found:
    """Measure one shape (N, C, H, W), for about so long and at least five rounds.

    Args:
        shape: of the input.
        seconds: how long.
        megabytes: of other memory that are written before a cold call.

    Raises:
        RuntimeError: there is no compiled module.
    """
    extension = native.extension
    if extension is None:
        raise RuntimeError(native.load_error)
    module, x = GCSA(shape[1]).eval(), torch.randn(tuple(shape))
    other = torch.zeros(megabytes << 18)
    limits = {"kept": ANY, "transformed": NONE}

    def call() -> None:
        with torch.no_grad():
            module(x)

    def prepare(name: str) -> None:
        how, caches = name.split()
        extension.keep_weights_up_to(limits[how])
        if caches == "warm":
            call()
        else:
            for _ in range(4):
                other.add_(1)

    def memory(how: str) -> int:
        functional.release_workspace()
        extension.keep_weights_up_to(limits[how])
        for _ in range(3):
            call()
        return functional.release_workspace()

    before = extension.keep_weights_up_to(NONE)
    try:
        kept_bytes = memory("kept") - memory("transformed")
        extension.keep_weights_up_to(ANY)
        for _ in range(2):
            call()
        begin, waited_before = time.perf_counter(), waited()
        names = [f"{how} {caches}" for how in limits for caches in ("warm", "cold")]
        times = measure(dict.fromkeys(names, call), seconds, prepare=prepare)
    finally:
        extension.keep_weights_up_to(before)
    span = time.perf_counter() - begin
    median = {name: statistics.median(taken) for name, taken in times.items()}
    return Found(
        shape=tuple(shape),
        kept={caches: median[f"kept {caches}"] for caches in ("warm", "cold")},
        transformed={caches: median[f"transformed {caches}"] for caches in ("warm", "cold")},
        gain={
            caches: statistics.median(
                b / a for a, b in zip(times[f"kept {caches}"], times[f"transformed {caches}"], strict=True)
            )
            for caches in ("warm", "cold")
        },
        weight_bytes=sum(module.spatial_attention[i].weight.nbytes for i in (0, 3)),
        kept_bytes=kept_bytes,
        disturbed=(waited() - waited_before) / span > DISTURBED,
    )


def table(found: Iterable[Found]) -> str:
    """The Markdown table; times in milliseconds."""
    lines = [
        "| shape | weights MB | kept MB | transformed, warm | kept, warm | gain "
        "| transformed, cold | kept, cold | gain |",
        "|---|" + "--:|" * 8,
    ]
    for one in found:
        cells = ["x".join(map(str, one.shape)) + " disturbed" * one.disturbed]
        cells += [f"{one.weight_bytes / 1e6:.1f}", f"{one.kept_bytes / 1e6:.1f}"]
        for caches in ("warm", "cold"):
            cells += [f"{1e3 * one.transformed[caches]:.2f}", f"{1e3 * one.kept[caches]:.2f}"]
            cells += [f"{one.gain[caches]:.2f}x"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Whether keeping the spectra of weights pays.")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each shape (default 2)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument(
        "--megabytes", type=int, default=64, help="of other memory written before cold calls (default 64)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = []
    for shape in SHAPES:
        print("x".join(map(str, shape)), file=sys.stderr, flush=True)
        found.append(compare(shape, arguments.seconds, arguments.megabytes))
    print(f"GCSA in eval mode, float32, {arguments.threads} threads, {cpu.isa()}; milliseconds.\n")
    print(table(found))


if __name__ == "__main__":
    main()
