"""A network's predictions for many clips, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from gcsa_ext.corpora import ClipBatch, ClipDataset, collate_clips
from gcsa_ext.inference.metrics import Scores, score
from gcsa_ext.nn import BimodalNet, BimodalOutput


def run_batch(model: BimodalNet, batch: ClipBatch) -> BimodalOutput:
    """Apply `model` to a batch of clips on the model's device."""
    output: BimodalOutput = model(
        batch["frames"],
        batch["spectrogram"],
        batch["frame_mask"],
        batch["spectrogram_mask"],
        batch["present"],
    )
    return output


@dataclass(frozen=True)
class Predictions:
    """Network outputs of N clips with their labels, on the CPU.

    Attributes:
        visual_logits, audio_logits: (N, K).
        probabilities: (N, K), fused.
        present: (N, 2) bool, whether the clip had a face and had sound.
        labels: (N,) int64, -1 where there is none.
    """

    visual_logits: Tensor
    audio_logits: Tensor
    probabilities: Tensor
    present: Tensor
    labels: Tensor

    @classmethod
    def gather(cls, outputs: Sequence[tuple[BimodalOutput, Tensor]]) -> Predictions:
        """Join the outputs of several batches with their labels."""

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(output, name).detach().cpu() for output, _ in outputs])

        return cls(
            visual_logits=joined("visual_logits").float(),
            audio_logits=joined("audio_logits").float(),
            probabilities=joined("probabilities"),
            present=joined("present"),
            labels=torch.cat([labels.cpu() for _, labels in outputs]),
        )

    def scores(self) -> dict[str, Scores]:
        """Scores of "fused", "visual" and "audio". A modality is scored on the clips that have it."""
        num_classes = self.probabilities.shape[1]
        visual, audio = self.present.unbind(dim=1)
        return {
            "fused": score(self.probabilities, self.labels, num_classes),
            "visual": score(self.visual_logits[visual], self.labels[visual], num_classes),
            "audio": score(self.audio_logits[audio], self.labels[audio], num_classes),
        }


@torch.inference_mode()
def predict_clips(
    model: BimodalNet,
    dataset: ClipDataset,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Apply `model`, in eval mode, to every clip of `dataset`.

    Args:
        model: its mode (train or eval) is restored afterwards.
        dataset: at least one clip.
        batch_size: clips per forward pass.
        progress: called as ``progress(done, total)`` with numbers of clips.

    Raises:
        ValueError: the dataset is empty.
        MediaError: a clip cannot be decoded.
    """
    if not len(dataset):
        raise ValueError("the dataset is empty; expected at least one clip")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    outputs = []
    try:
        done = 0
        for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=collate_clips):
            moved = {name: tensor.to(device) for name, tensor in batch.items()}
            outputs.append((run_batch(model, moved), batch["label"]))  # type: ignore[arg-type]
            done += len(batch["label"])
            if progress is not None:
                progress(done, len(dataset))
    finally:
        model.train(was_training)
    return Predictions.gather(outputs)
