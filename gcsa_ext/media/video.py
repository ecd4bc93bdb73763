"""Frames and sound of media files, by presentation time, with memory that does not grow with their length.

All times are seconds on one clock per file: 0 is the presentation time of the first video frame, or of the
first sound sample in a file without video. Sound and frames of the same time belong together, whatever the
container's own time stamps begin with.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gcsa_ext.extra import import_extra

av = import_extra("av")

Frame = npt.NDArray[np.uint8]
"""(H, W, 3) uint8 RGB, upright."""

# The first frames after a seek may depend on earlier ones (AAC overlaps its blocks, H.264 stores frames in
# decoding order), so decoding starts a little before the wanted time.
_SEEK_MARGIN = 0.5
_DISCONTINUITY = 0.1
# Starting threads for a small picture costs more than decoding it.
_THREADED_DECODING_PIXELS = 640 * 360
# From PyAV 17 on, converting a frame starts a thread per processor unless told otherwise.
_ONE_THREAD = {"threads": 1} if int(av.__version__.partition(".")[0]) >= 17 else {}
_EXPECTED = "expected a readable media file with a video or a sound track, such as .mp4, .mov, .mkv or .wav"


class MediaError(ValueError):
    """A file that cannot be decoded. The message repeats the path, the cause and what was expected."""

    def __init__(self, path: str | Path, problem: str, expected: str = _EXPECTED) -> None:
        super().__init__(f"{path}: {problem}; {expected}")
        self.path = Path(path)
        self.problem = problem
        self.expected = expected

    def __reduce__(self) -> tuple[type["MediaError"], tuple[Path, str, str]]:
        # Default pickling would call __init__ with the finished message when a DataLoader worker raises.
        return type(self), (self.path, self.problem, self.expected)


@dataclass(frozen=True)
class MediaInfo:
    """What a media file contains.

    Attributes:
        path: the file.
        duration: seconds; of the video track if there is one, otherwise of the sound track.
        frame_rate: average frames per second, None without video or when the container does not say.
        width: width in pixels of an upright frame, 0 without video.
        height: height in pixels of an upright frame, 0 without video.
        rotation: clockwise degrees (0, 90, 180, 270) by which stored frames are turned, and where the
            container says so mirrored, to be upright.
        has_video: whether there is a video track (cover art of a sound file is none).
        has_audio: whether there is a sound track.
    """

    path: Path
    duration: float
    frame_rate: float | None
    width: int
    height: int
    rotation: int
    has_video: bool
    has_audio: bool


def probe(path: str | Path) -> MediaInfo:
    """Read what ``path`` contains: its header and one decoded frame, which proves that the video decodes.

    Raises:
        MediaError: the file is missing, empty, truncated, no media file, or has neither video nor sound.
    """
    with _opened(path) as container:
        video, audio = _tracks(container, path)
        rotation, width, height = 0, 0, 0
        if video is not None:
            first = next(_decoded(container, video), None)
            if first is None:
                raise MediaError(path, "no frame of the video track can be decoded")
            matrix = _display_matrix(first)
            rotation = _clockwise_degrees(matrix)
            width, height = first.width, first.height
            if rotation in (90, 270):
                width, height = height, width
        duration = _duration(container, video if video is not None else audio)
    if duration is None:
        duration = _scanned_duration(path)
    return MediaInfo(
        path=Path(path),
        duration=duration,
        frame_rate=float(video.average_rate) if video is not None and video.average_rate else None,
        width=width,
        height=height,
        rotation=rotation,
        has_video=video is not None,
        has_audio=audio is not None,
    )


def iterate_frames(
    path: str | Path, start: float | None = None, end: float | None = None
) -> Iterator[tuple[float, Frame]]:
    """Yield (presentation time in s, frame) of every frame with ``start`` <= time < ``end``, in order.

    Frames are (H, W, 3) uint8 RGB, turned upright as the container's display matrix says, all of one size. A
    late ``start`` seeks. Packets which do not decode are skipped, so a truncated file yields what it has.

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

    That is the last frame whose presentation time is not after the wanted one: right for any variable frame
    rate. Before the first frame it is the first, and after the last decodable one (the file is truncated or
    its last frame is missing) the last. One pass, one frame in memory.

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


