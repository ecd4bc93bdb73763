"""Training on a handful of synthetic clips."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_network import SETTINGS, make_model

from gcsa_ext.corpora import (
    ABAW,
    EMOTIONS,
    RAVDESS,
    LabelSet,
    collate_clips,
    label_set,
    read_manifest,
    synthesize_corpus,
)
from gcsa_ext.inference.checkpoint import load_checkpoint
from gcsa_ext.inference.evaluation import predict_clips
from gcsa_ext.nn import BimodalNet
from gcsa_ext.training.augmentation import augment_frames, draw_frames
from gcsa_ext.training.datamodule import ClipDataModule
from gcsa_ext.training.fit import (
    KeepBest,
    TrainingOptions,
    TrainingProgress,
    TrainingResult,
    make_loss,
    train,
)
from gcsa_ext.training.module import ExpressionModule
from gcsa_ext.training.progress import progress_bar

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize_corpus(tmp_path_factory.mktemp("corpus"), identities=4, size=64)


def make_data(corpus: Path, seed: int = 0) -> ClipDataModule:
    return ClipDataModule(
        read_manifest(corpus), SETTINGS, corpus.parent / "prepared", batch_size=8, seed=seed
    )


def run(corpus: Path, out: Path, **options: object) -> TrainingResult:
    values = {"epochs": 2, **options}
    return train(make_model(), make_data(corpus), out / "model", TrainingOptions(**values), progress=False)  # type: ignore[arg-type]


def test_training_lowers_the_loss_and_leaves_a_checkpoint(corpus: Path, tmp_path: Path) -> None:
    # Judged on the training clips: what is kept as the best is then what learned them best.
    clips = [clip for clip in read_manifest(corpus) if clip.split == "train"]
    clips += [replace(clip, split="validation") for clip in clips]
    data = ClipDataModule(clips, SETTINGS, corpus.parent / "prepared", batch_size=8)
    model = make_model()
    loss = make_loss(data, data.labels, TrainingOptions())
    batch = collate_clips(list(data.datasets["train"]))

    def training_loss(net: BimodalNet) -> float:
        with torch.no_grad():
            output = net.eval()(
                batch["frames"],
                batch["spectrogram"],
                batch["frame_mask"],
                batch["spectrogram_mask"],
                batch["present"],
            )
            return float(loss(output, batch["label"]))

    before = training_loss(model)
    result = train(
        model, data, tmp_path / "model", TrainingOptions(epochs=15, learning_rate=1e-2), progress=False
    )
    assert training_loss(result.model) < 0.9 * before
    assert result.steps == 30
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]

    kept = load_checkpoint(result.checkpoint)
    assert kept.classes == EMOTIONS
    assert kept.settings == SETTINGS
    assert kept.metadata["training"]["epochs"] == 15
    assert kept.metadata["validation_macro_f1"] == result.scores
    # The scores are those of the stored weights with the fusion as it was fitted.
    again = predict_clips(kept.model, data.datasets["validation"]).scores()
    for name, value in result.scores.items():
        assert again[name].macro_f1 == pytest.approx(value, abs=1e-6)
    torch.testing.assert_close(
        kept.model.fusion.scores, torch.tensor([again["visual"].macro_f1, again["audio"].macro_f1])
    )


def test_the_seed_decides(corpus: Path, tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> torch.Tensor:
        model = run(corpus, tmp_path / name, epochs=1, seed=seed).model
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    first, second, other = weights("a", 0), weights("b", 0), weights("c", 1)
    # Threads may add in another order, so not to the last bit.
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)
    assert (first - other).abs().max() > 1e-3


def test_an_interrupted_training_is_resumed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ExpressionModule.training_step

    def interrupted(self: ExpressionModule, batch: object, batch_idx: int) -> torch.Tensor:
        if self.current_epoch == 2:
            raise RuntimeError("power failure")
        return step(self, batch, batch_idx)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(ExpressionModule, "training_step", interrupted)
        with pytest.raises(RuntimeError, match="power failure"):
            run(corpus, tmp_path, epochs=3)
    assert (tmp_path / "model.resume.ckpt").is_file()
    load_checkpoint(tmp_path / "model")

    result = train(
        make_model(),
        make_data(corpus),
        tmp_path / "model",
        TrainingOptions(epochs=3),
        progress=False,
        resume=True,
    )
    assert result.steps == 6
    assert not (tmp_path / "model.resume.ckpt").exists()
    with pytest.raises(FileNotFoundError, match="resume"):
        train(make_model(), make_data(corpus), tmp_path / "model", progress=False, resume=True)


def test_an_interrupt_is_an_interrupt(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: ExpressionModule, batch: object, batch_idx: int) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(ExpressionModule, "training_step", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler


def test_stopping_within_the_first_epoch(corpus: Path, tmp_path: Path) -> None:
    result = run(corpus, tmp_path, max_steps=1)
    assert result.steps == 1
    assert set(load_checkpoint(result.checkpoint).metadata["validation_macro_f1"]) == {
        "fused",
        "visual",
        "audio",
    }


def test_max_steps_and_class_weights(corpus: Path, tmp_path: Path) -> None:
    assert run(corpus, tmp_path, max_steps=2, epochs=5, balance_classes=True).steps == 2


@pytest.mark.parametrize("labels", [ABAW, RAVDESS])
def test_the_loss_has_the_coarse_groups_of_the_label_set(corpus: Path, labels: LabelSet) -> None:
    loss = make_loss(make_data(corpus), labels, TrainingOptions(coarse_weight=0.25)).criterion
    groups = [tuple(row.nonzero().flatten().tolist()) for row in loss.members]
    assert groups == [tuple(sorted(group)) for group in labels.group_indices]
    assert loss.coarse_weight == 0.25


def test_without_coarse_groups_the_loss_is_the_fine_term_alone(corpus: Path) -> None:
    options = TrainingOptions(coarse_weight=0.5, label_smoothing=0.0)
    loss = make_loss(make_data(corpus), ("yes", "no"), options).criterion
    logits, target = torch.randn(5, 2), torch.tensor([0, 1, 1, 0, -1])
    expected = torch.nn.functional.cross_entropy(logits, target, ignore_index=-1)
    torch.testing.assert_close(loss(logits, target), expected)


@pytest.mark.parametrize(
    ("of_data", "classes", "expected"),
    [(ABAW, None, ABAW), (RAVDESS, None, RAVDESS), (ABAW, RAVDESS, RAVDESS), (ABAW, "abcdefgh", None)],
)
def test_training_takes_the_label_set_of_the_data_or_the_argument(
    corpus: Path, tmp_path: Path, of_data: LabelSet, classes: Sequence[str] | None, expected: LabelSet | None
) -> None:
    data = ClipDataModule(read_manifest(corpus), SETTINGS, corpus.parent / "prepared", 8, classes=of_data)
    options = TrainingOptions(max_steps=1)
    result = train(make_model(), data, tmp_path / "m", options, classes=classes, progress=False)
    assert load_checkpoint(result.checkpoint).labels == (expected or label_set("abcdefgh"))


def one_of_several(rank: int, values: dict[str, float], of_rank_0: dict[str, float]) -> Any:
    """A trainer as a callback sees it on one rank of several; `values` are the metrics of this rank."""
    return SimpleNamespace(
        is_global_zero=rank == 0,
        callback_metrics={name: torch.tensor(value) for name, value in values.items()},
        current_epoch=4,
        strategy=SimpleNamespace(broadcast=lambda _: of_rank_0),
        estimated_stepping_batches=10,
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_only_rank_0_writes_the_checkpoint_and_all_ranks_agree(
    corpus: Path, tmp_path: Path, rank: int
) -> None:
    best = KeepBest(tmp_path / "model.safetensors", make_data(corpus), ABAW, TrainingOptions())
    module = ExpressionModule(make_model())
    first = {"val_loss": 1.0, "val_fused": 0.5, "val_visual": 0.25, "val_audio": 0.125}
    of_this_rank = first if rank == 0 else {**first, "val_fused": 0.75}
    best.on_validation_end(one_of_several(rank, of_this_rank, first), module)
    assert best.best == (0.5, -1.0)
    assert sorted(file.name for file in tmp_path.iterdir()) == (
        ["model.json", "model.safetensors"] if rank == 0 else []
    )
    worse = {**first, "val_fused": 0.375}
    best.on_validation_end(one_of_several(rank, first, worse), module)
    assert best.best == (0.5, -1.0)
    again = KeepBest(tmp_path / "model.safetensors", make_data(corpus), ABAW, TrainingOptions())
    again.load_state_dict(best.state_dict())
    assert again.best == best.best


@pytest.mark.parametrize("rank", [0, 1])
def test_only_rank_0_shows_progress(rank: int, capsys: pytest.CaptureFixture[str]) -> None:
    bar, module = TrainingProgress(), ExpressionModule(make_model())
    trainer = one_of_several(rank, {}, {})
    bar.setup(trainer, module, "fit")
    bar.on_train_start(trainer, module)
    bar.on_train_end(trainer, module)
    assert ("training" in capsys.readouterr().err) == (rank == 0)


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK"])
def test_progress_bars_are_shown_by_rank_0_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str
) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv(variable, rank)
        with progress_bar("preparing") as report:
            report(1, 2)
        assert ("preparing" in capsys.readouterr().err) == (rank == "0")


def test_data_without_labels_is_refused(corpus: Path) -> None:
    clips = [clip for clip in read_manifest(corpus) if clip.split != "validation"]
    with pytest.raises(ValueError, match="'validation'"):
        ClipDataModule(clips, SETTINGS, corpus.parent / "prepared")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("learning_rate", float("nan")),
        ("label_smoothing", -0.1),
        ("max_steps", 0),
        ("seed", -1),
    ],
)
def test_bad_options(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        TrainingOptions(**{name: value})  # type: ignore[arg-type]


def test_augmentation_keeps_shape_range_and_clips_apart() -> None:
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (1, 1, 3, 20, 14), dtype=torch.uint8).repeat(6, 4, 1, 1, 1)
    out = augment_frames(frames)
    assert out.shape == frames.shape
    assert out.min() >= 0
    assert out.max() <= 1
    assert all(torch.equal(out[:, 0], out[:, t]) for t in range(4))
    assert not torch.equal(out[0], out[1])
    still = augment_frames(frames, shift=0.0, brightness=0.0, contrast=0.0)
    plain = frames / 255.0
    for before, after in zip(plain, still, strict=True):
        assert torch.allclose(after, before) or torch.allclose(after, before.flip(-1))


def test_frames_are_drawn_with_their_mask(corpus: Path) -> None:
    torch.manual_seed(0)
    clips = make_data(corpus).datasets["train"]
    batch = collate_clips([clips[0], clips[1]])
    batch["frames"] = torch.arange(6).view(1, 6, 1, 1, 1).repeat(2, 1, 3, 2, 2)
    batch["frame_mask"] = torch.arange(6).expand(2, 6) % 2 == 0
    seen = set()
    for _ in range(50):
        drawn = draw_frames(batch, 3)
        positions = drawn["frames"][0, :, 0, 0, 0]
        assert drawn["frames"].shape == (2, 3, 3, 2, 2)
        assert torch.equal(drawn["frame_mask"], batch["frame_mask"][:, positions])
        seen.add(tuple(positions.tolist()))
    assert len(seen) > 5
    assert batch["frames"].shape[1] == 6
    for count in (None, 6, 7):
        assert torch.equal(draw_frames(batch, count)["frames"], batch["frames"])
