"""The verb ``train``: train on the clips of a manifest, and score the result on its test clips."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gcsa_ext.cli.options import (
    add_manifest_options,
    cache_folder,
    positive_float,
    positive_int,
)
from gcsa_ext.nn import BimodalNet

if TYPE_CHECKING:
    from gcsa_ext.corpora import ClipDataset, ClipSettings
    from gcsa_ext.training.fit import TrainingOptions

SUMMARY = "train on the clips of a manifest"
DETAILS = "Keeps the weights with the best validation macro-F1."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``train``."""
    add_manifest_options(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("gcsa-ext-run"), help="folder for the checkpoint and the scores"
    )
    parser.add_argument("--preset", choices=("small", "base"), default="small", help="size of the network")
    parser.add_argument(
        "--start", type=Path, help="checkpoint to start from; its network and clip settings are kept"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with an interrupted training of the same arguments"
    )
    _add_optimisation_options(parser)
    _add_clip_options(parser)


def _add_optimisation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=positive_int, default=30, help="passes over the training clips")
    parser.add_argument("--batch-size", type=positive_int, default=16, help="clips per step")
    parser.add_argument(
        "--learning-rate", type=positive_float, default=3e-3, help="peak of the one-cycle schedule"
    )
    parser.add_argument(
        "--label-smoothing", type=float, default=0.1, help="share of the target spread over all classes"
    )
    parser.add_argument(
        "--frames-per-step", type=positive_int, help="frames drawn of each clip in every step (default: all)"
    )
    parser.add_argument("--balance", action="store_true", help="weigh classes by their inverse frequency")
    parser.add_argument("--no-augment", action="store_true", help="leave the frames as they are in training")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of weights, batches, masks and augmentation"
    )


def _add_clip_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--frames", type=positive_int, default=8, help="frames per clip, at equal time intervals"
    )
    parser.add_argument(
        "--image-size", type=positive_int, default=64, help="side of the face crops in pixels"
    )
    parser.add_argument(
        "--window",
        type=positive_float,
        default=2.4,
        help="longest clip in seconds; the middle of longer ones counts",
    )
    parser.add_argument(
        "--faces",
        choices=("detect", "frame"),
        default="detect",
        help="look for the face in each frame, or take the frame's centred square",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, and print the scores on the test split if it has labels; returns the exit code."""
    from gcsa_ext.corpora import read_manifest
    from gcsa_ext.training.datamodule import ClipDataModule
    from gcsa_ext.training.fit import train
    from gcsa_ext.training.progress import progress_bar

    options = _training_options(arguments)
    clips = read_manifest(arguments.manifest)
    torch.manual_seed(arguments.seed)
    model, settings = _starting_point(arguments)
    data = ClipDataModule(
        clips, settings, arguments.cache or cache_folder("clips"), arguments.batch_size, seed=arguments.seed
    )
    with progress_bar("preparing the clips") as report:
        data.prepare(report, arguments.workers)
    result = train(model, data, arguments.out / "model", options, resume=arguments.resume)
    print(f"best validation macro-F1, after {result.epoch} epochs: {result.scores['fused']:.3f}")
    print(f"checkpoint: {result.checkpoint}")
    test = data.datasets["test"]
    if any(clip.label >= 0 for clip in test.clips):
        _score(result.model, test, arguments.out)
    return 0


def _training_options(arguments: argparse.Namespace) -> TrainingOptions:
    from gcsa_ext.training.fit import TrainingOptions

    return TrainingOptions(
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        label_smoothing=arguments.label_smoothing,
        balance_classes=arguments.balance,
        frames_per_step=arguments.frames_per_step,
        augment=not arguments.no_augment,
        seed=arguments.seed,
    )


def _starting_point(arguments: argparse.Namespace) -> tuple[BimodalNet, ClipSettings]:
    """The network to train and how clips become its input: those of ``--start``, or new ones."""
    from gcsa_ext.corpora import EMOTIONS, ClipSettings
    from gcsa_ext.inference.checkpoint import load_checkpoint

    if arguments.start is None:
        settings = ClipSettings(
            frames_per_clip=arguments.frames,
            image_size=arguments.image_size,
            window_seconds=arguments.window,
            faces=arguments.faces,
        )
        return BimodalNet.from_preset(arguments.preset, len(EMOTIONS)), settings
    start = load_checkpoint(arguments.start)
    if start.classes != EMOTIONS:
        raise ValueError(f"{arguments.start} has the classes {start.classes}; expected {EMOTIONS}")
    return start.model, start.settings


def _score(model: BimodalNet, test: ClipDataset, folder: Path) -> None:
    """Print the scores on the test clips and write them to ``folder``."""
    from gcsa_ext.corpora import EMOTIONS
    from gcsa_ext.inference.evaluation import predict_clips
    from gcsa_ext.inference.report import format_scores, write_scores
    from gcsa_ext.training.progress import progress_bar

    with progress_bar("evaluating") as report:
        scores = predict_clips(model, test, progress=report).scores()
    print(format_scores(scores, EMOTIONS))
    _, confusion = write_scores(folder, "test", scores, EMOTIONS)
    print(f"confusion matrix: {confusion}")
