"""One call that trains a network on clips and writes its best weights to a checkpoint."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gcsa_ext.corpora import label_set
from gcsa_ext.extra import import_extra
from gcsa_ext.inference.checkpoint import checkpoint_files, load_checkpoint, save_checkpoint
from gcsa_ext.nn import BimodalLoss, BimodalNet, CoarseFineLoss
from gcsa_ext.training.datamodule import ClipDataModule
from gcsa_ext.training.module import ExpressionModule
from gcsa_ext.training.progress import make_progress

import_extra("lightning")
from lightning import Callback, LightningModule, Trainer  # noqa: E402  (after the check for the extra)
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402


@dataclass(frozen=True)
class TrainingOptions:
    """Hyperparameters of a training; all defaults are choices of this project.

    Attributes:
        epochs: passes over the training clips.
        max_steps: optimiser steps after which to stop, -1 for no such bound.
        learning_rate: peak of the one-cycle schedule.
        weight_decay: of AdamW.
        coarse_weight: weight of the coarse groups in the coarse-fine loss (lambda). It has no effect with a
            label set that has no coarse groups.
        modality_weight: weight of the two modalities' own losses beside the fused one (mu).
        label_smoothing: of the loss.
        balance_classes: weigh classes by the inverse of their frequency in the training split.
        augment: change the frames at random, see
            :func:`~gcsa_ext.training.augmentation.augment_frames`.
        frames_per_step: number of frames drawn at random from each clip in every step; None for all.
        seed: of the batches, the dropout, the masking and the augmentation.

    Raises:
        ValueError: a number out of range.
    """

    epochs: int = 30
    max_steps: int = -1
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    coarse_weight: float = 0.5
    modality_weight: float = 0.5
    label_smoothing: float = 0.1
    balance_classes: bool = False
    augment: bool = True
    frames_per_step: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("weight_decay", "coarse_weight", "modality_weight", "label_smoothing", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.frames_per_step is not None and self.frames_per_step < 1:
            raise ValueError(f"frames_per_step must be at least 1, got {self.frames_per_step}")
        if self.max_steps < 1 and self.max_steps != -1:
            raise ValueError(f"max_steps must be positive or -1, got {self.max_steps}")


@dataclass(frozen=True)
class TrainingResult:
    """The result of :func:`train`.

    Attributes:
        model: the network with its best weights, in eval mode, on the CPU.
        checkpoint: the weights' file; the description lies beside it.
        scores: macro-F1 on the validation split of "fused", "visual" and "audio" with the best weights.
        epoch: number of epochs after which the network had the best weights.
        steps: optimiser steps of the whole training.
    """

    model: BimodalNet
    checkpoint: Path
    scores: dict[str, float]
    epoch: int
    steps: int


class KeepBest(Callback):
    """Writes a checkpoint whenever the fused validation macro-F1 improves; ties go to the lower loss.

    With several processes, rank 0 decides and writes. All ranks have the same state.

    Args:
        path: of the checkpoint.
        data: its clip settings are stored in the checkpoint.
        classes: the label set to store in the checkpoint, or class names by index.
        options: stored in the checkpoint.
    """

    def __init__(
        self, path: Path, data: ClipDataModule, classes: Sequence[str], options: TrainingOptions
    ) -> None:
        self.path = path
        self.settings = data.settings
        self.labels = label_set(classes)
        self.options = options
        self.best: tuple[float, float] | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ExpressionModule)
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        # Metrics differ between ranks where they are not reduced.
        values = trainer.strategy.broadcast(values)
        current = values["val_fused"], -values["val_loss"]
        if self.best is not None and current <= self.best:
            return
        self.best = current
        if not trainer.is_global_zero:
            return
        save_checkpoint(
            self.path,
            pl_module.model,
            self.settings,
            self.labels,
            {
                "validation_macro_f1": {name: values[f"val_{name}"] for name in ("fused", "visual", "audio")},
                "epoch": trainer.current_epoch + 1,
                "training": asdict(self.options),
            },
        )

    def state_dict(self) -> dict[str, Any]:
        return {"best": None if self.best is None else list(self.best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict["best"]
        self.best = None if best is None else (best[0], best[1])


class TrainingProgress(Callback):
    """One bar over all steps of the training, with the last loss and validation scores beside it.

    With several processes, only rank 0 shows the bar.
    """

    def __init__(self) -> None:
        self.progress = make_progress()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.progress.disable |= not trainer.is_global_zero

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.task = self.progress.add_task("training", total=int(trainer.estimated_stepping_batches), note="")
        self.progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.progress.update(self.task, completed=trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = trainer.callback_metrics
        note = f"epoch {trainer.current_epoch + 1}"
        for key, title in (
            ("val_loss", "loss"),
            ("val_fused", "F1"),
            ("val_visual", "face"),
            ("val_audio", "audio"),
        ):
            note += f"  {title} {float(values[key]):.2f}"
        self.progress.update(self.task, note=note)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.progress.stop()


def make_loss(data: ClipDataModule, classes: Sequence[str], options: TrainingOptions) -> BimodalLoss:
    """The loss over the entire network.

    The coarse groups are those of the label set. Without coarse groups, the coarse term would be the fine
    term once more and only scale the loss, so that it is left out.

    Args:
        data: its training split gives the class weights.
        classes: a label set, or class names by index.
        options: weights of the terms, label smoothing, and whether to weigh the classes.
    """
    labels = label_set(classes)
    num_classes = len(labels)
    weight = None
    if options.balance_classes:
        counts = data.class_counts(num_classes)
        # A class that never occurs in training must not make the weights infinite.
        weight = counts.sum() / (num_classes * counts.clamp(min=1)) * (counts > 0)
    coarse_weight = options.coarse_weight if labels.groups else 0.0
    criterion = CoarseFineLoss(
        labels.group_indices,
        coarse_weight,
        weight,
        options.label_smoothing,
        labels.ignore_index,
    )
    return BimodalLoss(criterion, options.modality_weight)


def train(
    model: BimodalNet,
    data: ClipDataModule,
    checkpoint: str | Path,
    options: TrainingOptions | None = None,
    classes: Sequence[str] | None = None,
    progress: bool = True,
    resume: bool = False,
) -> TrainingResult:
    """Train `model` and keep its best weights.

    After each epoch the fusion is fitted to the validation split and the network is scored on it; the
    checkpoint is rewritten when the fused macro-F1 improves. Until the training is complete, the file
    ``<checkpoint>.resume.ckpt`` beside it holds the optimiser's state. Runs on one device: a GPU if there is
    one, else the CPU.

    Args:
        model: trained in place, then given the best weights.
        data: the clips; a clip that is not prepared yet is decoded when it is first read.
        checkpoint: path of the checkpoint, with or without suffix.
        options: hyperparameters.
        classes: a label set, or K class names by index; by default the label set of `data`. It gives the
            coarse groups of the loss and is stored in the checkpoint.
        progress: show a bar on standard error.
        resume: go on from the file ``<checkpoint>.resume.ckpt`` of an interrupted training.

    Raises:
        ValueError: the number of classes is not the network's.
        FileNotFoundError: `resume` without such a file.
        MediaError: a clip cannot be decoded.
    """
    options = TrainingOptions() if options is None else options
    weights_file, _ = checkpoint_files(checkpoint)
    labels = data.labels if classes is None else label_set(classes)
    if len(labels) != model.num_classes:
        raise ValueError(
            f"{len(labels)} class names {labels.classes} for a network of {model.num_classes} classes"
        )
    resume_file = weights_file.with_suffix(".resume.ckpt")
    if resume and not resume_file.is_file():
        raise FileNotFoundError(
            f"{resume_file}: there is no such file; only a training that was interrupted can be resumed"
        )
    torch.manual_seed(options.seed)
    model.train()
    module = ExpressionModule(
        model,
        make_loss(data, labels, options),
        options.learning_rate,
        options.weight_decay,
        options.augment,
        options.frames_per_step,
    )
    best = KeepBest(weights_file, data, labels, options)
    callbacks: list[Callback] = [
        best,
        # Without a monitored metric, the one file kept is that of the latest epoch.
        ModelCheckpoint(
            dirpath=weights_file.parent,
            filename=resume_file.stem,
            save_top_k=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
    ]
    if progress:
        callbacks.append(TrainingProgress())
    with _quiet_lightning():
        trainer = Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=options.epochs,
            max_steps=options.max_steps,
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            gradient_clip_val=5.0,
            log_every_n_steps=1,
        )
        with _interruptible():
            trainer.fit(module, datamodule=data, ckpt_path=resume_file if resume else None)
            if best.best is None:  # stopped by max_steps within the first epoch
                trainer.validate(module, datamodule=data, verbose=False)
    trainer.strategy.barrier()  # rank 0 has written the checkpoint
    if trainer.is_global_zero:
        resume_file.unlink(missing_ok=True)
    kept = load_checkpoint(weights_file)
    model.load_state_dict(kept.model.state_dict())
    model.to("cpu").eval()
    return TrainingResult(
        model,
        weights_file,
        kept.metadata["validation_macro_f1"],
        kept.metadata["epoch"],
        trainer.global_step,
    )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C. Lightning would call sys.exit and ignore the signal from then on."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        signal.signal(signal.SIGINT, handler or signal.default_int_handler)
        raise KeyboardInterrupt from stop


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's hints about devices, workers and folders."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Reading a prepared clip takes less time than passing it between processes.
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            # The user chooses the folder of the resume file. It need not be empty.
            warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
            # Lightning uses a name that PyTorch has renamed.
            warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated.*")
            yield
    finally:
        logger.setLevel(level)
