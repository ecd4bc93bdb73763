"""What a media file contains: tracks, duration, size and orientation of its frames."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcsa_ext.extra import import_extra
from gcsa_ext.media.container import MediaError, clock_origin, decoded, in_seconds, opened, tracks
from gcsa_ext.media.orientation import clockwise_degrees, display_matrix

av = import_extra("av")


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
    with opened(path) as container:
        video, audio = tracks(container, path)
        rotation, width, height = 0, 0, 0
        if video is not None:
            first = next(decoded(container, video), None)
            if first is None:
                raise MediaError(path, "no frame of the video track can be decoded")
            matrix = display_matrix(first)
            rotation = clockwise_degrees(matrix)
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


def _duration(container: Any, stream: Any) -> float | None:
    if stream.duration is not None:
        return in_seconds(stream, stream.duration)
    return float(container.duration / av.time_base) if container.duration is not None else None


def _scanned_duration(path: str | Path) -> float:
    """The end of the last packet, for containers that do not store their length (streamed recordings)."""
    with opened(path) as container:
        video, audio = tracks(container, path)
        stream = video if video is not None else audio
        assert stream is not None
        last = 0.0
        with suppress(av.error.FFmpegError):
            for packet in container.demux(stream):
                if packet.pts is not None:
                    last = max(last, in_seconds(stream, packet.pts + (packet.duration or 0)))
        return last - clock_origin(container, stream)
