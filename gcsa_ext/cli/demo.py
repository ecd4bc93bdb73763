"""The verb ``demo``: make synthetic clips, train on them, evaluate, predict, and print the results."""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import gcsa_ext
from gcsa_ext.cli.options import cache_folder
from gcsa_ext.nn import BimodalNet

if TYPE_CHECKING:
    from gcsa_ext.inference.metrics import Scores
    from gcsa_ext.inference.rows import Summary
    from gcsa_ext.training.datamodule import ClipDataModule
    from gcsa_ext.training.fit import TrainingOptions

SUMMARY = "make talking faces, train on them, evaluate and predict"
DETAILS = (
    "Writes synthetic clips to a cache folder, trains the small network on them (a minute on two CPU "
    "cores), scores it on people it has not seen, and judges one more clip frame by frame."
)

UNSEEN_IDENTITY = 2**31
"""The speaker of the clip to predict. The corpus draws its speakers below this number."""
UNSEEN_EMOTION = "Surprise"
UNSEEN_SECONDS = 6.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``demo``."""
    parser.add_argument("--out", type=Path, default=Path("gcsa-ext-demo"), help="folder for the results")
    parser.add_argument(
        "--cache", type=Path, help="folder for the clips (default: in the user's cache folder)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument(
        "--quick", action="store_true", help="few clips and steps: shows that all runs, not how well it does"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; returns the exit code."""
    run_demo(arguments.out, arguments.cache or cache_folder("demo"), arguments.seed, arguments.quick)
    return 0


@dataclass
class DemoResult:
    """Scores, times and files of the demo.

    Attributes:
        scores: of "fused", "visual" and "audio" on the test split, people not seen in training.
        step_seconds: median time of one training step with "fused" and with "reference" operators, in s.
        phase_seconds: wall time of each phase in s.
        files: the written files, each under what it is.
    """

    scores: dict[str, Scores] = field(default_factory=dict)
    step_seconds: dict[str, float] = field(default_factory=dict)
    phase_seconds: dict[str, float] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)


def run_demo(out: str | Path, cache: str | Path, seed: int = 0, quick: bool = False) -> DemoResult:
    """Run the demo, with progress bars on standard error and results on standard output.

    Args:
        out: folder for the results.
        cache: folder for the clips and what is prepared from them; a second run finds them there.
        seed: of the training; the clips are always the same.
        quick: a small corpus and few steps, which show that everything runs, not how well it does.

    Returns:
        The scores, times and files that were printed.
    """
    from gcsa_ext.training.fit import TrainingOptions, train

    out, cache = Path(out), Path(cache)
    identities, epochs, rounds = (6, 1, 2) if quick else (84, 12, 7)
    options = TrainingOptions(epochs=epochs, frames_per_step=3, seed=seed)
    result = DemoResult()

    data = _make_clips(result, cache, identities, seed)
    torch.manual_seed(seed)
    model = BimodalNet.from_preset("small")
    with _phase(result, "timing a step") as report:
        result.step_seconds = time_steps(model, data, options, rounds, report)
    with _timed(result, "training"):
        result.files["checkpoint"] = train(model, data, out / "model", options).checkpoint
    _evaluate(result, model, data, out)
    summary = _predict(result, model, data, out)
    _print_result(result, data, summary, quick)
    return result


