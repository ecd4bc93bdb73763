"""The verb ``predict``: write a row of class probabilities for every frame of media files."""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gcsa_ext.cli.errors import error_in_one_line, report_error
from gcsa_ext.cli.options import (
    add_checkpoint_option,
    add_device_option,
    device_name,
    positive_float,
    positive_int,
)

if TYPE_CHECKING:
    from gcsa_ext.inference.checkpoint import Checkpoint
    from gcsa_ext.inference.rows import FramePrediction

SUMMARY = "judge every frame of media files"
DETAILS = (
    "Writes one row per frame: index, time in seconds, label, a probability per class, whether a face "
    "and sound were found, and a note. A file that cannot be read is reported and the others go on."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``predict``."""
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="video or sound file")
    add_checkpoint_option(parser)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the <video>.emotions.* files")
    parser.add_argument("--format", choices=("csv", "json"), default="csv", help="format of the rows")
    parser.add_argument("--plot", action="store_true", help="also draw the probabilities over time (PNG)")
    parser.add_argument(
        "--smoothing", type=float, default=1.0, help="length in seconds of the moving average; 0 for none"
    )
    parser.add_argument("--hop", type=positive_float, help="seconds between windows (default: half a window)")
    add_device_option(parser)
    parser.add_argument("--batch-size", type=positive_int, default=8, help="windows per forward pass")


def run(arguments: argparse.Namespace) -> int:
    """Predict each file; returns the exit code, which is 1 if any file failed."""
    from gcsa_ext.inference.checkpoint import load_checkpoint

    stems = [video.stem for video in arguments.videos]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ValueError(f"several videos are named {', '.join(twice)} and would be written to the same file")
    checkpoint = load_checkpoint(arguments.checkpoint)
    checkpoint.model.to(device_name(arguments.device))
    code = 0
    for video in arguments.videos:
        try:
            _predict_one(arguments, video, checkpoint)
        except Exception as error:  # whatever is wrong with one file, the others go on
            if arguments.debug:
                traceback.print_exc()
            message = error_in_one_line(error)
            # The message of a MediaError already names the file.
            code = report_error(message if str(video) in message else f"{video}: {message}")
    return code


def _predict_one(arguments: argparse.Namespace, video: Path, checkpoint: Checkpoint) -> None:
    from gcsa_ext.inference.plots import Timeline
    from gcsa_ext.inference.predictor import predict_video
    from gcsa_ext.inference.rows import Summary
    from gcsa_ext.inference.tables import write_csv, write_json
    from gcsa_ext.media import probe
    from gcsa_ext.training.progress import make_progress

    classes = checkpoint.classes
    seconds = round(probe(video).duration)
    rows = predict_video(
        video,
        checkpoint.model,
        checkpoint.settings,
        classes,
        hop_seconds=arguments.hop,
        smoothing_seconds=arguments.smoothing,
        batch_size=arguments.batch_size,
    )
    summary, timeline = Summary(), Timeline()
    target = arguments.out / f"{video.stem}.emotions.{arguments.format}"
    with make_progress() as progress:
        task = progress.add_task(video.name[:22], total=seconds, note="s")

        def with_progress(rows: Iterator[FramePrediction]) -> Iterator[FramePrediction]:
            for row in rows:
                progress.update(task, completed=int(row.time))
                yield row
            progress.update(task, completed=seconds)

        shown = with_progress(timeline.observe(summary.observe(rows)))
        if arguments.format == "csv":
            write_csv(target, shown, classes)
        else:
            write_json(target, shown, classes, source=str(video))
    print(f"{video}: {summary.describe()} -> {target}")
    if arguments.plot:
        print(timeline.plot(target.with_suffix(".png"), classes, video.name))