def iterate_audio(
    path: str | Path,
    sample_rate: int = 16000,
    chunk_seconds: float = 10.0,
    start: float | None = None,
    end: float | None = None,
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the sound from ``start`` to ``end`` (s) as consecutive (samples,) float32 chunks, mono, in [-1,
    1].

    Sample i of the whole belongs to time ``start`` + i / ``sample_rate``: where the track starts after the
    video or has a gap, the chunks hold silence. Every chunk but the last has ``chunk_seconds``. Channels are
    averaged. Nothing is yielded without a sound track, or where the track ends before ``start``.

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
        # A long silent gap is one block of zeros: cut it too, so that a chunk is never larger than asked for.
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
    with _opened(path) as container:
        if _tracks(container, path)[1] is None:
            return None
    chunks = list(iterate_audio(path, sample_rate, start=start, end=end))
    return np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.float32)


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    file = Path(path)
    if not file.exists():
        raise MediaError(path, "there is no such file")
    if not file.is_file():
        raise MediaError(path, "this is not a regular file")
    if file.stat().st_size == 0:
        raise MediaError(path, "the file is empty (0 bytes)")
    try:
        # The absolute path, because "a:b.mp4" would be read as a URL; only local files, because a text file
        # can be a playlist that names others.
        container = av.open(
            str(file.resolve()), metadata_errors="ignore", container_options={"protocol_whitelist": "file"}
        )
    except av.error.FFmpegError as error:
        raise MediaError(path, f"it cannot be opened, or is truncated ({error.strerror})") from error
    with container:
        try:
            yield container
        except av.error.FFmpegError as error:
            raise MediaError(path, f"it is damaged ({error.strerror})") from error


def _tracks(container: Any, path: str | Path) -> tuple[Any | None, Any | None]:
    """The first video track that is no cover art and the first sound track that some decoder can read."""

    def decodable(stream: Any) -> bool:
        return stream.codec_context is not None

    cover = av.stream.Disposition.attached_pic
    video = next((s for s in container.streams.video if decodable(s) and not s.disposition & cover), None)
    audio = next((s for s in container.streams.audio if decodable(s) and s.codec_context.sample_rate), None)
    if video is None and audio is None:
        raise MediaError(path, "it has neither a video nor a sound track")
    return video, audio


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Decode ``stream``, leaving out packets that are broken and stopping where the file breaks off."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            # What lies behind a hole in the file cannot be reached; the decoder still holds good frames.
            packet = None
        # FFmpeg's decoders have many names for damage: AAC's is "Operation not permitted".
        with suppress(av.error.FFmpegError):
            yield from stream.decode(packet)
        if packet is None or packet.size == 0:
            return


def _seconds(stream: Any, timestamp: int) -> float:
    return float(timestamp * stream.time_base)


def _origin(container: Any, stream: Any) -> float:
    """The container's time of 0 on the file's own clock, given the stream that defines it."""
    if stream.start_time is not None:
        return _seconds(stream, stream.start_time)
    return float(container.start_time / av.time_base) if container.start_time is not None else 0.0


def _duration(container: Any, stream: Any) -> float | None:
    if stream.duration is not None:
        return _seconds(stream, stream.duration)
    return float(container.duration / av.time_base) if container.duration is not None else None


def _scanned_duration(path: str | Path) -> float:
    """The end of the last packet, for containers that do not store their length (streamed recordings)."""
    with _opened(path) as container:
        video, audio = _tracks(container, path)
        stream = video if video is not None else audio
        assert stream is not None
        last = 0.0
        with suppress(av.error.FFmpegError):
            for packet in container.demux(stream):
                if packet.pts is not None:
                    last = max(last, _seconds(stream, packet.pts + (packet.duration or 0)))
        return last - _origin(container, stream)


