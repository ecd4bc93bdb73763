"""What was found beside what is demanded."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "at least": operator.ge,
    "at most": operator.le,
    "below": operator.lt,
}


@dataclass(frozen=True)
class Verdict:
    """One row of the table.

    Args:
        what: was measured, with its shape.
        found: the value; None where this machine cannot tell.
        comparison: of `COMPARISONS`.
        limit: that the value is compared with.
        of: the unit of both, in words, such as "eager's speed".
        note: what else the reader should know.
        failure: why nothing was found although it should have been.
    """

    what: str
    found: float | None
    comparison: str
    limit: float
    of: str = ""
    note: str = ""
    failure: str | None = None

    @property
    def met(self) -> bool | None:
        """None where nothing was found."""
        return None if self.found is None else COMPARISONS[self.comparison](self.found, self.limit)


def table(verdicts: Sequence[Verdict]) -> str:
    """The Markdown table, and how many limits are met."""
    lines = ["| what | found | demanded | met |", "|---|---|---|---|"]
    for verdict in verdicts:
        if verdict.failure:
            found, met = f"FAILED: {verdict.failure}", "failed"
        elif verdict.found is None:
            found, met = f"not measured: {verdict.note}", "unknown"
        else:
            found = f"**{_number(verdict.found)}**" + (f" ({verdict.note})" if verdict.note else "")
            met = "yes" if verdict.met else "**no**"
        demanded = f"{verdict.comparison} {_number(verdict.limit)} {verdict.of}".rstrip()
        lines.append(f"| {verdict.what} | {found} | {demanded} | {met} |")
    judged = [verdict.met for verdict in verdicts if verdict.met is not None]
    others = len(verdicts) - len(judged)
    last = f"{sum(judged)} of {len(judged)} met" + (f", {others} not measured." if others else ".")
    return "\n".join([*lines, "", last])


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
