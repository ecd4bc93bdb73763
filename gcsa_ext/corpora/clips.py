"""From a clip in a media file to the network's input tensors."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gcsa_ext.corpora.labels import IGNORE_INDEX
from gcsa_ext.corpora.manifest import Clip
from gcsa_ext.media import (
    FaceCropper,
    LogMelSpectrogram,
    MediaError,
    equal_interval_times,
    iterate_frames_at,
    probe,
    read_audio,
)
from gcsa_ext.media.faces import FaceMode

_SILENCE = 1e-4


@dataclass(frozen=True)
class ClipSettings:
    """How a clip becomes tensors; stored in checkpoints, because a network needs the input it was trained on.

    Attributes:
        frames_per_clip: number T of frames, taken at the centres of T equal time intervals.
        image_size: side S of the face crops in pixels.
        sample_rate: of the sound, in Hz.
        n_mels: number of mel bands of the spectrogram.
        window_seconds: longest stretch that is one sample; the middle of a longer clip is used.
        faces: "detect" to look for the face in each frame, "frame" to take the centred square of the frame.

    Raises:
        ValueError: a number is not positive, or ``faces`` is unknown.
    """

    frames_per_clip: int = 8
    image_size: int = 64
    sample_rate: int = 16000
    n_mels: int = 64
    window_seconds: float = 2.4
    faces: FaceMode = "detect"

    def __post_init__(self) -> None:
        for name in ("frames_per_clip", "image_size", "sample_rate", "n_mels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a positive whole number")
        if not isinstance(self.window_seconds, int | float) or not 0 < self.window_seconds < math.inf:
            raise ValueError(
                f"window_seconds is {self.window_seconds!r}; expected a positive number of seconds"
            )
        if self.faces not in ("detect", "frame"):
            raise ValueError(f"faces is {self.faces!r}; expected 'detect' or 'frame'")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ClipSettings":
        """The inverse of :meth:`to_dict`; keys that are absent keep their defaults.

        Raises:
            ValueError: an unknown key, or a value outside its range.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(
                f"unknown clip settings {', '.join(unknown)}; expected some of {', '.join(known)}"
            )
        return cls(**values)


class ClipSample(TypedDict):
    """One clip: T frames of side S, L spectrogram columns."""

    frames: Tensor
    """(T, 3, S, S) uint8 RGB face crops; zeros where no face was found."""
    frame_mask: Tensor
    """(T,) bool, True where a face was found."""
    spectrogram: Tensor
    """(1, n_mels, L) float32; one column of zeros without sound."""
    spectrogram_mask: Tensor
    """(L,) bool, True where there is sound data."""
    present: Tensor
    """(2,) bool: a face was found in some frame; there is sound."""
    label: Tensor
    """() int64, of the clip as a whole; -1 if unknown."""


class ClipBatch(TypedDict):
    """N clips, the spectrograms padded at their end to the longest, L columns."""

    frames: Tensor
    """(N, T, 3, S, S) uint8."""
    frame_mask: Tensor
    """(N, T) bool."""
    spectrogram: Tensor
    """(N, 1, n_mels, L) float32, zeros where padded."""
    spectrogram_mask: Tensor
    """(N, L) bool, False where padded."""
    present: Tensor
    """(N, 2) bool in the order visual, audio."""
    label: Tensor
    """(N,) int64."""


def prepare_clip(clip: Clip, settings: ClipSettings) -> ClipSample:
    """Decode ``clip`` and make its tensors. A missing modality gives zeros and a False in ``present``.

    Raises:
        MediaError: the file cannot be decoded, or the clip starts after the file's end.
    """
    info = probe(clip.path)
    start = clip.start or 0.0
    end = info.duration if clip.end is None else min(clip.end, info.duration)
    if start >= end:
        raise MediaError(
            clip.path, f"the clip starts at {start} s", f"expected less than its end, {end} s of the file"
        )
    if end - start > settings.window_seconds:
        start += (end - start - settings.window_seconds) / 2
        end = start + settings.window_seconds

    crops: list[npt.NDArray[np.uint8] | None] = []
    if info.has_video:
        cropper = FaceCropper(settings.image_size, settings.faces)
        times = equal_interval_times(start, end, settings.frames_per_clip)
        crops = [cropper(frame) for _, frame in iterate_frames_at(clip.path, times.tolist())]
    waveform = read_audio(clip.path, start, end, settings.sample_rate) if info.has_audio else None
    return make_sample(crops, waveform, settings, clip.label)


