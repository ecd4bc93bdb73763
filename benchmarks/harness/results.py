"""A results file to which a program adds one part after the other, so that it can go on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.machine import write


@dataclass(frozen=True)
class Part:
    """Something to measure.

    Args:
        kind: parts of one kind have the same keys in their results.
        name: unique among all parts.
        measure: returns the results; its exception is the result "raised".
    """

    kind: str
    name: str
    measure: Callable[[], dict[str, Any]]


class Results:
    """The results file: one line that identifies what was measured, then a line per part.

    Args:
        file: is continued if its first line is `identity`, otherwise replaced.
        identity: device, versions and sources.
    """

    def __init__(self, file: Path, identity: dict[str, Any]) -> None:
        self._file = file
        first, *records = _lines(file) or [{}]
        self.records = {record["name"]: record for record in records if first == identity}
        lines = [identity, *self.records.values()]  # the file may end with half a line
        write(file, "".join(json.dumps(line) + "\n" for line in lines))

    def add(self, part: Part, found: dict[str, Any]) -> None:
        self.records[part.name] = {"kind": part.kind, "name": part.name, **found}
        with self._file.open("a") as output:
            output.write(json.dumps(self.records[part.name]) + "\n")

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The results of a kind, without parts that raised an exception."""
        return [r for r in self.records.values() if r["kind"] == kind and "raised" not in r]

    def missing(self, parts: Sequence[Part]) -> list[Part]:
        """Parts that were never tried or not finished, then those that failed."""
        untried = [p for p in parts if self.records.get(p.name, {"unfinished": True}).get("unfinished")]
        return untried + [p for p in parts if p not in untried and failure_of(self.records[p.name])]


def _lines(file: Path) -> list[dict[str, Any]]:
    """What can be read of the file, up to the first damaged line."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def failure_of(record: dict[str, Any]) -> str | None:
    """Why a part failed: its exception, or the reason why a contender of gcsa_ext was left out."""
    return record.get("raised") or record.get("failure")
