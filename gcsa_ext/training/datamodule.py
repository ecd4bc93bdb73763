"""The Lightning data module: the clips of a manifest, by split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from gcsa_ext.corpora import (
    ABAW,
    IGNORE_INDEX,
    Clip,
    ClipDataset,
    ClipSample,
    ClipSettings,
    collate_clips,
    label_set,
)
from gcsa_ext.extra import import_extra

import_extra("lightning")
from lightning import LightningDataModule  # noqa: E402  (after the check that names the extra to install)


class ClipDataModule(LightningDataModule):
    """Clips for training, validation and test, prepared once and read from a cache folder.

    Args:
        clips: of all splits, as :func:`~gcsa_ext.corpora.read_manifest` gives them.
        settings: how clips become tensors.
        cache_folder: where prepared clips are kept.
        batch_size: clips per batch.
        workers: DataLoader processes; 0 reads in the main process, which is fast enough for prepared clips.
        seed: of the order of the training clips.
        classes: the label set of the clips, or its class names by index.

    Attributes:
        datasets: by split, "train", "validation" and "test"; a training clip without a label is left out.
        labels: the label set.

    Raises:
        ValueError: no labelled clip to train on, or none to validate on.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        settings: ClipSettings,
        cache_folder: str | Path,
        batch_size: int = 16,
        workers: int = 0,
        seed: int = 0,
        classes: Sequence[str] = ABAW,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.labels = label_set(classes)
        self.datasets = {
            split: ClipDataset(
                [c for c in clips if c.split == split and (split != "train" or c.label != IGNORE_INDEX)],
                settings,
                cache_folder,
            )
            for split in ("train", "validation", "test")
        }
        for split in ("train", "validation"):
            if all(clip.label == IGNORE_INDEX for clip in self.datasets[split].clips):
                raise ValueError(
                    f"none of the {len(clips)} clips is a labelled one of the split {split!r}; "
                    "expected some of each of train and validation"
                )

    def prepare(self, progress: Callable[[int, int], None] | None = None, workers: int = 2) -> None:
        """Decode the clips of all splits that are not in the cache yet.

        Args:
            progress: called as ``progress(done, total)`` with counts over all splits.
            workers: number of threads.

        Raises:
            MediaError: a clip cannot be decoded.
        """
        total = sum(len(dataset) for dataset in self.datasets.values())
        before = 0
        for dataset in self.datasets.values():
            offset = before

            def report(done: int, _: int, offset: int = offset) -> None:
                if progress is not None:
                    progress(offset + done, total)

            dataset.prepare(report, workers)
            before += len(dataset)

    def class_counts(self, num_classes: int) -> Tensor:
        """(num_classes,) int64, labelled training clips of each class."""
        labels = torch.tensor([clip.label for clip in self.datasets["train"].clips])
        return torch.bincount(labels, minlength=num_classes)

    def train_dataloader(self) -> DataLoader[ClipSample]:
        """Shuffled training batches. A last batch that is not full is left out, unless it is the only one."""
        dataset = self.datasets["train"]
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=True,
            drop_last=len(dataset) > self.batch_size,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            collate_fn=collate_clips,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def val_dataloader(self) -> DataLoader[ClipSample]:
        """Validation batches in order."""
        return self._in_order("validation")

    def test_dataloader(self) -> DataLoader[ClipSample]:
        """Test batches in order."""
        return self._in_order("test")

    def _in_order(self, split: str) -> DataLoader[ClipSample]:
        return DataLoader(
            self.datasets[split],
            batch_size=2 * self.batch_size,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            collate_fn=collate_clips,
        )
