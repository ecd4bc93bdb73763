"""Media files as containers: opening them, their tracks, and one clock per file.

All times are seconds on the file's clock. Its 0 is the presentation time of the first video frame, or of the
first sound sample in a file without video. Sound and frames of the same time belong together, whatever the
container's time stamps begin with.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gcsa_ext.extra import import_extra

av = import_extra("av")

# The first frames after a seek may depend on earlier ones (AAC overlaps its blocks, H.264 stores frames in
# decoding order), so decoding starts a little before the wanted time.
SEEK_MARGIN = 0.5
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


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """Open a local media file as a PyAV container for as long as the context lasts.

    Raises:
        MediaError: the file is missing, empty or no media file; also for an FFmpeg error within the context.
    """
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


def tracks(container: Any, path: str | Path) -> tuple[Any | None, Any | None]:
    """The first video track that is no cover art and the first sound track that some decoder can read."""

    def decodable(stream: Any) -> bool:
        return stream.codec_context is not None

    cover = av.stream.Disposition.attached_pic
    video = next((s for s in container.streams.video if decodable(s) and not s.disposition & cover), None)
    audio = next((s for s in container.streams.audio if decodable(s) and s.codec_context.sample_rate), None)
    if video is None and audio is None:
        raise MediaError(path, "it has neither a video nor a sound track")
    return video, audio


def decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Decode ``stream``. Broken packets are skipped; a truncated file ends the iteration."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            # Nothing behind a hole in the file can be reached, but the decoder still holds good frames.
            packet = None
        # FFmpeg's decoders report damage by different errors; AAC's is "Operation not permitted".
        with suppress(av.error.FFmpegError):
            yield from stream.decode(packet)
        if packet is None or packet.size == 0:
            return


def seek(container: Any, stream: Any, seconds: float) -> bool:
    """Move to the key frame at or before ``seconds`` on the container's clock; False if it cannot be done."""
    try:
        container.seek(int(seconds / stream.time_base), stream=stream)
    except av.error.FFmpegError:
        return False
    return True


def in_seconds(stream: Any, timestamp: int) -> float:
    """A time stamp of ``stream`` in seconds on the container's clock."""
    return float(timestamp * stream.time_base)


def clock_origin(container: Any, stream: Any) -> float:
    """The time on the container's clock at which the file's clock is 0.

    Args:
        container: the opened file.
        stream: the video track, or the sound track of a file without video.
    """
    if stream.start_time is not None:
        return in_seconds(stream, stream.start_time)
    return float(container.start_time / av.time_base) if container.start_time is not None else 0.0
