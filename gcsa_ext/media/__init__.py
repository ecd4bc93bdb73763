"""Media files: decoding by presentation time, sampling at equal intervals, faces, log-mel spectrograms.

Needs the extra ``[train]``: ``pip install ".[train]"``.
"""

from gcsa_ext.media.audio import iterate_audio, read_audio
from gcsa_ext.media.container import MediaError
from gcsa_ext.media.faces import FaceCropper
from gcsa_ext.media.frames import equal_interval_times, frames_at, iterate_frames, iterate_frames_at
from gcsa_ext.media.info import MediaInfo, probe
from gcsa_ext.media.spectrogram import LogMelSpectrogram

__all__ = [
    "FaceCropper",
    "LogMelSpectrogram",
    "MediaError",
    "MediaInfo",
    "equal_interval_times",
    "frames_at",
    "iterate_audio",
    "iterate_frames",
    "iterate_frames_at",
    "probe",
    "read_audio",
]
