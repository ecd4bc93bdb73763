"""The bars that gcsa_ext wants to clear, as data: what is measured, how, and the limit.

A missed bar is information, not an error: times on a busy machine are noisy. To add a bar, yield one more
at the end of `_bars`; its `measure` takes the results (see report.run) of its `cases`, if it has any.
"""

from __future__ import annotations

import functools
import operator
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import cores
import exactness
import memory
import torch
from cases import CASES, MAPS, Case, gcsa_case
from inside import inside
from paired import DISTURBED, measure, waited

from gcsa_ext.backends import native

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "at least": operator.ge,
    "at most": operator.le,
    "below": operator.lt,
}


@dataclass(frozen=True)
class Measured:
    """What was found, None where this machine cannot tell, and what else the reader should know."""

    value: float | None
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """One row of the table.

    Args:
        what: is measured.
        shape: of the input, or what else tells the rows of one `what` apart.
        comparison: of `COMPARISONS`.
        limit: that the measured value, a ratio, is compared with.
        of: what the ratio relates to, in words.
        measure: what finds the value; its arguments are the results of `cases`, in their order.
        cases: of the report that must run first; all of them must have passed.
        timed: the value depends on times, so that other processes disturb it.
    """

    what: str
    shape: str
    comparison: str
    limit: float
    of: str
    measure: Callable[..., Measured]
    cases: tuple[Case, ...] = ()
    timed: bool = True

    def __str__(self) -> str:
        return f"{self.what} {self.shape}"


