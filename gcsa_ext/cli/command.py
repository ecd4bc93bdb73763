"""The command line: ``gcsa-ext info | demo | train | evaluate | predict``."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gcsa_ext import __version__, format_info

if TYPE_CHECKING:
    from gcsa_ext.inference.checkpoint import Checkpoint
    from gcsa_ext.inference.rows import FramePrediction

# What a verb needs beyond torch and numpy is imported inside it: `info` and `--help` work on any
# installation.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: those of the command line, without the program's name; by default the process's own.

    Returns:
        0 if all went well; 1 if something could not be done, which one line on standard error says; 2 if the
        arguments make no sense.
    """
    parser = _parser()
    try:
        parsed = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse has printed its help or its complaint
        return int(stop.code or 0)
    try:
        code: int = parsed.run(parsed)
        return code
    except KeyboardInterrupt:
        return _fail("interrupted")
    except Exception as error:
        if parsed.debug:
            traceback.print_exc()
            return 1
        return _fail(_one_line(error))


def _fail(message: str) -> int:
    print(f"gcsa-ext: {message}", file=sys.stderr)
    return 1


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    # The messages of these are whole sentences; others need their type to be understood.
    return (
        text
        if text and isinstance(error, (ValueError, OSError, ImportError))
        else f"{type(error).__name__}: {text}"
    )


