"""The manifest: a CSV file that lists clips with their labels and splits."""

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gcsa_ext.atomic import whole_file
from gcsa_ext.corpora.labels import EMOTIONS, IGNORE_INDEX

SPLITS = ("train", "validation", "test")
_MOST_PROBLEMS_SHOWN = 20


class ManifestError(ValueError):
    """A manifest that cannot be used. The message has one line per bad row: line, column, value, expectation.

    Attributes:
        path: the manifest.
        problems: one sentence per bad row.
    """

    def __init__(self, path: Path, problems: Sequence[str]) -> None:
        shown = list(problems[:_MOST_PROBLEMS_SHOWN])
        if len(problems) > len(shown):
            shown.append(f"... and {len(problems) - len(shown)} more")
        super().__init__("\n  ".join([f"{path}:", *shown]) if len(shown) > 1 else f"{path}: {shown[0]}")
        self.path = path
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type["ManifestError"], tuple[Path, tuple[str, ...]]]:
        return type(self), (self.path, self.problems)


@dataclass(frozen=True)
class Clip:
    """A stretch of a media file with its label.

    Attributes:
        path: the media file.
        label: index of the class, -1 if unknown.
        split: "train", "validation" or "test".
        start: where the clip begins, in s on the file's clock; None for its beginning.
        end: where it ends, in s; None for the file's end.
    """

    path: Path
    label: int = IGNORE_INDEX
    split: str = "test"
    start: float | None = None
    end: float | None = None


class _RowError(Exception):
    pass


def read_manifest(
    csv_path: str | Path, classes: Sequence[str] = EMOTIONS, require_labels: bool = True
) -> list[Clip]:
    """Read a manifest.

    The columns are ``path``, ``label``, ``split`` and, if wanted, ``start`` and ``end`` in seconds; others
    are left alone. A relative path is relative to the manifest. A label is a name of ``classes`` in any case,
    an index into them, or -1 for a clip to be left out. A byte-order mark and blank lines do no harm.

    Args:
        csv_path: the CSV file, UTF-8, with a header.
        classes: class names by index.
        require_labels: if False, ``label`` and ``split`` may be absent or empty (-1 and "test").

    Raises:
        ManifestError: the file is missing or empty, lacks a column, or has bad rows; every bad row is named
            with its line number, the column, the offending value and what was expected.
    """
    manifest = Path(csv_path)
    try:
        text = manifest.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ManifestError(manifest, ["there is no such file; expected a CSV manifest"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(manifest, [f"it cannot be read as UTF-8 text ({error})"]) from error

    try:
        clips, problems = _read_rows(text, manifest, classes, require_labels)
    except csv.Error as error:
        raise ManifestError(manifest, [f"it is no CSV text ({error})"]) from error
    if problems:
        raise ManifestError(manifest, problems)
    return clips


def write_manifest(csv_path: str | Path, clips: Iterable[Clip], classes: Sequence[str] = EMOTIONS) -> None:
    """Write ``clips`` as a manifest, with paths relative to it and labels by name, unknown ones as -1.

    The file is written under a temporary name and then renamed, so it is never half there.
    """
    manifest = Path(csv_path)
    folder = manifest.parent.resolve()
    with whole_file(manifest) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "split", "start", "end"])
        for clip in clips:
            writer.writerow(
                [
                    _relative(clip.path, folder),
                    IGNORE_INDEX if clip.label == IGNORE_INDEX else classes[clip.label],
                    clip.split,
                    "" if clip.start is None else clip.start,
                    "" if clip.end is None else clip.end,
                ]
            )


def _read_rows(
    text: str, manifest: Path, classes: Sequence[str], require_labels: bool
) -> tuple[list[Clip], list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    required = ("path", "label", "split") if require_labels else ("path",)
    header: dict[str, int] = {}
    clips: list[Clip] = []
    problems: list[str] = []
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        if not header:
            header = {name.strip().lower(): column for column, name in enumerate(row)}
            missing = [name for name in required if name not in header]
            if missing:
                problem = (
                    f"line {reader.line_num}, column {missing[0]!r}: it is not in the header {row}; expected "
                    f"the columns {', '.join(required)} and optionally start, end"
                )
                return [], [problem]
            continue
        values = {name: row[column].strip() if column < len(row) else "" for name, column in header.items()}
        try:
            clips.append(_clip(values, manifest.parent, classes, require_labels))
        except _RowError as error:
            problems.append(f"line {reader.line_num}, {error}")
    if not clips and not problems:
        problems.append(
            f"{'it lists no clips' if header else 'it is empty'}; expected a header and some rows"
        )
    return clips, problems


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), folder)).as_posix()
    except ValueError:  # another drive on Windows
        return path.resolve().as_posix()


def _clip(values: dict[str, str], folder: Path, classes: Sequence[str], require_labels: bool) -> Clip:
    if not values["path"]:
        raise _RowError("column 'path': it is empty; expected a media file")
    path = folder / Path(values["path"]).expanduser()
    if not path.is_file():
        raise _RowError(f"column 'path': {values['path']!r} is no file ({path}); expected a media file")

    split = values.get("split", "").lower()
    if not split and not require_labels:
        split = "test"
    if split not in SPLITS:
        raise _RowError(f"column 'split': {values['split']!r} is unknown; expected {', '.join(SPLITS)}")

    start, end = _seconds(values, "start"), _seconds(values, "end")
    if end is not None and end <= (start or 0.0):
        raise _RowError(
            f"column 'end': {values['end']!r} is not after start {values.get('start', '') or '0'!r}; "
            "expected start < end, in seconds"
        )
    label = _label(values.get("label", ""), classes, require_labels)
    return Clip(path=path, label=label, split=split, start=start, end=end)


def _label(text: str, classes: Sequence[str], required: bool) -> int:
    if text == str(IGNORE_INDEX) or (not required and not text):
        return IGNORE_INDEX
    names = [name.lower() for name in classes]
    if text.lower() in names:
        return names.index(text.lower())
    if text.isdecimal() and int(text) < len(classes):
        return int(text)
    raise _RowError(
        f"column 'label': {text!r} is unknown; expected one of {', '.join(classes)}, an index from 0 to "
        f"{len(classes) - 1}, or {IGNORE_INDEX} for a clip to be left out"
    )


def _seconds(values: dict[str, str], column: str) -> float | None:
    text = values.get(column, "")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.0 <= seconds < math.inf:
        raise _RowError(f"column {column!r}: {text!r} is no time; expected seconds >= 0")
    return seconds