def judge(bar: Bar, results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Measure a bar.

    Args:
        bar: what to measure.
        results: of all its cases, by the case's name.

    Returns:
        "what", "shape", "bar" (text), "measured" and "met" (None without a value), "note", "disturbed"
        (other processes were in the way), and "failure" (the reason where a case or the measurement itself
        failed, otherwise None).
    """
    row: dict[str, Any] = {
        "what": bar.what,
        "shape": bar.shape,
        "bar": f"{bar.comparison} {_number(bar.limit)}x {bar.of}",
        "measured": None,
        "note": "",
        "met": None,
        "disturbed": False,
        "failure": None,
    }
    try:
        found = [results[str(case)] for case in bar.cases]
        for result in found:
            if not result["passed"]:
                raise RuntimeError(f"{result['operation']}: {result['failure']}")
        begin, before = time.perf_counter(), waited()
        measured = bar.measure(*found)
        waiting = [(waited() - before) / (time.perf_counter() - begin)] if not found else []
        waiting += [result["waited"] for result in found]
    except Exception as problem:  # whatever fails, the other bars are still worth measuring
        return {**row, "failure": f"{type(problem).__name__}: {problem}"}
    row |= {"measured": measured.value, "note": measured.note}
    row["disturbed"] = bar.timed and max(waiting) > DISTURBED
    if measured.value is not None:
        row["met"] = COMPARISONS[bar.comparison](measured.value, bar.limit)
    return row


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def table(rows: list[dict[str, Any]]) -> str:
    """The Markdown table of what `judge` returned."""
    lines = ["| what | shape | measured | bar | met |", "|---|---|---|---|---|"]
    for row in rows:
        if row["failure"]:
            measured, met = f"FAILED: {row['failure']}", "failed"
        elif row["measured"] is None:
            measured, met = f"not measured: {row['note']}", "unknown"
        else:
            value = f"**{_number(row['measured'])}x**"
            notes = [row["note"]] * bool(row["note"]) + ["disturbed"] * row["disturbed"]
            measured = f"{value} ({'; '.join(notes)})" if notes else value
            met = "yes" if row["met"] else "**no**"
        lines.append(f"| {row['what']} | {row['shape']} | {measured} | {row['bar']} | {met} |")
    cleared = sum(row["met"] is True for row in rows)
    return "\n".join([*lines, "", f"{cleared} of {len(rows)} bars met."])


# How values are found in the results of cases.


def _ratio(result: dict[str, Any], peers: tuple[str, ...] = ()) -> Measured:
    """How many times as long the fastest of the peers takes; of all peers where none is named."""
    times, ours = result["times"], result["ours"]
    wanted = peers or result["peers"]
    known = [name for name in wanted if name in times]
    if not known:
        return Measured(None, f"no {' or '.join(wanted)}")
    best = min(known, key=lambda name: times[name]["median"])
    note = (
        f"{best} {1e3 * times[best]['median']:.3g} ms, ours {1e3 * times[ours]['median']:.3g} ms, "
        f"alone {1e3 * result['alone']:.3g}"
    )
    left_out = [name for name in result["dropped"] if not peers or name in peers]
    return Measured(
        times[best]["median"] / times[ours]["median"],
        "; without ".join([note, *left_out]) + _cores_apart(result, best),
    )


def _together(result: dict[str, Any], peer: str) -> float | None:
    """The ratio to this peer in the rounds in which the cores were not apart."""
    ours, its = (result["times"][name]["median_together"] for name in (result["ours"], peer))
    return its / ours if ours else None


def _cores_apart(result: dict[str, Any], peer: str) -> str:
    ratio = _together(result, peer)
    note = cores.note(result["together"], f"{ratio:.3g}x" if ratio else None)
    return f"; {note}" if note else ""


def _geometric_mean(*results: dict[str, Any]) -> Measured:
    near = [_together(result, result["best_peer"]) for result in results]
    known = None not in near
    mean = statistics.geometric_mean(cast("list[float]", near)) if known else 0.0
    rounds = [together for result in results for together in result["together"]]
    note = cores.note(rounds, f"{mean:.3g}x" if known else None)
    return Measured(statistics.geometric_mean(result["ratio"] for result in results), note)


def _versus(*peers: str) -> Callable[[dict[str, Any]], Measured]:
    return functools.partial(_ratio, peers=peers)


def _beside_clone(result: dict[str, Any]) -> Measured:
    """The ratio to torchaudio, and what it would be if masking took no longer than copying all of it."""
    measured, times = _ratio(result, ("torchaudio",)), result["times"]
    if measured.value is None:
        return measured
    floor = times["torchaudio"]["median"] / times["clone"]["median"]
    return Measured(measured.value, f"{measured.note}; clone would be {floor:.2f}x")


def _of_clone(result: dict[str, Any]) -> Measured:
    times = result["times"]
    ours, clone = times[result["ours"]]["median"], times["clone"]["median"]
    return Measured(ours / clone, f"clone {1e3 * clone:.3g} ms, ours {1e3 * ours:.3g} ms")


# How values are found otherwise.


def _saved(shape: tuple[int, ...]) -> Measured:
    ours, eager, _ = memory.training_step(shape)
    return Measured(ours["saved"] / ours["input"], f"eager {eager['saved'] / eager['input']:.2f}x")


def _peak(shape: tuple[int, ...]) -> Measured:
    ours, eager, _ = memory.training_step(shape)
    if ours["peak"] is None or eager["peak"] is None:
        return Measured(None, "this system does not tell a process's peak")
    return Measured(
        ours["peak"] / eager["peak"], f"eager {eager['peak'] / 1e6:.1f} MB, ours {ours['peak'] / 1e6:.1f} MB"
    )


def _error(shape: tuple[int, ...], training: bool) -> Measured:
    worst = max(exactness.errors(shape, training), key=lambda error: error.of_allowed)
    return Measured(worst.of_allowed, f"{worst.tensor}: ours {worst.ours:.1e}, eager {worst.eager:.1e}")


def _of_limit(case: Case) -> Measured:
    found = inside(case)
    return Measured(found.step_ratio / found.limit, str(found))


def _thread_scaling(shape: tuple[int, ...], seconds: float = 4.0) -> Measured:
    """How much faster GCSA's inference is on two threads than on one, for about so many seconds."""
    case, calls_in_a_row = gcsa_case(shape), 5
    before = torch.get_num_threads()
    built = {"ours": case.ours["gcsa_ext"](), "eager": case.peers["eager"]()}
    calls, settings = {}, {}
    for name, call in built.items():
        for threads in (1, 2):
            calls[f"{name} {threads}"] = functools.partial(_repeat, call, calls_in_a_row)
            settings[f"{name} {threads}"] = call, threads

    def start(name: str) -> None:
        # A thread that has to be created, on a core that slept while others computed on one thread, comes
        # milliseconds late.
        call, threads = settings[name]
        torch.set_num_threads(threads)
        call()

    trips = cores.RoundTrips()
    try:
        spans = measure(calls, seconds, between=trips, prepare=start)
    finally:
        torch.set_num_threads(before)
    median = {name: statistics.median(span) / calls_in_a_row for name, span in spans.items()}
    one, two, eager = median["ours 1"], median["ours 2"], median["eager 1"] / median["eager 2"]
    near = [cores.median_together(spans[name], trips.together()) for name in ("ours 1", "ours 2")]
    apart = cores.note(trips.together(), f"{near[0] / near[1]:.3g}x" if near[0] and near[1] else None)
    note = f"{1e3 * one:.3g} ms to {1e3 * two:.3g} ms, eager {eager:.2f}x"
    return Measured(one / two, "; ".join([note, apart] if apart else [note]))


def _repeat(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def _of_fma_peak(shape: tuple[int, ...], seconds: float = 0.5) -> Measured:
    """Rate of the complex products of GCSA's slower convolution, over that of independent multiply-adds.

    The peak is the best seen before, between and after the convolutions, about so many seconds each.
    """
    extension = native.extension
    if extension is None:
        return Measured(None, native.load_error or "")
    (N, C, H, W), kernel, threads = shape, 7, torch.get_num_threads()
    peak, rates = extension.fma_peak(threads, seconds), {}
    for inputs, outputs in ((C, C // 4), (C // 4, C)):
        rate = extension.convolution_product_rate(N, inputs, outputs, H, W, kernel, threads, seconds)
        rates[f"{inputs} to {outputs}"] = rate
        peak = max(peak, extension.fma_peak(threads, seconds))
    slower = min(rates, key=lambda name: rates[name])
    words = [f"{name} channels {rate / 1e9:.3g} GFLOP/s" for name, rate in rates.items()]
    return Measured(rates[slower] / peak, f"{', '.join(words)}, peak {peak / 1e9:.3g} GFLOP/s")


_BY_NAME = {str(case): case for case in CASES}
_PEER = "the best peer's speed"


def _name(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _bars() -> Iterator[Bar]:
    batches, singles = [(8, *sizes) for sizes in MAPS], [(1, *sizes) for sizes in MAPS]
    tiny, spectrograms, large_spectrograms = (1, 64, 7, 7), (64, 1, 80, 400), (256, 1, 128, 1024)

    for operation, least, mean in (
        ("GCSA eval forward", 4.5, 5.5),
        ("GCSA train forward + backward", 4.0, 4.5),
    ):
        found = tuple(_BY_NAME[f"{operation} {_name(shape)}"] for shape in batches)
        for shape, case in zip(batches, found, strict=True):
            yield Bar(operation, _name(shape), "at least", least, _PEER, _ratio, (case,))
        yield Bar(operation, "geometric mean", "at least", mean, _PEER, _geometric_mean, found)

    for shape, least in zip(singles, (2.5, 2.5, 1.0, 1.0), strict=True):
        case = _BY_NAME[f"GCSA eval forward N=1 {_name(shape)}"]
        yield Bar("GCSA eval forward N=1", _name(shape), "at least", least, _PEER, _ratio, (case,))

    for shape in batches:
        measured = functools.partial(_saved, shape)
        yield Bar(
            "bytes saved for backward", _name(shape), "at most", 2.5, "the input", measured, timed=False
        )
    for shape in batches:
        measured = functools.partial(_peak, shape)
        yield Bar(
            "peak memory of a training step", _name(shape), "below", 1.0, "eager's", measured, timed=False
        )

    for training in (False, True):
        what = f"error of forward and every gradient, {'train' if training else 'eval'}"
        for shape in batches:
            measured = functools.partial(_error, shape, training)
            yield Bar(what, _name(shape), "at most", 1.0, "what is allowed", measured, timed=False)

    for operation in ("GCSA eval forward", "GCSA train forward + backward"):
        operation += " bfloat16 autocast"
        for shape in batches:
            versus, case = _versus("eager", "eager channels_last"), _BY_NAME[f"{operation} {_name(shape)}"]
            yield Bar(operation, _name(shape), "at least", 2.0, "eager's speed", versus, (case,))

    torchaudio, speed = _versus("torchaudio"), "torchaudio's speed"
    for kind, least in (("shared", 4.0), ("iid", 8.0)):
        what = f"FrequencyMasking {kind}"
        case = _BY_NAME[f"{what} {_name(spectrograms)}"]
        yield Bar(what, _name(spectrograms), "at least", least, speed, _beside_clone, (case,))
        case = _BY_NAME[f"{what} {_name(large_spectrograms)}"]
        yield Bar(what, _name(large_spectrograms), "at most", 1.15, "clone's time", _of_clone, (case,))
        for shape in (spectrograms, large_spectrograms):
            case = _BY_NAME[f"{what} in place {_name(shape)}"]
            yield Bar(f"{what} in place", _name(shape), "at least", 10.0, speed, torchaudio, (case,))

    for operation in ("GCSA eval forward", "GCSA train forward + backward"):
        case, eager = _BY_NAME[f"{operation} N=1 {_name(tiny)}"], _versus("eager")
        yield Bar(f"host cost, {operation}", _name(tiny), "at least", 1.0, "eager's speed", eager, (case,))

    for case in CASES:
        if case.operation.startswith("BimodalNet"):
            measured = functools.partial(_of_limit, case)
            yield Bar(case.operation, _name(tuple(case.shape)), "at least", 0.9, "the limit", measured)

    shape = (8, *MAPS[1])
    scaling = functools.partial(_thread_scaling, shape)
    yield Bar("threads 1 to 2, GCSA eval forward", _name(shape), "at least", 1.7, "the speed", scaling)

    for shape in batches:
        measured = functools.partial(_of_fma_peak, shape)
        yield Bar("frequency-domain product", _name(shape), "at least", 0.8, "the FMA peak", measured)

    # Add a bar here: what, shape, "at least", limit, what it is a ratio of, a function () -> Measured.


BARS = tuple(_bars())
