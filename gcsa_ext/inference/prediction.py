"""Emotions over time in media files of any length: a file in, a row of probabilities per frame out.

The file is cut into equal bins, as many per window as the network takes pictures. The picture on display at a
bin's centre and the bin's sound stand for the bin; a window is a run of bins, and the network answers for
each window. A frame's probabilities are interpolated between the windows whose centres lie around it, then
averaged over a short time. Only one window of bins, and the frames that still wait for their answer, are in
memory at any moment.
"""

from __future__ import annotations

import csv
import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gcsa_ext.atomic import whole_file
from gcsa_ext.corpora import (
    EMOTIONS,
    ClipBatch,
    ClipSample,
    ClipSettings,
    collate_clips,
    is_audible,
    make_sample,
)
from gcsa_ext.media import FaceCropper, MediaInfo, iterate_audio, iterate_frames, probe
from gcsa_ext.nn import BimodalNet

AUDIO_ROWS_PER_SECOND = 25
"""Rate of the rows for a file without a video track."""

# Ten microseconds; the sum of equal bins need not hit the end of the file to the last bit.
_ROUNDING = 1e-5

Crop = npt.NDArray[np.uint8]
Waveform = npt.NDArray[np.float32]


class FramePrediction(NamedTuple):
    """The answer for one frame.

    Attributes:
        frame: index of the frame in the file, from 0.
        time: its presentation time in s; 0 is that of the first frame.
        label: name of the most probable class.
        probabilities: K probabilities in the order of the classes; they sum to 1.
        face: a face was found in the picture that stands for the frame's bin.
        audio: there is sound, not digital silence, in the frame's bin.
        note: which modality the answer lacks, if any; empty otherwise.
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
"""By (a face was found, there was sound) in the windows that the answer comes from."""


@dataclass
class Summary:
    """What was found in a file, counted while its rows pass by.

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
        """Count `rows` and pass them on."""
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


@dataclass
class _Bin:
    """One bin of a file: the times of the frames in it, the face at its centre, its sound."""

    times: list[float]
    crop: Crop | None
    sound: Waveform

    @property
    def audible(self) -> bool:
        return is_audible(self.sound)


class _Sound:
    """Sound of a file in pieces of any size; empty once it has ended."""

    def __init__(self, path: str | Path, sample_rate: int) -> None:
        self._chunks = iterate_audio(path, sample_rate, chunk_seconds=1.0)
        self._rest: Waveform = np.zeros(0, dtype=np.float32)
        self.position = 0

    def read_to(self, sample: int) -> Waveform:
        """The samples from the current position up to `sample`, fewer at the end."""
        wanted = sample - self.position
        self._fill(wanted)
        piece, self._rest = self._rest[:wanted], self._rest[wanted:]
        self.position += piece.size
        return piece

    def goes_on(self) -> bool:
        """Whether there is at least one more sample."""
        self._fill(1)
        return self._rest.size > 0

    def _fill(self, wanted: int) -> None:
        pieces, available = [self._rest], self._rest.size
        while available < wanted:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            pieces.append(chunk)
            available += chunk.size
        self._rest = np.concatenate(pieces) if len(pieces) > 1 else self._rest


def _video_bins(
    path: str | Path, info: MediaInfo, settings: ClipSettings, width: float, sound: _Sound
) -> Iterator[_Bin]:
    """Bins of `width` seconds of a file with a video track."""
    cropper = FaceCropper(settings.image_size, settings.faces)
    index = 0
    times: list[float] = []
    crop: Crop | None = None
    looked = False
    shown = None

    def finished() -> _Bin:
        return _Bin(times, crop, sound.read_to(round((index + 1) * width * settings.sample_rate)))

    for time, frame in iterate_frames(path):
        while True:
            # The picture at the bin's centre is the last one that is not later; at the start it is the first.
            if not looked and time > (index + 0.5) * width:
                crop, looked = cropper(frame if shown is None else shown), True
            if time < (index + 1) * width:
                break
            yield finished()
            index, times, crop, looked = index + 1, [], None, False
        times.append(time)
        shown = frame
    if shown is None:
        return
    # The last frame stays on display to the end of the track: a window's worth of that may still have sound.
    for _ in range(settings.frames_per_clip):
        if not looked:
            crop = cropper(shown)
        yield finished()
        index, times, crop, looked = index + 1, [], None, False
        if index * width >= info.duration - _ROUNDING or not sound.goes_on():
            return


