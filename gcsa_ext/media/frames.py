"""Video frames by presentation time, upright. Memory does not grow with the length of the file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gcsa_ext.extra import import_extra
from gcsa_ext.media.container import SEEK_MARGIN, MediaError, clock_origin, decoded, opened, seek, tracks
from gcsa_ext.media.orientation import Frame, display_matrix, turn

av = import_extra("av")

# Starting threads takes longer than decoding a frame of fewer pixels.
_THREADED_DECODING_PIXELS = 640 * 360
# From PyAV 17 on, converting a frame starts a thread per processor by default.
_ONE_THREAD = {"threads": 1} if int(av.__version__.partition(".")[0]) >= 17 else {}


def iterate_frames(
    path: str | Path, start: float | None = None, end: float | None = None
) -> Iterator[tuple[float, Frame]]:
    """Yield (presentation time in s, frame) of every frame with ``start`` <= time < ``end``, in order.

    Frames are (H, W, 3) uint8 RGB, turned upright as the container's display matrix says, all of one size. A
    late ``start`` seeks. Packets that do not decode are skipped, so a truncated file yields what it has.

    Raises:
        MediaError: as for :func:`probe`, or there is no video track.
    """
    for time, frame in _timed_frames(path, start or 0.0):
        if start is not None and time < start:
            continue
        if end is not None and time >= end:
            return
        yield time, frame.upright()


def equal_interval_times(start: float, end: float, count: int) -> npt.NDArray[np.float64]:
    """The centres of ``count`` equal bins of [``start``, ``end``]: (count,) float64, in s.

    Raises:
        ValueError: ``count`` < 1, or ``end`` is before ``start``.
    """
    if count < 1:
        raise ValueError(f"count is {count}; expected at least 1 bin")
    if not end >= start:
        raise ValueError(f"the interval is [{start}, {end}]; expected start <= end, in s")
    return start + (np.arange(count, dtype=np.float64) + 0.5) * ((end - start) / count)


def iterate_frames_at(path: str | Path, times: Sequence[float]) -> Iterator[tuple[float, Frame]]:
    """Yield, for each of the ascending ``times``, (presentation time, frame) of the frame then on display.

    That is the last frame whose presentation time is not after the wanted one, which is right at any variable
    frame rate. A time before the first frame gets the first frame; a time after the last decodable frame gets
    that one. The file is decoded once, with one frame in memory.

    Raises:
        MediaError: as for :func:`probe`, there is no video track, or none of its frames decodes.
        ValueError: ``times`` are not finite or not ascending.
    """
    wanted = [float(time) for time in times]
    if not all(np.isfinite(wanted)) or any(b < a for a, b in pairwise(wanted)):
        raise ValueError(f"times are {wanted}; expected finite ascending seconds")
    if not wanted:
        return
    position = 0
    shown: tuple[float, _TimedFrame] | None = None
    for time, frame in _timed_frames(path, wanted[0]):
        if shown is not None and time > wanted[position]:
            # One conversion to RGB serves all the times at which this frame is on display.
            shown_time, pixels = shown[0], shown[1].upright()
            while position < len(wanted) and wanted[position] < time:
                yield shown_time, pixels
                position += 1
            if position == len(wanted):
                return
        shown = time, frame
    if shown is None:
        raise MediaError(path, "no frame of the video track can be decoded")
    pixels = shown[1].upright()
    for _ in wanted[position:]:
        yield shown[0], pixels


def frames_at(path: str | Path, times: Sequence[float]) -> tuple[Frame, npt.NDArray[np.float64]]:
    """The frames on display at the ascending ``times`` (s), see :func:`iterate_frames_at`.

    Returns:
        frames: (n, H, W, 3) uint8 RGB.
        actual_times: (n,) float64, the presentation times of those frames, in s.

    Raises:
        MediaError, ValueError: as :func:`iterate_frames_at`; ValueError also if ``times`` is empty.
    """
    if len(times) == 0:
        raise ValueError("times is empty; expected at least one time, in s")
    actual, frames = zip(*iterate_frames_at(path, times), strict=True)
    return np.stack(frames), np.asarray(actual, dtype=np.float64)


@dataclass(frozen=True)
class _TimedFrame:
    """A decoded frame that is converted to upright RGB on demand, because most frames are never used."""

    frame: Any
    stored_size: tuple[int, int]

    def upright(self) -> Frame:
        width, height = self.stored_size
        frame = self.frame.reformat(width=width, height=height, format="rgb24", **_ONE_THREAD)
        pixels = frame.to_ndarray()
        return np.ascontiguousarray(turn(pixels, display_matrix(self.frame)))


def _timed_frames(path: str | Path, start: float) -> Iterator[tuple[float, _TimedFrame]]:
    """Frames with their presentation times, beginning at or some frames before the one on display at
    ``start``."""
    begin = start - SEEK_MARGIN
    if begin > 0:
        frames = _timed_frames_from(path, begin)
        first = next(frames, None)
        # In some containers a seek ends at a later key frame or fails. Then decoding begins with the file.
        if first is not None and first[0] <= start:
            yield first
            yield from frames
            return
    yield from _timed_frames_from(path, None)


def _timed_frames_from(path: str | Path, begin: float | None) -> Iterator[tuple[float, _TimedFrame]]:
    """Frames with their presentation times after a seek to ``begin``; None for no seek.

    Yields nothing if the seek fails, or if frames after a seek have no time stamps.
    """
    with opened(path) as container:
        stream, _ = tracks(container, path)
        if stream is None:
            raise MediaError(path, "it has no video track", "expected a file with a video track")
        if stream.codec_context.width * stream.codec_context.height >= _THREADED_DECODING_PIXELS:
            stream.thread_type = "AUTO"
        origin = clock_origin(container, stream)
        if begin is not None and not seek(container, stream, begin + origin):
            return
        interval = 1.0 / float(stream.average_rate or 25)
        size: tuple[int, int] | None = None
        time = -interval
        for frame in decoded(container, stream):
            if frame.pts is not None:
                time = float(frame.pts * frame.time_base) - origin
            elif begin is None:
                # Raw streams carry no time stamps; their frames are evenly spaced.
                time += interval
            else:
                return
            if size is None:
                size = frame.width, frame.height
            yield time, _TimedFrame(frame, size)
