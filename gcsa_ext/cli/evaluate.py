"""The verb ``evaluate``: score a checkpoint on the labelled clips of a manifest."""

import argparse
from pathlib import Path

from gcsa_ext.cli.options import (
    add_checkpoint_option,
    add_device_option,
    add_manifest_options,
    cache_folder,
    device_name,
)

SUMMARY = "score a checkpoint on the labelled clips of a manifest"
DETAILS = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``evaluate``."""
    add_manifest_options(parser)
    add_checkpoint_option(parser)
    parser.add_argument(
        "--split", choices=("train", "validation", "test"), default="test", help="which clips"
    )
    add_device_option(parser)
    parser.add_argument(
        "--out", type=Path, help="folder for the scores (JSON) and the confusion matrix (PNG)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the scores of one split, and write them if asked to; returns the exit code."""
    from gcsa_ext.corpora import ClipDataset, read_manifest
    from gcsa_ext.inference.checkpoint import load_checkpoint
    from gcsa_ext.inference.evaluation import predict_clips
    from gcsa_ext.inference.report import format_scores, write_scores
    from gcsa_ext.training.progress import progress_bar

    checkpoint = load_checkpoint(arguments.checkpoint)
    clips = [c for c in read_manifest(arguments.manifest, checkpoint.classes) if c.split == arguments.split]
    if not clips:
        raise ValueError(f"{arguments.manifest}: it has no clips of the split {arguments.split!r}")
    dataset = ClipDataset(clips, checkpoint.settings, arguments.cache or cache_folder("clips"))
    with progress_bar("preparing the clips") as report:
        dataset.prepare(report, arguments.workers)
    model = checkpoint.model.to(device_name(arguments.device))
    with progress_bar("evaluating") as report:
        scores = predict_clips(model, dataset, progress=report).scores()
    print(f"{scores['fused'].count} clips of the split {arguments.split}")
    print(format_scores(scores, checkpoint.classes))
    if arguments.out is not None:
        for file in write_scores(arguments.out, arguments.split, scores, checkpoint.classes):
            print(file)
    return 0
