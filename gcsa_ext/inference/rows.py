"""The prediction for one frame, and a summary of the predictions for a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class FramePrediction(NamedTuple):
    """The prediction for one frame. It is made from windows of bins, see :mod:`gcsa_ext.inference.predictor`.

    Attributes:
        frame: index of the frame in the file, from 0.
        time: its presentation time in s; 0 is that of the first frame.
        label: name of the most probable class.
        probabilities: K probabilities in the order of the classes; they sum to 1.
        face: a face was found at the centre of the frame's bin.
        audio: there is sound, not digital silence, in the frame's bin.
        note: which modality the windows lack, if any; empty otherwise.
    """

    frame: int
    time: float
    label: str
    probabilities: tuple[float, ...]
    face: bool
    audio: bool
    note: str


NOTES = {
    (True, True): "",
    (True, False): "no sound: judged by the face alone",
    (False, True): "no face: judged by the sound alone",
    (False, False): "no face and no sound: nothing to judge by",
}
"""By (a face was found, there was sound) in the windows from which a prediction is made."""


@dataclass
class Summary:
    """Counts over the rows of a file.

    Attributes:
        frames: rows so far.
        seconds: time of the last row.
        faces: rows with a face.
        audible: rows with sound.
        labels: rows by label.
        notes: rows by note, without the empty one.
    """

    frames: int = 0
    seconds: float = 0.0
    faces: int = 0
    audible: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def observe(self, rows: Iterable[FramePrediction]) -> Iterator[FramePrediction]:
        """Count the `rows` and yield them."""
        for row in rows:
            self.frames += 1
            self.seconds = row.time
            self.faces += row.face
            self.audible += row.audio
            self.labels[row.label] = self.labels.get(row.label, 0) + 1
            if row.note:
                self.notes[row.note] = self.notes.get(row.note, 0) + 1
            yield row

    def describe(self) -> str:
        """One line: how many frames, the most frequent label, and what was missing."""
        if not self.frames:
            return "no frames"
        label = max(self.labels, key=lambda name: self.labels[name])
        share = round(100 * self.labels[label] / self.frames)
        text = f"{self.frames} frames, mostly {label} ({share} %)"
        for note, count in self.notes.items():
            text += f"; {note} (in {'all' if count == self.frames else count} frames)"
        return text