def _seek(container: Any, stream: Any, seconds: float) -> bool:
    """Move to the key frame at or before ``seconds`` on the container's clock; False if it cannot be done."""
    try:
        container.seek(int(seconds / stream.time_base), stream=stream)
    except av.error.FFmpegError:
        return False
    return True


Matrix = npt.NDArray[np.int32]


@dataclass(frozen=True)
class _TimedFrame:
    """A decoded frame that becomes upright RGB only when somebody looks at it."""

    frame: Any
    stored_size: tuple[int, int]

    def upright(self) -> Frame:
        width, height = self.stored_size
        frame = self.frame.reformat(width=width, height=height, format="rgb24", **_ONE_THREAD)
        pixels = frame.to_ndarray()
        return np.ascontiguousarray(_turn(pixels, _display_matrix(self.frame)))


def _timed_frames(path: str | Path, start: float) -> Iterator[tuple[float, _TimedFrame]]:
    """All frames from the one on display at ``start`` on, with some earlier ones, by presentation time."""
    begin = start - _SEEK_MARGIN
    if begin > 0:
        frames = _timed_frames_from(path, begin)
        first = next(frames, None)
        # Some containers seek to a key frame after the wanted time, or to nothing: then decode from the
        # start.
        if first is not None and first[0] <= start:
            yield first
            yield from frames
            return
    yield from _timed_frames_from(path, None)


def _timed_frames_from(path: str | Path, begin: float | None) -> Iterator[tuple[float, _TimedFrame]]:
    with _opened(path) as container:
        stream, _ = _tracks(container, path)
        if stream is None:
            raise MediaError(path, "it has no video track", "expected a file with a video track")
        if stream.codec_context.width * stream.codec_context.height >= _THREADED_DECODING_PIXELS:
            stream.thread_type = "AUTO"
        origin = _origin(container, stream)
        if begin is not None and not _seek(container, stream, begin + origin):
            return
        interval = 1.0 / float(stream.average_rate or 25)
        size: tuple[int, int] | None = None
        time = -interval
        for frame in _decoded(container, stream):
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


def _display_matrix(frame: Any) -> Matrix | None:
    """The frame's 2x2 display matrix: display (x, y) = stored (x, y) @ matrix, up to a positive scale."""
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return None
    matrix: Matrix = np.frombuffer(bytes(side_data), dtype=np.int32)[:9].reshape(3, 3)[:2, :2]
    return matrix


def _turn(pixels: Frame, matrix: Matrix | None) -> Frame:
    """Apply the quarter turns and mirrorings of a display matrix to (H, W, 3) pixels."""
    if matrix is None:
        return pixels
    (a, b), (c, d) = matrix.tolist()
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    turned: Frame = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return turned


def _clockwise_degrees(matrix: Matrix | None) -> int:
    if matrix is None:
        return 0
    (a, b), (c, d) = matrix.tolist()
    if a * d < b * c:
        # Mirrored: what remains after the stored picture is mirrored left to right.
        a, b = -a, -b
    return round(math.degrees(math.atan2(b, a)) / 90) % 4 * 90


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
        # The block covers [offset, offset + size) on the clock; what lies before position is already there.
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
    """(sample index on the file's clock, mono block) of all that is decoded, also before ``start``."""
    with _opened(path) as container:
        video, stream = _tracks(container, path)
        if stream is None:
            return
        origin = _origin(container, video if video is not None else stream)
        if start > _SEEK_MARGIN:
            _seek(container, stream, start - _SEEK_MARGIN + origin)
        resampler: Any = None
        layout: tuple[Any, ...] = ()
        expected = 0.0
        offset = 0
        for frame in _decoded(container, stream):
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
