"""How far apart the cores are.

A host may move the two cores of a virtual machine to places without a common cache, and back, while something
is measured; threads that work on one image then wait for each other's spectra.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
from collections.abc import Sequence

import torch

from gcsa_ext.backends import native

APART = 200e-9
"""A round trip that takes longer says that the cores share no cache.

On a Zen 4 it takes 55 ns where they do, 320 where not.
"""


def round_trip(seconds: float = 0.05) -> float | None:
    """Seconds that a cache line takes from one core to another and back, measured for about so many; None
    where there is one thread or one core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if native.extension is None or torch.get_num_threads() < 2 or cores < 2:
        return None
    taken = float(native.extension.core_round_trip(seconds))
    return taken if math.isfinite(taken) else None


class RoundTrips:
    """Called before every round of a measurement and after the last, knows where the cores were in each."""

    def __init__(self) -> None:
        self._seconds: list[float | None] = []
        self._threads = torch.get_num_threads()

    def __call__(self) -> None:
        now = torch.get_num_threads()
        torch.set_num_threads(self._threads)  # a contender may have set another number
        self._seconds.append(round_trip(1e-4))
        torch.set_num_threads(now)

    def together(self) -> list[bool]:
        """For each round whether the cores shared a cache before and after it, as far as that is known."""
        apart = [trip is not None and trip > APART for trip in self._seconds]
        return [not (before or after) for before, after in itertools.pairwise(apart)]


def median_together(span: Sequence[float], together: Sequence[bool]) -> float | None:
    """The median over the rounds in which the cores were together; None where there is none."""
    chosen = [value for value, near in zip(span, together, strict=True) if near]
    return statistics.median(chosen) if chosen else None


def note(together: Sequence[bool], value: str | None) -> str:
    """What the reader should know of the cores, "" where they were together all the time.

    Args:
        value: of the rounds in which they were together, in words.
    """
    apart = len(together) - sum(together)
    if not apart:
        return ""
    return f"cores apart in {apart} of {len(together)} rounds" + (f", {value} in the others" if value else "")