def _sound_bins(settings: ClipSettings, width: float, sound: _Sound) -> Iterator[_Bin]:
    """Bins of `width` seconds of a file without a video track, with evenly spaced times for rows."""
    index, row = 0, 0
    while sound.goes_on():
        piece = sound.read_to(round((index + 1) * width * settings.sample_rate))
        end = sound.position / settings.sample_rate
        times = []
        while row / AUDIO_ROWS_PER_SECOND < end:
            times.append(row / AUDIO_ROWS_PER_SECOND)
            row += 1
        yield _Bin(times, None, piece)
        index += 1


@dataclass
class _Window:
    """Consecutive bins that the network judges together; `centre` in s."""

    centre: float
    bins: list[_Bin]

    def sample(self, settings: ClipSettings) -> ClipSample:
        """The network's input."""
        return make_sample(
            [one.crop for one in self.bins], np.concatenate([one.sound for one in self.bins]), settings
        )


class _Answer(NamedTuple):
    """What the network says about a window: (K,) float64 probabilities, and which modalities it had."""

    centre: float
    probabilities: npt.NDArray[np.float64]
    visual: bool
    audio: bool


class _Frame(NamedTuple):
    """A frame that waits for its answer."""

    number: int
    time: float
    face: bool
    audio: bool


class _Row(NamedTuple):
    """A frame with its answer, before smoothing."""

    frame: _Frame
    probabilities: npt.NDArray[np.float64]
    note: str


