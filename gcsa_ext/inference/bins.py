"""A media file cut into equal bins of time, each with a face and a piece of sound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gcsa_ext.corpora import ClipSettings, is_audible
from gcsa_ext.media import FaceCropper, MediaInfo, iterate_audio, iterate_frames

AUDIO_ROWS_PER_SECOND = 25
"""Rate of the rows for a file without a video track."""

# Ten microseconds. The sum of the bins' widths need not be the length of the file to the last bit.
_ROUNDING = 1e-5

Crop = npt.NDArray[np.uint8]
Waveform = npt.NDArray[np.float32]


@dataclass
class Bin:
    """One bin of a file.

    Attributes:
        times: presentation times in s of the frames in the bin.
        crop: the face in the frame on display at the bin's centre; None if there is none.
        sound: (samples,) of the bin, fewer than its length where the sound has ended.
    """

    times: list[float]
    crop: Crop | None
    sound: Waveform

    @property
    def audible(self) -> bool:
        """Whether there is sound that is not silence."""
        return is_audible(self.sound)


class Sound:
    """Sequential reader of a file's sound. Its pieces are empty after the end.

    Attributes:
        position: index of the next sample.
    """

    def __init__(self, path: str | Path, sample_rate: int) -> None:
        self._chunks = iterate_audio(path, sample_rate, chunk_seconds=1.0)
        self._rest: Waveform = np.zeros(0, dtype=np.float32)
        self.position = 0

    def read_to(self, sample: int) -> Waveform:
        """The samples from the current position up to `sample`, fewer at the end."""
        wanted = sample - self.position
        self._buffer(wanted)
        piece, self._rest = self._rest[:wanted], self._rest[wanted:]
        self.position += piece.size
        return piece

    def goes_on(self) -> bool:
        """Whether there is at least one more sample."""
        self._buffer(1)
        return self._rest.size > 0

    def _buffer(self, wanted: int) -> None:
        """Decode until at least `wanted` samples are in memory or the sound ends."""
        pieces, available = [self._rest], self._rest.size
        while available < wanted:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            pieces.append(chunk)
            available += chunk.size
        self._rest = np.concatenate(pieces) if len(pieces) > 1 else self._rest


def video_bins(
    path: str | Path, info: MediaInfo, settings: ClipSettings, width: float, sound: Sound
) -> Iterator[Bin]:
    """Bins of `width` seconds of a file with a video track."""
    cropper = FaceCropper(settings.image_size, settings.faces)
    index = 0
    times: list[float] = []
    crop: Crop | None = None
    looked = False
    shown = None

    def finished() -> Bin:
        return Bin(times, crop, sound.read_to(round((index + 1) * width * settings.sample_rate)))

    for time, frame in iterate_frames(path):
        while True:
            # The frame on display at the bin's centre is the last one that is not later than the centre.
            # Before the first frame it is the first one.
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
    # The last frame is on display to the end of the track. Sound may go on longer; at most one window of it
    # is used.
    for _ in range(settings.frames_per_clip):
        if not looked:
            crop = cropper(shown)
        yield finished()
        index, times, crop, looked = index + 1, [], None, False
        if index * width >= info.duration - _ROUNDING or not sound.goes_on():
            return


def sound_bins(settings: ClipSettings, width: float, sound: Sound) -> Iterator[Bin]:
    """Bins of `width` seconds of a file without a video track; the times of their rows are evenly spaced."""
    index, row = 0, 0
    while sound.goes_on():
        piece = sound.read_to(round((index + 1) * width * settings.sample_rate))
        end = sound.position / settings.sample_rate
        times = []
        while row / AUDIO_ROWS_PER_SECOND < end:
            times.append(row / AUDIO_ROWS_PER_SECOND)
            row += 1
        yield Bin(times, None, piece)
        index += 1
