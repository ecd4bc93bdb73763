"""Windows of consecutive bins, and the network's answer for each window."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gcsa_ext.corpora import ClipBatch, ClipSample, ClipSettings, collate_clips, make_sample
from gcsa_ext.inference.bins import Bin
from gcsa_ext.nn import BimodalNet


@dataclass
class Window:
    """Consecutive bins that are one input of the network.

    Attributes:
        centre: in s.
        bins: at most as many as the network takes frames.
    """

    centre: float
    bins: list[Bin]

    def sample(self, settings: ClipSettings) -> ClipSample:
        """The network's input."""
        return make_sample(
            [one.crop for one in self.bins], np.concatenate([one.sound for one in self.bins]), settings
        )


class Answer(NamedTuple):
    """The network's output for a window.

    Attributes:
        centre: of the window, in s.
        probabilities: (K,) float64.
        visual: there was a face in some bin of the window.
        audio: there was sound in the window.
    """

    centre: float
    probabilities: npt.NDArray[np.float64]
    visual: bool
    audio: bool


def answers(
    bins: Iterable[Bin], model: BimodalNet, settings: ClipSettings, width: float, hop: int, batch_size: int
) -> Iterator[Answer]:
    """The network's answer for each window, by ascending centre."""
    windows = _windows(bins, settings.frames_per_clip, hop, width)
    while batch := list(islice(windows, batch_size)):
        samples = collate_clips([window.sample(settings) for window in batch])
        probabilities = _apply(model, samples)
        for window, row, (visual, audio) in zip(
            batch, probabilities.numpy(), samples["present"].tolist(), strict=True
        ):
            yield Answer(window.centre, row, visual, audio)


def _windows(bins: Iterable[Bin], size: int, hop: int, width: float) -> Iterator[Window]:
    """Windows of `size` bins every `hop` bins, and one that ends with the last bin."""
    latest: deque[Bin] = deque(maxlen=size)
    count, next_end, last_end = 0, size, 0
    for one in bins:
        latest.append(one)
        count += 1
        if count == next_end:
            yield Window((count - size / 2) * width, list(latest))
            next_end, last_end = next_end + hop, count
    if last_end < count:
        yield Window((count - len(latest) / 2) * width, list(latest))


@torch.inference_mode()
def _apply(model: BimodalNet, batch: ClipBatch) -> Tensor:
    """Run `model` in eval mode on its device: (N, K) float64 probabilities on the CPU."""
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
