"""Bars, the limits that this project sets itself on a CPU: what is measured, how, and the limit.

To add a bar, yield one more at the end of `_bars`; its `find` takes the results (see report.run_case) of its
`cases`, if it has any.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness import memory
from harness.case import CLONE, Case, shape_name
from harness.disturbances import WAITED
from harness.errors import in_one_line
from harness.operators import MAPS
from harness.published import VARIANTS
from harness.suite import BY_NAME, MASKING
from harness.verdicts import Verdict

Found = tuple[float | None, str]
"""A value, None where this machine cannot tell, and a note."""


@dataclass(frozen=True)
class Bar:
    """One limit, and how the value is found that it is compared with.

    Args:
        what: is measured, with its shape.
        comparison, limit, of: see Verdict.
        find: finds the value; its arguments are the results of `cases`, in their order.
        cases: of the report that must run first; all of them must have passed.
    """

    what: str
    comparison: str
    limit: float
    of: str
    find: Callable[..., Found]
    cases: tuple[Case, ...] = ()

    def judge(self, results: Mapping[str, dict[str, Any]]) -> Verdict:
        """Find the value, from the results of all its cases by the case's name, and compare it."""
        value, note, failure = None, "", None
        try:
            found = [results[str(case)] for case in self.cases]
            for result in found:
                if result["failure"]:
                    raise RuntimeError(f"{result['operation']}: {result['failure']}")
            value, note = self.find(*found)
            if any(result["waited"] > WAITED for result in found):
                note += "; disturbed"
        except Exception as problem:  # whatever fails, the other bars are still worth measuring
            failure = in_one_line(problem)
        return Verdict(self.what, value, self.comparison, self.limit, self.of, note, failure)


def ratio(result: dict[str, Any], peers: tuple[str, ...] = ()) -> Found:
    """How many times as long the fastest of the peers takes; of all peers where none is named."""
    times, ours = result["times"], result["times"][result["ours"]]["median"]
    known = [name for name in peers or result["peers"] if name in times]
    if not known:
        return None, f"no {' or '.join(peers)}"
    best = min(known, key=lambda name: times[name]["median"])
    its = times[best]["median"]
    remarks = [f"{best} {1e3 * its:.3g} ms, ours {1e3 * ours:.3g} ms"]
    remarks += [f"without {name}" for name in result["dropped"] if not peers or name in peers]
    if CLONE in times:
        remarks.append(f"a copy would have {its / times[CLONE]['median']:.2f}")
    if separate := result["rounds_on_separate_caches"]:
        remarks.append(f"cores apart in {separate} of {times[best]['rounds']} rounds")
    return its / ours, "; ".join(remarks)


def geometric_mean(*results: dict[str, Any]) -> Found:
    """Of the ratios to the best peers."""
    return statistics.geometric_mean(result["ratio"] for result in results), ""


def over_clone(result: dict[str, Any]) -> Found:
    """Our time over that of a plain copy of the input."""
    ours, clone = (result["times"][name]["median"] for name in (result["ours"], CLONE))
    return ours / clone, f"a copy {1e3 * clone:.3g} ms, ours {1e3 * ours:.3g} ms"


def saved(shape: tuple[int, ...]) -> Found:
    """Bytes that a training step of GCSA saves for its backward pass, over those of its input."""
    ours, eager, _ = memory.training_step(shape)
    return ours["saved"] / ours["input"], f"eager {eager['saved'] / eager['input']:.2f}"


def peak(shape: tuple[int, ...]) -> Found:
    """Peak memory of a training step of GCSA over that of eager PyTorch's."""
    ours, eager, _ = memory.training_step(shape)
    if ours["peak"] is None or eager["peak"] is None:
        return None, "this system does not tell a process's peak"
    megabytes = [f"{name} {found['peak'] / 1e6:.1f} MB" for name, found in (("eager", eager), ("ours", ours))]
    return ours["peak"] / eager["peak"], ", ".join(megabytes)


def _bars() -> Iterator[Bar]:
    batches = [(8, *sizes) for sizes in MAPS]
    evaluation, training = "GCSA eval forward", "GCSA train forward + backward"

    def speed(name: str, least: float, *peers: str) -> Bar:
        of = f"times {peers[0] if peers else 'the best peer'}'s speed"
        return Bar(name, "at least", least, of, functools.partial(ratio, peers=peers), (BY_NAME[name],))

    for operation, least, mean in ((evaluation, 4.5, 5.5), (training, 4.0, 4.5)):
        names = [f"{operation} {shape_name(shape)}" for shape in batches]
        yield from (speed(name, least) for name in names)
        cases = tuple(BY_NAME[name] for name in names)
        what = f"{operation} geometric mean"
        yield Bar(what, "at least", mean, "times the best peer's speed", geometric_mean, cases)
    for variant in VARIANTS:
        for passes, least in (("eval forward", 4.5), ("train forward + backward", 4.0)):
            for shape in batches:
                yield speed(f"published {variant} {passes} {shape_name(shape)}", least)
    for sizes, least in zip(MAPS, (2.5, 2.5, 1.0, 1.0), strict=True):
        yield speed(f"{evaluation} N=1 {shape_name((1, *sizes))}", least)
    for operation in (evaluation, training):
        yield speed(f"{operation} N=1 1x64x7x7", 1.0, "eager")
        for shape in batches:
            name = f"{operation} bfloat16 autocast {shape_name(shape)}"
            yield speed(name, 2.0, "eager", "eager channels_last")

    for shape in batches:
        name = shape_name(shape)
        find = functools.partial(saved, shape)
        yield Bar(f"bytes saved for backward {name}", "at most", 2.5, "times the input", find)
        find = functools.partial(peak, shape)
        yield Bar(f"peak memory of a training step {name}", "below", 1.0, "times eager's", find)

    for module in MASKING:
        for kind, least in (("shared", 4.0), ("iid", 8.0)):
            yield speed(f"{module} {kind} 64x1x80x400", least, "torchaudio")
            for name in ("64x1x80x400", "256x1x128x1024"):
                yield speed(f"{module} {kind} in place {name}", 10.0, "torchaudio")
            large = BY_NAME[f"{module} {kind} 256x1x128x1024"]
            yield Bar(str(large), "at most", 1.15, "times the time of a copy", over_clone, (large,))
    for kind, least in (("shared", 4.0), ("iid", 8.0)):
        yield speed(f"SpecAugment {kind} mean 64x1x80x400", least, "torchaudio")


BARS = tuple(_bars())
