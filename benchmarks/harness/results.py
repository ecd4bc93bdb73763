"""A results file to which one part after the other is added, so that a program can go on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.machine import write


@dataclass(frozen=True)
class Part:
    """Something to find out, under a name that is unique among all parts."""

    kind: str
    name: str
    measure: Callable[[], dict[str, Any]]


class Results:
    """The results file: a line that says what they are of, then a line per part.

    Args:
        file: is continued if its first line is `identity`, otherwise replaced.
        identity: what the results are of.
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
        """The records of a kind that have not failed as a whole."""
        return [r for r in self.records.values() if r["kind"] == kind and "stopped" not in r]

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
    """Why a part, or one of gcsa_ext's contenders in it, failed."""
    return record.get("stopped") or record.get("failure")
