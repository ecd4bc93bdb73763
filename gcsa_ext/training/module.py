"""The Lightning module: one network, its loss over the entire network, its scores on the validation set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gcsa_ext.corpora import IGNORE_INDEX, ClipBatch
from gcsa_ext.extra import import_extra
from gcsa_ext.inference.evaluation import Predictions, run_batch
from gcsa_ext.nn import BimodalLoss, BimodalNet, BimodalOutput
from gcsa_ext.training.augmentation import augment_frames, draw_frames

import_extra("lightning")
from lightning import LightningModule  # noqa: E402  (after the check that names the extra to install)


class ExpressionModule(LightningModule):
    """Trains a :class:`~gcsa_ext.nn.BimodalNet` with AdamW and a one-cycle schedule.

    After every validation epoch the network's fusion is fitted to the validation set. Then the macro-F1 of
    both modalities and of the fused vector are logged as ``val_visual``, ``val_audio`` and ``val_fused``, and
    the loss as ``val_loss``. With several processes, each one fits and scores its share of the validation
    set.

    Args:
        model: the network.
        loss: over the entire network.
        learning_rate: the peak of the schedule.
        weight_decay: of AdamW; biases and the weights of norms are exempt.
        augment: change the frames at random in training, see
            :func:`~gcsa_ext.training.augmentation.augment_frames`.
        frames_per_step: number of frames drawn at random from each clip in every step; None for all.
    """

    def __init__(
        self,
        model: BimodalNet,
        loss: BimodalLoss | None = None,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.02,
        augment: bool = True,
        frames_per_step: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = BimodalLoss() if loss is None else loss
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.augment = augment
        self.frames_per_step = frames_per_step
        self._outputs: list[tuple[BimodalOutput, Tensor]] = []

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        batch = draw_frames(batch, self.frames_per_step)
        if self.augment:
            batch["frames"] = augment_frames(batch["frames"])
        loss: Tensor = self.loss(run_batch(self.model, batch), batch["label"])
        self.log(
            "train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(batch["label"])
        )
        return loss

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:
        """Keep the outputs of one batch and log its loss."""
        output = run_batch(self.model, batch)
        loss = self.loss(output, batch["label"])
        self.log("val_loss", loss, batch_size=len(batch["label"]))
        self._outputs.append((output, batch["label"]))

    def on_validation_epoch_end(self) -> None:
        """Fit the fusion, then score."""
        outputs, self._outputs = self._outputs, []
        predictions = Predictions.gather(outputs)
        if bool((predictions.labels != IGNORE_INDEX).any()):
            self.fit_fusion(predictions)
        with torch.no_grad():
            fused = self.model.fusion(
                [predictions.visual_logits.to(self.device), predictions.audio_logits.to(self.device)],
                predictions.present.to(self.device),
            )
        rescored = replace(predictions, probabilities=fused.exp().cpu())
        for name, scores in rescored.scores().items():
            self.log(f"val_{name}", scores.macro_f1, prog_bar=True)

    def fit_fusion(self, predictions: Predictions) -> None:
        """Fit the network's fusion to its outputs for the validation set."""
        self.model.fusion.fit(
            [predictions.visual_logits, predictions.audio_logits],
            predictions.labels,
            predictions.present,
            ignore_index=IGNORE_INDEX,
        )

    def configure_optimizers(self) -> Any:
        """AdamW with a one-cycle schedule over all steps of the training."""
        decayed = [p for p in self.model.parameters() if p.dim() > 1]
        exempt = [p for p in self.model.parameters() if p.dim() <= 1]
        optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": self.weight_decay},
                {"params": exempt, "weight_decay": 0.0},
            ],
            lr=self.learning_rate,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=self.learning_rate,
            total_steps=int(self.trainer.estimated_stepping_batches),
            pct_start=0.2,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