def time_steps(
    model: BimodalNet,
    data: ClipDataModule,
    options: TrainingOptions,
    rounds: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Median time of one training step on one batch, with the fused and with the plain PyTorch operators.

    The two take turns, so that other load on the machine slows both. `model` itself is not trained.

    Returns:
        Seconds, under "fused" and "reference".
    """
    from gcsa_ext.corpora import collate_clips
    from gcsa_ext.inference.evaluation import run_batch
    from gcsa_ext.training.augmentation import augment_frames, draw_frames
    from gcsa_ext.training.fit import make_loss

    clips = data.datasets["train"]
    batch = collate_clips([clips[index] for index in range(min(data.batch_size, len(clips)))])
    contexts: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "fused": nullcontext,
        "reference": lambda: gcsa_ext.use_backend("reference"),
    }
    model = copy.deepcopy(model).train()
    loss = make_loss(data, data.labels, options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    times: dict[str, list[float]] = {name: [] for name in contexts}
    with torch.random.fork_rng():
        for done in range(rounds + 1):
            progress(done, rounds + 1)
            for name, context in contexts.items():
                began = time.perf_counter()
                with context():
                    augmented = draw_frames(batch, options.frames_per_step)
                    augmented["frames"] = augment_frames(augmented["frames"])
                    optimizer.zero_grad()
                    loss(run_batch(model, augmented), batch["label"]).backward()
                    optimizer.step()
                times[name].append(time.perf_counter() - began)
    # The first round warms up.
    return {name: statistics.median(values[1:]) for name, values in times.items()}


@contextmanager
def _timed(result: DemoResult, phase: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    result.phase_seconds[phase] = time.perf_counter() - began


@contextmanager
def _phase(result: DemoResult, name: str) -> Iterator[Callable[[int, int], None]]:
    """Time a phase and show its progress; yields ``report(done, total)``."""
    from gcsa_ext.training.progress import progress_bar

    with _timed(result, name), progress_bar(name) as report:
        yield report


def _make_clips(result: DemoResult, cache: Path, identities: int, seed: int) -> ClipDataModule:
    from gcsa_ext.corpora import ClipSettings, read_manifest, synthesize_corpus
    from gcsa_ext.training.datamodule import ClipDataModule

    with _phase(result, "making the clips") as report:
        manifest = synthesize_corpus(cache / f"corpus-{identities}", identities, progress=report)
    data = ClipDataModule(read_manifest(manifest), ClipSettings(), cache / "prepared", seed=seed)
    with _phase(result, "preparing them") as report:
        data.prepare(report)
    return data


def _evaluate(result: DemoResult, model: BimodalNet, data: ClipDataModule, out: Path) -> None:
    from gcsa_ext.corpora import EMOTIONS
    from gcsa_ext.inference.evaluation import predict_clips
    from gcsa_ext.inference.report import write_scores

    with _phase(result, "evaluating") as report:
        result.scores = predict_clips(model, data.datasets["test"], progress=report).scores()
        table, confusion = write_scores(out, "test", result.scores, EMOTIONS)
    result.files["scores"] = table
    result.files["confusion matrix"] = confusion


def _predict(result: DemoResult, model: BimodalNet, data: ClipDataModule, out: Path) -> Summary:
    """Predict a clip of a person who is in none of the splits."""
    from gcsa_ext.corpora import EMOTIONS, synthesize_clip
    from gcsa_ext.inference.plots import Timeline
    from gcsa_ext.inference.predictor import predict_video
    from gcsa_ext.inference.rows import Summary
    from gcsa_ext.inference.tables import write_csv

    with _phase(result, "predicting"):
        video = synthesize_clip(
            out / "unseen.mp4", UNSEEN_IDENTITY, UNSEEN_EMOTION, seed=0, seconds=UNSEEN_SECONDS
        )
        summary, timeline = Summary(), Timeline()
        rows = timeline.observe(summary.observe(predict_video(video, model, data.settings)))
        table = out / "unseen.emotions.csv"
        write_csv(table, rows)
        title = f"a person not seen before: {UNSEEN_EMOTION}"
        picture = timeline.plot(table.with_suffix(".png"), EMOTIONS, title)
    result.files["unseen clip"] = video
    result.files["its timeline"] = table
    result.files["its timeline, drawn"] = picture
    return summary


def _print_result(result: DemoResult, data: ClipDataModule, summary: Summary, quick: bool) -> None:
    from gcsa_ext.corpora import EMOTIONS
    from gcsa_ext.inference.report import format_scores

    scores, steps = result.scores, result.step_seconds
    counts = ", ".join(f"{len(dataset)} {split}" for split, dataset in data.datasets.items())
    print(f"clips: {counts}; no person is in two splits")
    print("F1 on the test clips:")
    print(format_scores(scores, EMOTIONS))
    print(
        f"macro-F1: audio {scores['audio'].macro_f1:.3f}, face {scores['visual'].macro_f1:.3f}, "
        f"fused {scores['fused'].macro_f1:.3f}"
    )
    if quick:
        print("(--quick: too few clips and steps for the scores to mean anything)")
    ratio = steps["reference"] / steps["fused"]
    print(
        f"time per training step, median: fused {1000 * steps['fused']:.0f} ms, plain PyTorch "
        f"{1000 * steps['reference']:.0f} ms, ratio {ratio:.2f}"
    )
    reason = gcsa_ext.info()["backends"].get("cpu", {}).get("cpu")
    if reason is not None:
        print(f"(the compiled operators cannot run, plain PyTorch computed both: {reason})")
    print(f"a clip of {UNSEEN_EMOTION}, of a person not seen before: {summary.describe()}")
    for what, file in result.files.items():
        print(f"{what}: {file}")
    phases = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result.phase_seconds.items())
    print(f"wall time: {phases}; {sum(result.phase_seconds.values()):.0f} s in all")
