"""A case from its contenders to a row of figures: first what they compute is checked, then they are timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from harness.case import OURS, Call, Case
from harness.errors import in_one_line
from harness.timing import measure, quartiles

Timed = Callable[[], object]


def run(
    case: Case,
    contenders: Iterable[str],
    error: Callable[[Call], float],
    allowed: Callable[[dict[str, float]], float],
    ways: Callable[[str, Call], dict[str, Timed]] = lambda name, call: {name: call},
    **timing: Any,
) -> dict[str, Any]:
    """Check and time one case.

    Args:
        case: what to run.
        contenders: of the case, by name; the first is the first peer.
        error: of what a contender's call returns.
        allowed: the largest error that is right, from the errors so far by contender.
        ways: (name, call) -> the calls to be timed for a contender, by name.
        timing: further arguments of `measure`.

    Returns:
        "operation", "shape", "dtype", "backward", "flops" and "bytes" (see Case), "errors" by contender,
        "dropped" (contenders that cannot run or are wrong, with the reason), "failure" (the reason why one of
        gcsa_ext's was dropped, or None), "spans" (seconds of every round) and "times" ("median", "quartiles",
        "rounds"), both by the name of what was timed. If all of gcsa_ext's fail, nothing is timed.
    """
    result: dict[str, Any] = {
        "operation": case.operation,
        "shape": list(case.shape),
        "dtype": str(case.dtype),
        "backward": case.backward,
        "bytes": case.bytes,
        "flops": case.flops() if callable(case.flops) else case.flops,
    }
    calls: dict[str, Timed] = {}
    errors: dict[str, float] = {}
    dropped: dict[str, str] = {}
    for name in contenders:
        try:
            call = case.build(name)
            errors[name] = error(call)
            if not errors[name] <= allowed(errors):  # NaN too
                raise ArithmeticError(f"error {errors[name]:.1e}, allowed is {allowed(errors):.1e}")
            calls[name] = call
            calls |= ways(name, call)
        except Exception as problem:  # torch.compile raises anything; the other contenders still count
            dropped[name] = in_one_line(problem)
    failures = [reason for name, reason in dropped.items() if name.startswith(OURS)]
    spans = measure(calls, **timing) if any(name.startswith(OURS) for name in calls) else {}
    times = {}
    for name, span in spans.items():
        low, median, high = quartiles(span)
        times[name] = {"median": median, "quartiles": [low, high], "rounds": len(span)}
    return {
        **result,
        "errors": errors,
        "dropped": dropped,
        "failure": failures[0] if failures else None,
        "times": times,
        "spans": spans,
    }