def is_audible(waveform: npt.NDArray[np.float32]) -> bool:
    """Whether a waveform (samples,) is louder than a muted microphone: -80 dB re full scale."""
    return waveform.size > 0 and float(np.abs(waveform).max()) > _SILENCE


def make_sample(
    crops: Sequence[npt.NDArray[np.uint8] | None],
    waveform: npt.NDArray[np.float32] | None,
    settings: ClipSettings,
    label: int = IGNORE_INDEX,
) -> ClipSample:
    """The network's input for a decoded clip, in training and in prediction.

    Args:
        crops: at most frames_per_clip faces (S, S, 3) RGB, None for a frame without a face.
        waveform: (samples,) at settings.sample_rate, or None without sound.
        settings: sizes.
        label: index of the class, -1 if unknown.
    """
    side = settings.image_size
    frames = torch.zeros(settings.frames_per_clip, 3, side, side, dtype=torch.uint8)
    frame_mask = torch.zeros(settings.frames_per_clip, dtype=torch.bool)
    for i, crop in enumerate(crops):
        if crop is not None:
            frames[i] = torch.from_numpy(crop).permute(2, 0, 1)
            frame_mask[i] = True
    spectrogram = torch.zeros(1, settings.n_mels, 1)
    audible = waveform is not None and is_audible(waveform)
    if waveform is not None and audible:
        log_mel = _log_mel(settings.sample_rate, settings.n_mels)
        spectrogram = log_mel(torch.from_numpy(waveform)[None]).contiguous()
    return ClipSample(
        frames=frames,
        frame_mask=frame_mask,
        spectrogram=spectrogram,
        spectrogram_mask=torch.full((spectrogram.shape[-1],), audible),
        present=torch.tensor([bool(frame_mask.any()), audible]),
        label=torch.tensor(label, dtype=torch.int64),
    )


_log_mel = functools.lru_cache(maxsize=4)(LogMelSpectrogram)


def collate_clips(samples: Sequence[ClipSample]) -> ClipBatch:
    """Batch ``samples``, for a DataLoader's ``collate_fn``.

    Raises:
        ValueError: no samples, or samples that were prepared with different settings.
    """
    if not samples:
        raise ValueError("samples is empty; expected at least one clip")
    shapes = {(tuple(s["frames"].shape), tuple(s["spectrogram"].shape[:-1])) for s in samples}
    if len(shapes) > 1:
        raise ValueError(
            f"samples have frames and spectrograms of the shapes {sorted(shapes)} (without the last, time); "
            "expected clips prepared with the same settings"
        )
    columns = max(sample["spectrogram"].shape[-1] for sample in samples)
    spectrogram = torch.zeros(len(samples), *samples[0]["spectrogram"].shape[:-1], columns)
    spectrogram_mask = torch.zeros(len(samples), columns, dtype=torch.bool)
    for i, sample in enumerate(samples):
        length = sample["spectrogram"].shape[-1]
        spectrogram[i, ..., :length] = sample["spectrogram"]
        spectrogram_mask[i, :length] = sample["spectrogram_mask"]
    return ClipBatch(
        frames=torch.stack([sample["frames"] for sample in samples]),
        frame_mask=torch.stack([sample["frame_mask"] for sample in samples]),
        spectrogram=spectrogram,
        spectrogram_mask=spectrogram_mask,
        present=torch.stack([sample["present"] for sample in samples]),
        label=torch.stack([sample["label"] for sample in samples]),
    )