def predict_video(
    path: str | Path,
    model: BimodalNet,
    settings: ClipSettings | None = None,
    classes: Sequence[str] = EMOTIONS,
    *,
    hop_seconds: float | None = None,
    smoothing_seconds: float = 1.0,
    batch_size: int = 8,
) -> Iterator[FramePrediction]:
    """Judge every frame of a media file.

    Memory does not grow with the length of the file. A file without a video track gets 25 rows per second.

    Args:
        path: the file. It may lack sound, a video track, or a face: then the other modality judges alone, and
            with neither the answer is the uniform distribution; the rows' notes say so.
        model: the network; it runs in eval mode, on its device.
        settings: those that the network was trained with.
        classes: K names by index.
        hop_seconds: time from one window to the next, rounded to whole bins; half a window by default.
        smoothing_seconds: length of the centred moving average over time; 0 for none.
        batch_size: windows per forward pass.

    Yields:
        One :class:`FramePrediction` per decoded frame, in order.

    Raises:
        MediaError: the file is missing, empty, truncated or no media file; raised by the call, not while
            iterating.
        ValueError: a number out of range, or another number of classes than the network's.
    """
    settings = ClipSettings() if settings is None else settings
    if len(classes) != model.num_classes:
        raise ValueError(
            f"{len(classes)} class names {tuple(classes)} for a network of {model.num_classes} classes"
        )
    if hop_seconds is not None and not 0 < hop_seconds < math.inf:
        raise ValueError(f"hop_seconds must be positive, got {hop_seconds}")
    if not 0 <= smoothing_seconds < math.inf:
        raise ValueError(f"smoothing_seconds must be at least 0, got {smoothing_seconds}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    info = probe(path)

    # A file shorter than the window is one window, as prepare_clip takes a short clip.
    window = info.duration if 0 < info.duration < settings.window_seconds else settings.window_seconds
    width = window / settings.frames_per_clip
    hop = settings.frames_per_clip // 2 if hop_seconds is None else round(hop_seconds / width)
    hop = min(max(hop, 1), settings.frames_per_clip)
    sound = _Sound(path, settings.sample_rate)
    bins = (
        _video_bins(path, info, settings, width, sound)
        if info.has_video
        else _sound_bins(settings, width, sound)
    )
    rows = _rows(bins, model, settings, width, hop, batch_size)
    return _smoothed(rows, classes, smoothing_seconds)


def _rows(
    bins: Iterator[_Bin], model: BimodalNet, settings: ClipSettings, width: float, hop: int, batch_size: int
) -> Iterator[_Row]:
    """Answer for windows of bins, and interpolate between their centres for the frames."""
    waiting: deque[_Frame] = deque()
    last: _Answer | None = None
    for answer in _answers(_queued(bins, waiting), model, settings, width, hop, batch_size):
        while waiting and waiting[0].time < answer.centre:
            yield _interpolated(waiting.popleft(), answer if last is None else last, answer)
        last = answer
    while last is not None and waiting:
        yield _interpolated(waiting.popleft(), last, last)


def _queued(bins: Iterable[_Bin], waiting: deque[_Frame]) -> Iterator[_Bin]:
    """Pass the bins on and queue their frames."""
    index = 0
    for one in bins:
        for time in one.times:
            waiting.append(_Frame(index, time, one.crop is not None, one.audible))
            index += 1
        yield one


def _answers(
    bins: Iterable[_Bin], model: BimodalNet, settings: ClipSettings, width: float, hop: int, batch_size: int
) -> Iterator[_Answer]:
    """The network's answer for each window, by ascending centre."""
    windows = _windows(bins, settings.frames_per_clip, hop, width)
    while batch := list(islice(windows, batch_size)):
        samples = collate_clips([window.sample(settings) for window in batch])
        probabilities = _apply(model, samples)
        for window, row, (visual, audio) in zip(
            batch, probabilities.numpy(), samples["present"].tolist(), strict=True
        ):
            yield _Answer(window.centre, row, visual, audio)


def _windows(bins: Iterable[_Bin], size: int, hop: int, width: float) -> Iterator[_Window]:
    """Windows of `size` bins, `hop` bins apart, and one that ends with the last bin."""
    held: deque[_Bin] = deque(maxlen=size)
    count, due, covered = 0, size, 0
    for one in bins:
        held.append(one)
        count += 1
        if count == due:
            yield _Window((count - size / 2) * width, list(held))
            due, covered = due + hop, count
    if covered < count:
        yield _Window((count - len(held) / 2) * width, list(held))


@torch.inference_mode()
def _apply(model: BimodalNet, batch: ClipBatch) -> Tensor:
    """(N, K) float64 probabilities on the CPU, in eval mode."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        output = model(
            batch["frames"].to(device),
            batch["spectrogram"].to(device),
            batch["frame_mask"].to(device),
            batch["spectrogram_mask"].to(device),
            batch["present"].to(device),
        )
    finally:
        model.train(was_training)
    probabilities: Tensor = output.probabilities.double().cpu()
    return probabilities / probabilities.sum(dim=1, keepdim=True)


def _interpolated(frame: _Frame, before: _Answer, after: _Answer) -> _Row:
    span = after.centre - before.centre
    share = min(max((frame.time - before.centre) / span, 0.0), 1.0) if span > 0 else 0.0
    probabilities = (1.0 - share) * before.probabilities + share * after.probabilities
    note = NOTES[before.visual or after.visual, before.audio or after.audio]
    return _Row(frame, probabilities, note)


def _smoothed(rows: Iterable[_Row], classes: Sequence[str], seconds: float) -> Iterator[FramePrediction]:
    """Replace each row's probabilities by their mean over the rows at most `seconds` / 2 away from it."""
    near: deque[_Row] = deque()  # what the sum is over
    waiting: deque[_Row] = deque()  # the part of it whose future is not known yet
    total = np.zeros(len(classes))

    def next_mean() -> FramePrediction:
        row = waiting.popleft()
        while near[0].frame.time < row.frame.time - seconds / 2:
            total[:] -= near.popleft().probabilities
        # Differences of sums leave rounding errors, at worst a tiny negative number.
        mean = np.maximum(total, 0.0)
        mean /= mean.sum()
        label = classes[int(mean.argmax())]
        frame = row.frame
        return FramePrediction(
            frame.number, frame.time, label, tuple(mean.tolist()), frame.face, frame.audio, row.note
        )

    for row in rows:
        while waiting and row.frame.time > waiting[0].frame.time + seconds / 2:
            yield next_mean()
        near.append(row)
        waiting.append(row)
        total += row.probabilities
    while waiting:
        yield next_mean()


def write_csv(path: str | Path, rows: Iterable[FramePrediction], classes: Sequence[str] = EMOTIONS) -> None:
    """Write one line per frame: frame, time in s, label, a probability per class, face, audio (0 or 1), note.

    Rows are written as they come, to a temporary name; the file is there whole or not at all.
    """
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["frame", "time", "label", *classes, "face", "audio", "note"])
        for row in rows:
            probabilities = (f"{p:.6f}" for p in row.probabilities)
            writer.writerow(
                [
                    row.frame,
                    f"{row.time:.6f}",
                    row.label,
                    *probabilities,
                    int(row.face),
                    int(row.audio),
                    row.note,
                ]
            )


def write_json(
    path: str | Path, rows: Iterable[FramePrediction], classes: Sequence[str] = EMOTIONS, source: str = ""
) -> None:
    """Write ``{"video": source, "classes": [...], "frames": [{"frame", "time", "label", ...}, ...]}``.

    The frames have the fields of :class:`FramePrediction`. Rows are written as they come, to a temporary
    name; the file is there whole or not at all.
    """
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(f'{{"video": {json.dumps(source)},\n"classes": {json.dumps(list(classes))},\n"frames": [')
        for position, row in enumerate(rows):
            values = row._asdict()
            values["time"] = round(row.time, 6)
            values["probabilities"] = [round(p, 6) for p in row.probabilities]
            file.write(("\n" if position == 0 else ",\n") + json.dumps(values))
        file.write("\n]}\n")