def _cache_folder(name: str) -> Path:
    """``name`` in the user's cache folder, as the XDG base directory specification places it."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if Path(root).is_absolute() else Path.home() / ".cache") / "gcsa-ext" / name


def _device(name: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _info(arguments: argparse.Namespace) -> int:
    print(format_info())
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from gcsa_ext.cli.demo import run_demo

    run_demo(arguments.out, arguments.cache or _cache_folder("demo"), arguments.seed, arguments.quick)
    return 0


def _train(arguments: argparse.Namespace) -> int:
    import torch

    from gcsa_ext.corpora import EMOTIONS, ClipSettings, read_manifest
    from gcsa_ext.inference.checkpoint import load_checkpoint
    from gcsa_ext.inference.evaluation import predict_clips
    from gcsa_ext.inference.report import format_scores, write_scores
    from gcsa_ext.nn import BimodalNet
    from gcsa_ext.training.datamodule import ClipDataModule
    from gcsa_ext.training.fit import TrainingOptions, train
    from gcsa_ext.training.progress import progress_bar

    options = TrainingOptions(
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        label_smoothing=arguments.label_smoothing,
        balance_classes=arguments.balance,
        frames_per_step=arguments.frames_per_step,
        augment=not arguments.no_augment,
        seed=arguments.seed,
    )
    clips = read_manifest(arguments.manifest)
    torch.manual_seed(arguments.seed)
    if arguments.start is None:
        settings = ClipSettings(
            frames_per_clip=arguments.frames,
            image_size=arguments.image_size,
            window_seconds=arguments.window,
            faces=arguments.faces,
        )
        model = BimodalNet.from_preset(arguments.preset, len(EMOTIONS))
    else:
        start = load_checkpoint(arguments.start)
        if start.classes != EMOTIONS:
            raise ValueError(f"{arguments.start} has the classes {start.classes}; expected {EMOTIONS}")
        settings, model = start.settings, start.model
    data = ClipDataModule(
        clips, settings, arguments.cache or _cache_folder("clips"), arguments.batch_size, seed=arguments.seed
    )
    with progress_bar("preparing the clips") as report:
        data.prepare(report, arguments.workers)
    result = train(model, data, arguments.out / "model", options, resume=arguments.resume)
    print(f"best validation macro-F1, after {result.epoch} epochs: {result.scores['fused']:.3f}")
    print(f"checkpoint: {result.checkpoint}")
    test = data.datasets["test"]
    if any(clip.label >= 0 for clip in test.clips):
        with progress_bar("evaluating") as report:
            scores = predict_clips(result.model, test, progress=report).scores()
        print(format_scores(scores, EMOTIONS))
        _, confusion = write_scores(arguments.out, "test", scores, EMOTIONS)
        print(f"confusion matrix: {confusion}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from gcsa_ext.corpora import ClipDataset, read_manifest
    from gcsa_ext.inference.checkpoint import load_checkpoint
    from gcsa_ext.inference.evaluation import predict_clips
    from gcsa_ext.inference.report import format_scores, write_scores
    from gcsa_ext.training.progress import progress_bar

    checkpoint = load_checkpoint(arguments.checkpoint)
    clips = [c for c in read_manifest(arguments.manifest, checkpoint.classes) if c.split == arguments.split]
    if not clips:
        raise ValueError(f"{arguments.manifest}: it has no clips of the split {arguments.split!r}")
    dataset = ClipDataset(clips, checkpoint.settings, arguments.cache or _cache_folder("clips"))
    with progress_bar("preparing the clips") as report:
        dataset.prepare(report, arguments.workers)
    model = checkpoint.model.to(_device(arguments.device))
    with progress_bar("evaluating") as report:
        scores = predict_clips(model, dataset, progress=report).scores()
    print(f"{scores['fused'].count} clips of the split {arguments.split}")
    print(format_scores(scores, checkpoint.classes))
    if arguments.out is not None:
        for file in write_scores(arguments.out, arguments.split, scores, checkpoint.classes):
            print(file)
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    from gcsa_ext.inference.checkpoint import load_checkpoint

    stems = [video.stem for video in arguments.videos]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ValueError(f"several videos are named {', '.join(twice)} and would be written to the same file")
    checkpoint = load_checkpoint(arguments.checkpoint)
    checkpoint.model.to(_device(arguments.device))
    code = 0
    for video in arguments.videos:
        try:
            _predict_one(arguments, video, checkpoint)
        except Exception as error:  # whatever is wrong with one file, the others go on
            if arguments.debug:
                traceback.print_exc()
            # A MediaError names the file itself.
            message = _one_line(error)
            code = _fail(message if str(video) in message else f"{video}: {message}")
    return code


def _predict_one(arguments: argparse.Namespace, video: Path, checkpoint: Checkpoint) -> None:
    from gcsa_ext.inference.plots import Timeline
    from gcsa_ext.inference.predictor import predict_video
    from gcsa_ext.inference.rows import Summary
    from gcsa_ext.inference.tables import write_csv, write_json
    from gcsa_ext.media import probe
    from gcsa_ext.training.progress import make_progress

    classes = checkpoint.classes
    info = probe(video)
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
        task = progress.add_task(video.name[:22], total=round(info.duration), note="s")

        def watched(rows: Iterator[FramePrediction]) -> Iterator[FramePrediction]:
            for row in timeline.observe(summary.observe(rows)):
                progress.update(task, completed=int(row.time))
                yield row
            progress.update(task, completed=round(info.duration))

        if arguments.format == "csv":
            write_csv(target, watched(rows), classes)
        else:
            write_json(target, watched(rows), classes, source=str(video))
    print(f"{video}: {summary.describe()} -> {target}")
    if arguments.plot:
        print(timeline.plot(target.with_suffix(".png"), classes, video.name))


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError(text)
        return value

    parse.__name__ = f"positive {kind.__name__}"  # argparse puts it into its message
    return parse


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to an option's help, where there is one and the help does not tell it in words."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or "(default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    whole, real = _positive(int), _positive(float)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="on an error, show the whole traceback")
    parser = argparse.ArgumentParser(
        prog="gcsa-ext",
        description="Audio-visual expression recognition with fused channel-spatial attention.",
    )
    parser.add_argument("--version", action="version", version=f"gcsa-ext {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(
        name: str, run: Callable[[argparse.Namespace], int], summary: str, text: str = ""
    ) -> argparse.ArgumentParser:
        added = verbs.add_parser(
            name,
            parents=[common],
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {text}",
            formatter_class=_Formatter,
        )
        added.set_defaults(run=run)
        return added

    def add_clip_options(to: argparse.ArgumentParser) -> None:
        to.add_argument(
            "--manifest",
            type=Path,
            required=True,
            help="CSV file with the columns path, label (a class name or index), split (train, "
            "validation or test) and optionally start and end in seconds; relative paths start at its folder",
        )
        to.add_argument(
            "--cache", type=Path, help="folder for prepared clips (default: in the user's cache folder)"
        )
        to.add_argument("--workers", type=whole, default=2, help="threads that prepare clips")

    def add_device_option(to: argparse.ArgumentParser) -> None:
        to.add_argument("--device", default="auto", help='as PyTorch names it; "auto": a GPU if there is one')

    verb("info", _info, "print versions, backends, and why a backend cannot run")

    demo = verb(
        "demo",
        _demo,
        "make talking faces, train on them, evaluate and predict",
        "Writes synthetic clips to a cache folder, trains the small network on them (a minute on two CPU "
        "cores), scores it on people it has not seen, and judges one more clip frame by frame.",
    )
    demo.add_argument("--out", type=Path, default=Path("gcsa-ext-demo"), help="folder for the results")
    demo.add_argument("--cache", type=Path, help="folder for the clips (default: in the user's cache folder)")
    demo.add_argument("--seed", type=int, default=0, help="seed of the training")
    demo.add_argument(
        "--quick", action="store_true", help="few clips and steps: shows that all runs, not how well it does"
    )

    train = verb(
        "train",
        _train,
        "train on the clips of a manifest",
        "Keeps the weights with the best validation macro-F1.",
    )
    add_clip_options(train)
    train.add_argument(
        "--out", type=Path, default=Path("gcsa-ext-run"), help="folder for the checkpoint and the scores"
    )
    train.add_argument("--preset", choices=("small", "base"), default="small", help="size of the network")
    train.add_argument(
        "--start", type=Path, help="checkpoint to start from; its network and clip settings are kept"
    )
    train.add_argument(
        "--resume", action="store_true", help="go on with an interrupted training of the same arguments"
    )
    train.add_argument("--epochs", type=whole, default=30, help="passes over the training clips")
    train.add_argument("--batch-size", type=whole, default=16, help="clips per step")
    train.add_argument("--learning-rate", type=real, default=3e-3, help="peak of the one-cycle schedule")
    train.add_argument(
        "--label-smoothing", type=float, default=0.1, help="share of the target spread over all classes"
    )
    train.add_argument(
        "--frames-per-step", type=whole, help="frames drawn of each clip in every step (default: all)"
    )
    train.add_argument("--balance", action="store_true", help="weigh classes by their inverse frequency")
    train.add_argument("--no-augment", action="store_true", help="leave the frames as they are in training")
    train.add_argument("--seed", type=int, default=0, help="seed of weights, batches, masks and augmentation")
    train.add_argument("--frames", type=whole, default=8, help="frames per clip, at equal time intervals")
    train.add_argument("--image-size", type=whole, default=64, help="side of the face crops in pixels")
    train.add_argument(
        "--window", type=real, default=2.4, help="longest clip in seconds; the middle of longer ones counts"
    )
    train.add_argument(
        "--faces",
        choices=("detect", "frame"),
        default="detect",
        help="look for the face in each frame, or take the frame's centred square",
    )

    evaluate = verb("evaluate", _evaluate, "score a checkpoint on the labelled clips of a manifest")
    add_clip_options(evaluate)
    evaluate.add_argument("--checkpoint", type=Path, required=True, help="checkpoint, with or without suffix")
    evaluate.add_argument(
        "--split", choices=("train", "validation", "test"), default="test", help="which clips"
    )
    add_device_option(evaluate)
    evaluate.add_argument(
        "--out", type=Path, help="folder for the scores (JSON) and the confusion matrix (PNG)"
    )

    predict = verb(
        "predict",
        _predict,
        "judge every frame of media files",
        "Writes one row per frame: index, time in seconds, label, a probability per class, whether a face "
        "and sound were found, and a note. A file that cannot be read is reported and the others go on.",
    )
    predict.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="video or sound file")
    predict.add_argument("--checkpoint", type=Path, required=True, help="checkpoint, with or without suffix")
    predict.add_argument("--out", type=Path, default=Path(), help="folder for the <video>.emotions.* files")
    predict.add_argument("--format", choices=("csv", "json"), default="csv", help="format of the rows")
    predict.add_argument("--plot", action="store_true", help="also draw the probabilities over time (PNG)")
    predict.add_argument(
        "--smoothing", type=float, default=1.0, help="length in seconds of the moving average; 0 for none"
    )
    predict.add_argument("--hop", type=real, help="seconds between windows (default: half a window)")
    add_device_option(predict)
    predict.add_argument("--batch-size", type=whole, default=8, help="windows per forward pass")
    return parser
