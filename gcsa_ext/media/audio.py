"""Sound by presentation time, mono. Memory does not grow with the length of the file."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gcsa_ext.extra import import_extra
from gcsa_ext.media.container import SEEK_MARGIN, clock_origin, decoded, opened, seek, tracks

av = import_extra("av")

# In s. A block whose time stamp differs by more from its expected time comes after a gap in the sound.
_DISCONTINUITY = 0.1


def iterate_audio(
    path: str | Path,
    sample_rate: int = 16000,
    chunk_seconds: float = 10.0,
    start: float | None = None,
    end: float | None = None,
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the sound from ``start`` to ``end`` (s) as consecutive (samples,) float32 chunks, mono, in [-1,
    1].

    Sample i of the joined chunks belongs to time ``start`` + i / ``sample_rate``: where the track starts
    after the video or has a gap, the chunks hold silence. Every chunk but the last has ``chunk_seconds``.
    Channels are averaged. Nothing is yielded without a sound track, or where the track ends before ``start``.

    Raises:
        MediaError: as for :func:`probe`.
        ValueError: ``sample_rate`` or ``chunk_seconds`` is not positive.
    """
    chunk_samples = round(chunk_seconds * sample_rate)
    if sample_rate < 1 or chunk_samples < 1:
        raise ValueError(
            f"sample_rate is {sample_rate} Hz and chunk_seconds {chunk_seconds} s; expected positive values "
            "with at least one sample per chunk"
        )
    pending: list[npt.NDArray[np.float32]] = []
    samples = 0
    for block in _aligned_audio(path, sample_rate, start or 0.0, end):
        # A long silent gap is one block of zeros, which has to be cut like any other block.
        while block.size:
            taken = block[: chunk_samples - samples]
            block = block[taken.size :]
            pending.append(taken)
            samples += taken.size
            if samples == chunk_samples:
                yield np.concatenate(pending)
                pending, samples = [], 0
    if pending:
        yield np.concatenate(pending)


def read_audio(
    path: str | Path, start: float | None = None, end: float | None = None, sample_rate: int = 16000
) -> npt.NDArray[np.float32] | None:
    """The sound from ``start`` to ``end`` (s) as (samples,) float32 mono in [-1, 1], see
    :func:`iterate_audio`.

    Returns:
        None if the file has no sound track; an empty array if the track has ended before ``start``.

    Raises:
        MediaError, ValueError: as :func:`iterate_audio`.
    """
    with opened(path) as container:
        if tracks(container, path)[1] is None:
            return None
    chunks = list(iterate_audio(path, sample_rate, start=start, end=end))
    return np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.float32)


def _aligned_audio(
    path: str | Path, sample_rate: int, start: float, end: float | None
) -> Iterator[npt.NDArray[np.float32]]:
    """Blocks of mono sound that follow each other without a gap, the first sample at ``start``."""
    first = round(start * sample_rate)
    last = None if end is None else round(end * sample_rate)
    position = first
    for offset, block in _placed_audio(path, sample_rate, start):
        if last is not None and position >= last:
            return
        # The block covers the samples [offset, offset + size); those before position were yielded before.
        if offset > position:
            gap_end = offset if last is None else min(offset, last)
            yield np.zeros(gap_end - position, dtype=np.float32)
            position = gap_end
        piece = block[max(0, position - offset) : None if last is None else max(0, last - offset)]
        if piece.size:
            yield piece
            position += piece.size


def _placed_audio(
    path: str | Path, sample_rate: int, start: float
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Mono blocks, each with the index of its first sample on the file's clock; some lie before ``start``."""
    with opened(path) as container:
        video, stream = tracks(container, path)
        if stream is None:
            return
        origin = clock_origin(container, video if video is not None else stream)
        if start > SEEK_MARGIN:
            seek(container, stream, start - SEEK_MARGIN + origin)
        resampler: Any = None
        layout: tuple[Any, ...] = ()
        expected = 0.0
        offset = 0
        for frame in decoded(container, stream):
            time = expected if frame.pts is None else float(frame.pts * frame.time_base) - origin
            described = frame.format.name, frame.layout.name, frame.sample_rate
            if resampler is None or described != layout or abs(time - expected) > _DISCONTINUITY:
                if resampler is not None:
                    yield from _flushed(resampler, offset)
                resampler = av.AudioResampler(format="fltp", layout=frame.layout.name, rate=sample_rate)
                layout = described
                offset = round(time * sample_rate)
                expected = time
            expected += frame.samples / frame.sample_rate
            # The container's time stamps are rounded to its time base; only the first one places the samples.
            frame.pts = None
            for block in _mono(resampler.resample(frame)):
                yield offset, block
                offset += block.size
        if resampler is not None:
            yield from _flushed(resampler, offset)


def _flushed(resampler: Any, offset: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    for block in _mono(resampler.resample(None)):
        yield offset, block
        offset += block.size


def _mono(frames: Sequence[Any]) -> Iterator[npt.NDArray[np.float32]]:
    for frame in frames:
        yield frame.to_ndarray().mean(axis=0, dtype=np.float32)
