"""Training, metrics, checkpoints and plots, on a handful of synthetic clips."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gcsa_ext.corpora import EMOTIONS, ClipSettings, collate_clips, read_manifest, synthesize_corpus
from gcsa_ext.inference.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from gcsa_ext.inference.evaluation import predict_clips
from gcsa_ext.inference.metrics import score
from gcsa_ext.inference.plots import plot_confusion
from gcsa_ext.inference.report import format_scores, write_scores
from gcsa_ext.nn import BimodalNet
from gcsa_ext.training.augmentation import augment_frames, draw_frames
from gcsa_ext.training.datamodule import ClipDataModule
from gcsa_ext.training.fit import TrainingOptions, TrainingResult, make_loss, train

SETTINGS = ClipSettings(frames_per_clip=2, image_size=24, n_mels=24, faces="frame")
CONFIG = {
    "visual": {"widths": [8, 12], "depths": [1, 1]},
    "audio": {"branch_width": 4, "widths": [8, 12], "depths": [1, 1]},
    "num_classes": 8,
    "dropout": 0.1,
    "frequency_mask_param": 4,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Maps this small gain nothing from a second thread, and lose much to it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize_corpus(tmp_path_factory.mktemp("corpus"), identities=4, size=64)


def make_data(corpus: Path, seed: int = 0) -> ClipDataModule:
    return ClipDataModule(
        read_manifest(corpus), SETTINGS, corpus.parent / "prepared", batch_size=8, seed=seed
    )


def make_model() -> BimodalNet:
    torch.manual_seed(0)
    return BimodalNet.from_config(CONFIG)


def run(corpus: Path, out: Path, **options: object) -> TrainingResult:
    values = {"epochs": 2, **options}
    return train(make_model(), make_data(corpus), out / "model", TrainingOptions(**values), progress=False)  # type: ignore[arg-type]


def test_training_lowers_the_loss_and_leaves_a_checkpoint(corpus: Path, tmp_path: Path) -> None:
    # Judged on the training clips: what is kept as the best is then what learned them best.
    clips = [clip for clip in read_manifest(corpus) if clip.split == "train"]
    clips += [replace(clip, split="validation") for clip in clips]
    data = ClipDataModule(clips, SETTINGS, corpus.parent / "prepared", batch_size=8)
    model = make_model()
    loss = make_loss(data, 8, TrainingOptions())
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
    from gcsa_ext.training.module import ExpressionModule

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
    from gcsa_ext.training.module import ExpressionModule

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


def test_macro_f1_counts_absent_classes_as_zero() -> None:
    predicted = torch.tensor([0, 0, 1, 1, 2, 3])
    labels = torch.tensor([0, 1, 1, 1, 0, -1])
    result = score(predicted, labels, 4)
    assert result.class_f1 == pytest.approx((0.5, 0.8, 0.0, 0.0))
    assert result.macro_f1 == pytest.approx(1.3 / 4)
    assert result.count == 5
    assert result.confusion.tolist() == [[1, 0, 1, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert score(torch.zeros(2, 4), torch.tensor([-1, -1]), 4).macro_f1 == 0.0


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


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model = make_model().eval()
    model.fusion.set_scores([0.25, 0.5])
    written = save_checkpoint(tmp_path / "sub" / "m.safetensors", model, SETTINGS, EMOTIONS, {"note": 1})
    assert [p.name for p in written] == ["m.safetensors", "m.json"]
    for path in (tmp_path / "sub" / "m", *written):
        kept = load_checkpoint(path)
        assert kept.metadata == {"note": 1}
        assert kept.settings == SETTINGS
        assert not kept.model.training
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(kept.model.state_dict()[name], tensor, rtol=0, atol=0)


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_checkpoint_errors(tmp_path: Path) -> None:
    model = make_model()
    weights, description = save_checkpoint(tmp_path / "m", model, SETTINGS, EMOTIONS)
    original, kept_weights = description.read_text(), weights.read_bytes()

    def expect(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(tmp_path / "m")
        description.write_text(original)
        weights.write_bytes(kept_weights)

    weights.write_bytes(kept_weights[:-100])
    expect("SHA-256")
    description.write_text(original[: len(original) // 2])
    expect("JSON")
    description.write_text("[]")
    expect("not a gcsa-ext checkpoint")
    edit(description, version=99)
    expect("99")
    edit(description, classes=["a", "b"])
    expect("2 class names")
    edit(description, model={**CONFIG, "visual": {"widths": [8, 16], "depths": [1, 1]}})
    expect("do not fit together")
    edit(description, model={**CONFIG, "surprise": 1})
    expect("surprise")
    values = json.loads(original)
    del values["settings"]
    description.write_text(json.dumps(values))
    expect("lacks settings")
    description.unlink()
    expect("m.json: there is no such file")
    with pytest.raises(ValueError, match="class names"):
        save_checkpoint(tmp_path / "m", model, SETTINGS, ["a"])
    load_checkpoint(tmp_path / "m")


def test_failed_save_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    model = make_model()
    save_checkpoint(tmp_path / "m", model, SETTINGS, EMOTIONS)
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "m", model, SETTINGS, EMOTIONS, {"bad": object()})
    load_checkpoint(tmp_path / "m")
    assert len(list(tmp_path.iterdir())) == 2


def test_report(tmp_path: Path) -> None:
    result = score(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), 2)
    scores = dict.fromkeys(("fused", "visual", "audio"), result)
    table, picture = write_scores(tmp_path, "test", scores, ["yes", "no"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads(table.read_text())["fused"]["confusion"] == [[1, 1], [0, 1]]
    assert format_scores(scores, ["yes", "no"]).splitlines()[-1].split() == ["macro-F1", *["0.667"] * 3]
    with pytest.raises(ValueError, match="\\(2, 2\\)"):
        plot_confusion(tmp_path / "x.png", result.confusion, ["a", "b", "c"])
