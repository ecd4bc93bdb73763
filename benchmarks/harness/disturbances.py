"""What disturbs a measurement on a CPU: other processes, and cores without a common cache."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from pathlib import Path

import torch

from gcsa_ext.backends import native

WAITED = 0.1
"""From this part of the time spent in waiting for a core (see `waited`), times mean little."""

SEPARATE_CACHES = 200e-9
"""Seconds of a round trip from which on the cores share no cache. On a Zen 4 a round trip takes 55 ns between
cores that share one, and 320 ns between others."""


def waited(tasks: Path = Path("/proc/self/task")) -> float:
    """Seconds that the threads of this process, summed up, have been ready to run without being given a core.

    Idle and sleeping threads do not count. If the value grows during a measurement, other processes took the
    cores. Always 0 on systems other than Linux.

    Args:
        tasks: the folder with a folder per thread, each with a file schedstat: nanoseconds that the thread
            ran, nanoseconds that it waited, and how often it ran.
    """
    total = 0
    for file in tasks.glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            total += int(file.read_text().split()[1])
    return total / 1e9


def round_trip(seconds: float = 1e-4) -> float | None:
    """Seconds that a cache line takes from one core to another and back, measured for about so many.

    The host of a virtual machine may move its cores to places without a common cache, and back, within
    seconds. Threads that work on one image then exchange spectra through memory.

    Returns:
        None where there is one thread, one core or no compiled extension.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if native.extension is None or torch.get_num_threads() < 2 or cores < 2:
        return None
    taken = float(native.extension.core_round_trip(seconds))
    return taken if math.isfinite(taken) else None


class Disturbances:
    """What disturbed one measurement, which calls `between` before every round and after the last."""

    def __init__(self) -> None:
        self._begin, self._waited = 0.0, 0.0
        self._separate: list[bool] = []

    def between(self) -> None:
        """Find out where the cores are; the first call is the beginning of the measurement."""
        if not self._separate:
            self._begin, self._waited = time.perf_counter(), waited()
        trip = round_trip()
        self._separate.append(trip is not None and trip > SEPARATE_CACHES)

    def found(self) -> dict[str, float]:
        """What was found up to now.

        Returns:
            "waited", the part of the time for which a thread was without a core that it needed, and
            "rounds_on_separate_caches", the number of rounds before or after which the cores shared no cache.
        """
        return {
            "waited": (waited() - self._waited) / (time.perf_counter() - self._begin),
            "rounds_on_separate_caches": sum(a or b for a, b in itertools.pairwise(self._separate)),
        }
