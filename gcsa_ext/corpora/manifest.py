"""The manifest: a CSV file that lists clips with their labels, splits and speakers."""

import csv
import hashlib
import io
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gcsa_ext.atomic import whole_file
from gcsa_ext.corpora.labels import EMOTIONS, IGNORE_INDEX, LabelSet, label_set

SPLITS = ("train", "validation", "test")
_OPTIONAL_COLUMNS = ("start", "end", "speaker", "frame_labels")
_MOST_PROBLEMS_SHOWN = 20


class ManifestError(ValueError):
    """A manifest with errors. The message has one line per bad row: line number, column, value, expectation.

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
        speaker: who is seen and heard, by any name; None if unknown.
        frame_labels: index of the class of each video frame of the file, in the order of presentation, -1 for
            a frame that has no label; None if only the clip as a whole is labelled.
    """

    path: Path
    label: int = IGNORE_INDEX
    split: str = "test"
    start: float | None = None
    end: float | None = None
    speaker: str | None = None
    frame_labels: tuple[int, ...] | None = None


class _RowError(Exception):
    pass


def read_manifest(
    csv_path: str | Path, classes: Sequence[str] = EMOTIONS, require_labels: bool = True
) -> list[Clip]:
    """Read a manifest.

    The columns ``path``, ``label`` and ``split`` are required. The columns ``start`` and ``end`` (in
    seconds), ``speaker`` and ``frame_labels`` are optional. Other columns are ignored. A label is the name of
    a class in any case, its index, or -1 for a clip to be left out. ``frame_labels`` is the path of a text
    file with one class index or -1 per line, for the frames of the media file from the first one on. A
    relative path is relative to the manifest. A byte-order mark and blank lines do no harm.

    Args:
        csv_path: the CSV file, UTF-8, with a header.
        classes: a label set, or class names by index.
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
        clips, problems = _read_rows(text, manifest, label_set(classes), require_labels)
    except csv.Error as error:
        raise ManifestError(manifest, [f"it is no CSV text ({error})"]) from error
    if problems:
        raise ManifestError(manifest, problems)
    return clips


def write_manifest(csv_path: str | Path, clips: Iterable[Clip], classes: Sequence[str] = EMOTIONS) -> None:
    """Write ``clips`` as a manifest, with paths relative to it and labels by name, unknown ones as -1.

    Labels per frame go to text files in the folder ``<manifest's stem>-frame-labels`` beside the manifest.
    Each file is written under a temporary name and then renamed, so it is never half there.
    """
    manifest = Path(csv_path)
    folder = manifest.parent.resolve()
    with whole_file(manifest) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "split", "start", "end", "speaker", "frame_labels"])
        for clip in clips:
            writer.writerow(
                [
                    _relative(clip.path, folder),
                    IGNORE_INDEX if clip.label == IGNORE_INDEX else classes[clip.label],
                    clip.split,
                    "" if clip.start is None else clip.start,
                    "" if clip.end is None else clip.end,
                    clip.speaker or "",
                    "" if clip.frame_labels is None else _write_frame_labels(manifest, clip.frame_labels),
                ]
            )


def _write_frame_labels(manifest: Path, frame_labels: Sequence[int]) -> str:
    """Write one label per line. Returns the file's path relative to the manifest."""
    text = "".join(f"{label}\n" for label in frame_labels)
    # The name is a digest of the content, so that rewriting a manifest never changes a file which the old
    # manifest refers to.
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    file = manifest.with_name(f"{manifest.stem}-frame-labels") / f"{name}.txt"
    with whole_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return file.relative_to(manifest.parent).as_posix()


def _read_rows(
    text: str, manifest: Path, labels: LabelSet, require_labels: bool
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
                    f"the columns {', '.join(required)} and optionally {', '.join(_OPTIONAL_COLUMNS)}"
                )
                return [], [problem]
            continue
        values = {name: row[column].strip() if column < len(row) else "" for name, column in header.items()}
        try:
            clips.append(_clip(values, manifest.parent, labels, require_labels))
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


def _clip(values: dict[str, str], folder: Path, labels: LabelSet, require_labels: bool) -> Clip:
    path = _file(values, "path", folder, "a media file")
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
    frame_labels = None
    if values.get("frame_labels"):
        file = _file(values, "frame_labels", folder, "a text file with one label per line")
        frame_labels = _frame_labels(file, len(labels))
    return Clip(
        path=path,
        label=_label(values.get("label", ""), labels, require_labels),
        split=split,
        start=start,
        end=end,
        speaker=values.get("speaker") or None,
        frame_labels=frame_labels,
    )


def _file(values: dict[str, str], column: str, folder: Path, expected: str) -> Path:
    if not values[column]:
        raise _RowError(f"column {column!r}: it is empty; expected {expected}")
    path = folder / Path(values[column]).expanduser()
    if not path.is_file():
        raise _RowError(f"column {column!r}: {values[column]!r} is no file ({path}); expected {expected}")
    return path


def _label(text: str, labels: LabelSet, required: bool) -> int:
    if text == str(IGNORE_INDEX) or (not required and not text):
        return IGNORE_INDEX
    try:
        return labels.lookup(text)
    except ValueError as error:
        raise _RowError(f"column 'label': {error}, or {IGNORE_INDEX} for a clip to be left out") from error


def _frame_labels(file: Path, num_classes: int) -> tuple[int, ...]:
    expected = f"expected a number from 0 to {num_classes - 1}, or {IGNORE_INDEX} for a frame without label"
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _RowError(f"column 'frame_labels': {file} cannot be read as text ({error})") from error
    allowed = {str(label): label for label in range(IGNORE_INDEX, num_classes)}
    for number, line in enumerate(lines, start=1):
        if line.strip() not in allowed:
            raise _RowError(f"column 'frame_labels': line {number} of {file} is {line!r}; {expected}")
    return tuple(allowed[line.strip()] for line in lines)


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
