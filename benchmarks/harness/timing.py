"""The paired timer: contenders take turns, call by call, in one process, so that drift hits them alike."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def _nothing() -> None:
    pass


def measure(
    calls: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    least_rounds: int = 5,
    most_rounds: int = 1000,
    least_span: float = 0.0,
    synchronize: Callable[[], object] = _nothing,
    between: Callable[[], object] = _nothing,
) -> dict[str, list[float]]:
    """Time every call once per round, in a new random order each round, with the garbage collector off.

    One to three untimed rounds come first.

    Args:
        calls: by name; what they return is freed within the timed span.
        seconds: stop after the round in which this much time has passed.
        least_rounds, most_rounds: bounds on the number of rounds, whatever the time.
        least_span: seconds; a call that takes less is repeated until it takes about so long, and its mean
            counts as one time.
        synchronize: waits for the device; called before and after every timed span.
        between: called, untimed, before every round and after the last.

    Returns:
        Seconds per call, by name, in the order of the rounds.
    """

    def span(call: Callable[[], object], times: int) -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(times):
            call()
        synchronize()
        return (time.perf_counter() - start) / times

    order, shuffled = list(calls), random.Random(0)
    begin, warm_ups = time.perf_counter(), 0
    while warm_ups < 1 or (warm_ups < 3 and time.perf_counter() - begin < 0.2 * seconds):
        warm_ups += 1
        for name in order:
            calls[name]()
    repeats = dict.fromkeys(order, 1)
    if least_span > 0.0:
        repeats = {name: max(1, math.ceil(least_span / span(calls[name], 3))) for name in order}
    times: dict[str, list[float]] = {name: [] for name in order}
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
                times[name].append(span(calls[name], repeats[name]))
        between()
    finally:
        if collecting:
            gc.enable()
    return times


def quartiles(values: Sequence[float]) -> list[float]:
    """The first quartile, the median and the third; of one value three times this value."""
    return [values[0]] * 3 if len(values) == 1 else statistics.quantiles(values, n=4, method="inclusive")
