"""The whole path on synthetic clips: make them, train, evaluate, predict, and say how it went."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

import gcsa_ext
from gcsa_ext.corpora import (
    EMOTIONS,
    ClipSettings,
    collate_clips,
    read_manifest,
    synthesize_clip,
    synthesize_corpus,
)
from gcsa_ext.inference.evaluation import predict_clips, run_batch
from gcsa_ext.inference.metrics import Scores
from gcsa_ext.inference.plots import Timeline
from gcsa_ext.inference.predictor import predict_video
from gcsa_ext.inference.report import format_scores, write_scores
from gcsa_ext.inference.rows import Summary
from gcsa_ext.inference.tables import write_csv
from gcsa_ext.nn import BimodalNet
from gcsa_ext.training.augmentation import augment_frames, draw_frames
from gcsa_ext.training.datamodule import ClipDataModule
from gcsa_ext.training.fit import TrainingOptions, make_loss, train
from gcsa_ext.training.progress import progress_bar

# The corpus draws its speakers below this number, so this one is in none of its splits.
UNSEEN_IDENTITY = 2**31
UNSEEN_EMOTION = "Surprise"
UNSEEN_SECONDS = 6.0


@dataclass
class DemoResult:
    """What the demo found.

    Attributes:
        scores: of "fused", "visual" and "audio" on the test split, people not seen in training.
        step_seconds: median time of one training step with "fused" and with "reference" operators, in s.
        phase_seconds: wall time of each phase in s.
        files: what was written, by what it is.
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
        Scores, times and files, all of which have been printed, too.
    """
    out, cache = Path(out), Path(cache)
    result = DemoResult()
    phases = result.phase_seconds
    identities, epochs, rounds = (6, 1, 2) if quick else (84, 12, 7)

    with _timed(phases, "making the clips"), progress_bar("making the clips") as report:
        manifest = synthesize_corpus(cache / f"corpus-{identities}", identities, progress=report)
    data = ClipDataModule(read_manifest(manifest), ClipSettings(), cache / "prepared", seed=seed)
    with _timed(phases, "preparing them"), progress_bar("preparing them") as report:
        data.prepare(report)

    torch.manual_seed(seed)
    model = BimodalNet.from_preset("small")
    options = TrainingOptions(epochs=epochs, frames_per_step=3, seed=seed)
    with _timed(phases, "timing a step"), progress_bar("timing a step") as report:
        result.step_seconds = time_steps(model, data, options, rounds, report)
    with _timed(phases, "training"):
        trained = train(model, data, out / "model", options)
    result.files["checkpoint"] = trained.checkpoint

    with _timed(phases, "evaluating"):
        with progress_bar("evaluating") as report:
            result.scores = predict_clips(model, data.datasets["test"], progress=report).scores()
        result.files["scores"], result.files["confusion matrix"] = write_scores(
            out, "test", result.scores, EMOTIONS
        )

    with _timed(phases, "predicting"), progress_bar("predicting"):
        video = synthesize_clip(
            out / "unseen.mp4", UNSEEN_IDENTITY, UNSEEN_EMOTION, seed=0, seconds=UNSEEN_SECONDS
        )
        summary, timeline = Summary(), Timeline()
        rows = timeline.observe(summary.observe(predict_video(video, model, data.settings)))
        csv_file = out / "unseen.emotions.csv"
        write_csv(csv_file, rows)
        title = f"a person not seen before: {UNSEEN_EMOTION}"
        result.files["unseen clip"] = video
        result.files["its timeline"] = csv_file
        result.files["its timeline, drawn"] = timeline.plot(csv_file.with_suffix(".png"), EMOTIONS, title)

    _print(result, data, summary, quick)
    return result


def time_steps(
    model: BimodalNet,
    data: ClipDataModule,
    options: TrainingOptions,
    rounds: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Median time of one training step on one batch, with the fused and with the plain PyTorch operators.

    The two take turns, so that whatever else the machine does hits both. `model` itself is not trained.

    Returns:
        Seconds, under "fused" and "reference".
    """
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
def _timed(phases: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    phases[name] = time.perf_counter() - began


def _print(result: DemoResult, data: ClipDataModule, summary: Summary, quick: bool) -> None:
    scores, steps = result.scores, result.step_seconds
    counts = {split: len(dataset) for split, dataset in data.datasets.items()}
    listed = ", ".join(f"{count} {split}" for split, count in counts.items())
    print(f"clips: {listed}; no person is in two splits")
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
