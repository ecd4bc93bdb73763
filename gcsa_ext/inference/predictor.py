"""Emotions over time in media files of any length: a file in, a row of probabilities per frame out.

The file is cut into equal bins, as many per window as the network takes frames. A bin is represented by the
face in the frame on display at its centre and by its sound. A window is a run of consecutive bins, and the
network answers for each window. The probabilities of a frame are interpolated between the windows whose
centres lie around it, then averaged over a short time. Only one batch of windows and the frames before the
centre of the last window are in memory at any moment.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gcsa_ext.corpora import EMOTIONS, ClipSettings
from gcsa_ext.inference.bins import Bin, Sound, sound_bins, video_bins
from gcsa_ext.inference.rows import NOTES, FramePrediction
from gcsa_ext.inference.windows import Answer, answers
from gcsa_ext.media import probe
from gcsa_ext.nn import BimodalNet


class _Frame(NamedTuple):
    """A frame before its probabilities are known."""

    number: int
    time: float
    face: bool
    audio: bool


class _Row(NamedTuple):
    """A frame with its probabilities before smoothing."""

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
    """Predict the expression in every frame of a media file.

    Memory does not grow with the length of the file. A file without a video track gets 25 rows per second.

    Args:
        path: the file. If it has no sound, no video track or no face, the prediction is made from the other
            modality alone; with neither it is the uniform distribution. The rows' notes say so.
        model: the network; it runs in eval mode, on its device.
        settings: the clip settings with which the network was trained.
        classes: a label set, or K class names by index.
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

    # A file shorter than a window is one window, as in prepare_clip.
    window = info.duration if 0 < info.duration < settings.window_seconds else settings.window_seconds
    width = window / settings.frames_per_clip
    hop = settings.frames_per_clip // 2 if hop_seconds is None else round(hop_seconds / width)
    hop = min(max(hop, 1), settings.frames_per_clip)
    sound = Sound(path, settings.sample_rate)
    bins = (
        video_bins(path, info, settings, width, sound)
        if info.has_video
        else sound_bins(settings, width, sound)
    )
    rows = _rows(bins, model, settings, width, hop, batch_size)
    return _smoothed(rows, classes, smoothing_seconds)


def _rows(
    bins: Iterator[Bin], model: BimodalNet, settings: ClipSettings, width: float, hop: int, batch_size: int
) -> Iterator[_Row]:
    """Run the network on windows of bins and interpolate the answers at the times of the frames."""
    queue: deque[_Frame] = deque()
    last: Answer | None = None
    for answer in answers(_queued(bins, queue), model, settings, width, hop, batch_size):
        while queue and queue[0].time < answer.centre:
            yield _interpolated(queue.popleft(), answer if last is None else last, answer)
        last = answer
    while last is not None and queue:
        yield _interpolated(queue.popleft(), last, last)


def _queued(bins: Iterable[Bin], queue: deque[_Frame]) -> Iterator[Bin]:
    """Yield the bins and append their frames to `queue`."""
    index = 0
    for one in bins:
        for time in one.times:
            queue.append(_Frame(index, time, one.crop is not None, one.audible))
            index += 1
        yield one


def _interpolated(frame: _Frame, before: Answer, after: Answer) -> _Row:
    """The row of a frame between the centres of two windows, or nearest to one window given twice."""
    span = after.centre - before.centre
    share = min(max((frame.time - before.centre) / span, 0.0), 1.0) if span > 0 else 0.0
    probabilities = (1.0 - share) * before.probabilities + share * after.probabilities
    note = NOTES[before.visual or after.visual, before.audio or after.audio]
    return _Row(frame, probabilities, note)


def _smoothed(rows: Iterable[_Row], classes: Sequence[str], seconds: float) -> Iterator[FramePrediction]:
    """Replace each row's probabilities by their mean over the rows at most `seconds` / 2 away from it."""
    summed: deque[_Row] = deque()  # the rows of which `total` is the sum
    pending: deque[_Row] = deque()  # the rows among them whose mean has not been yielded
    total = np.zeros(len(classes))

    def next_mean() -> FramePrediction:
        row = pending.popleft()
        while summed[0].frame.time < row.frame.time - seconds / 2:
            total[:] -= summed.popleft().probabilities
        # Rounding may leave a tiny negative number in the running sum.
        mean = np.maximum(total, 0.0)
        mean /= mean.sum()
        label = classes[int(mean.argmax())]
        frame = row.frame
        return FramePrediction(
            frame.number, frame.time, label, tuple(mean.tolist()), frame.face, frame.audio, row.note
        )

    for row in rows:
        while pending and row.frame.time > pending[0].frame.time + seconds / 2:
            yield next_mean()
        summed.append(row)
        pending.append(row)
        total += row.probabilities
    while pending:
        yield next_mean()
