"""The paired timer: contenders take turns, call by call, in one process, so that drift hits them alike."""

from __future__ import annotations

import contextlib
import gc
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor


def measure(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    least_rounds: int = 5,
    most_rounds: int = 1000,
    between: Callable[[], object] = lambda: None,
    prepare: Callable[[str], object] = lambda name: None,
) -> dict[str, list[float]]:
    """Time every call once per round, in a new random order each round, with the garbage collector off.

    One to three untimed rounds come first.

    Args:
        calls: by name; what they return is freed within the timed span.
        seconds: stop after the round in which this much time has passed.
        least_rounds, most_rounds: bounds on the number of rounds, whatever the time.
        between: called, untimed, before every round and after the last.
        prepare: called, untimed, with the name of every call before it.

    Returns:
        Seconds per call, by name, in the order of the rounds.
    """
    order, shuffled = list(calls), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin, warm_ups = time.perf_counter(), 0
    while warm_ups < 1 or (warm_ups < 3 and time.perf_counter() - begin < 0.2 * seconds):
        warm_ups += 1
        for name in order:
            prepare(name)
            calls[name]()
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        begin = time.perf_counter()
        for rounds in range(most_rounds):
            if rounds >= least_rounds and time.perf_counter() - begin > seconds:
                break
            between()
            shuffled.shuffle(order)
            for name in order:
                call = calls[name]
                prepare(name)
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
        between()
    finally:
        if collecting:
            gc.enable()
    return times


DISTURBED = 0.1
"""From this part of the time spent in waiting for a core (see `waited`), times mean little."""


def waited() -> float:
    """Seconds that the threads of this process, summed up, have been ready to run without being given a core.

    Idle and sleeping threads do not count, so that between two calls of this it tells whether other processes
    were in the way. Always 0 where the system does not tell (it takes Linux).
    """
    total = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            total += int(file.read_text().split()[1])
    return total / 1e9


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest root mean square difference of two tensors, relative to the root mean square of `expected`.

    A tensor much smaller than the largest, such as the gradient of a bias in front of a batch norm (0 but for
    rounding), is compared on the scale of a tenth of the largest.

    Returns:
        inf where shapes differ or where there is a NaN.
    """
    if [t.shape for t in found] != [t.shape for t in expected]:
        return float("inf")
    scales = [_root_mean_square(t) for t in expected]
    smallest = max(0.1 * max(scales), 1e-30)
    errors = [
        _root_mean_square(a - b) / max(scale, smallest)
        for scale, a, b in zip(scales, found, expected, strict=True)
    ]
    return max(error if math.isfinite(error) else float("inf") for error in errors)


def _root_mean_square(x: Tensor) -> float:
    return torch.linalg.vector_norm(x, dtype=torch.float64).item() / max(x.numel(), 1) ** 0.5


def error_of(call: Callable[[], Sequence[Tensor]], truth: Callable[[], Sequence[Tensor]]) -> float:
    """`relative_error` of what two calls return, run from the same random state.

    The second time counts: a first call may compile, and draw random numbers as it does. The random state is
    the same both times, so that masking in place masks no more.
    """
    for _ in range(2):
        torch.manual_seed(1)
        expected = truth()
        torch.manual_seed(1)
        found = call()
    return relative_error(found, expected)
