"""Prediction over time: every kind of file, the arithmetic over time, constant memory, whole files."""

from __future__ import annotations

import csv
import gc
import json
import tracemalloc
import weakref
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gcsa_ext.corpora import EMOTIONS, ClipSettings, prepare_clip, synthesize_clip
from gcsa_ext.corpora.clips import Clip, collate_clips
from gcsa_ext.inference import bins, predictor
from gcsa_ext.inference.plots import Timeline
from gcsa_ext.inference.predictor import predict_video
from gcsa_ext.inference.rows import FramePrediction, Summary
from gcsa_ext.inference.tables import write_csv, write_json
from gcsa_ext.media import MediaError, MediaInfo
from gcsa_ext.nn import BimodalNet

SETTINGS = ClipSettings(frames_per_clip=4, image_size=24, n_mels=24, window_seconds=1.0)
FULL_FRAME = ClipSettings(frames_per_clip=4, image_size=24, n_mels=24, window_seconds=1.0, faces="frame")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> BimodalNet:
    torch.manual_seed(0)
    net = BimodalNet.from_config(
        {
            "visual": {"widths": [8, 12], "depths": [1, 1]},
            "audio": {"branch_width": 4, "widths": [8, 12], "depths": [1, 1]},
            "num_classes": 8,
        }
    )
    for classifier in (net.visual_classifier[-1], net.audio_classifier[-1]):
        torch.nn.init.normal_(classifier.weight, std=3.0)  # answers that differ from clip to clip
    return net.eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize_clip(tmp_path_factory.mktemp("clip") / "talk.mp4", 3, "Happiness", seed=1, seconds=3.2)


def encode_tone(path: Path, seconds: float) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        tone = (8000 * np.sin(np.arange(int(16000 * seconds)) * 0.2)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate = 16000
        for one in (frame, None):
            container.mux(stream.encode(one))
    return path


def check(rows: list[FramePrediction]) -> None:
    assert [row.frame for row in rows] == list(range(len(rows)))
    assert all(a.time < b.time for a, b in pairwise(rows))
    probabilities = np.array([row.probabilities for row in rows])
    assert probabilities.min() >= 0
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-9)
    assert [row.label for row in rows] == [EMOTIONS[k] for k in probabilities.argmax(axis=1)]


def test_every_frame_gets_an_answer(model: BimodalNet, clip: Path) -> None:
    rows = list(predict_video(clip, model, SETTINGS))
    check(rows)
    assert len(rows) == 80
    np.testing.assert_allclose([row.time for row in rows], np.arange(80) / 25, atol=1e-6)
    assert all(row.face and row.audio and row.note == "" for row in rows)


def test_no_sound(model: BimodalNet, tmp_path: Path) -> None:
    video = synthesize_clip(tmp_path / "mute.mp4", 3, "Anger", seed=1, sound=False)
    rows = list(predict_video(video, model, SETTINGS))
    check(rows)
    assert all(row.face and not row.audio and "no sound" in row.note for row in rows)


def test_no_face(model: BimodalNet, tmp_path: Path) -> None:
    video = synthesize_clip(tmp_path / "room.mp4", 3, "Anger", seed=1, face=False)
    rows = list(predict_video(video, model, SETTINGS))
    check(rows)
    assert all(row.audio and not row.face and "no face" in row.note for row in rows)


def test_neither_face_nor_sound_is_uniform(model: BimodalNet, tmp_path: Path) -> None:
    video = synthesize_clip(tmp_path / "void.mp4", 3, "Anger", seed=1, face=False, sound=False)
    rows = list(predict_video(video, model, SETTINGS))
    check(rows)
    np.testing.assert_allclose([row.probabilities for row in rows], 1 / 8, atol=1e-7)
    assert {row.note for row in rows} == {"no face and no sound: nothing to judge by"}


def test_sound_alone(model: BimodalNet, tmp_path: Path) -> None:
    rows = list(predict_video(encode_tone(tmp_path / "tone.wav", 2.5), model, SETTINGS))
    check(rows)
    assert len(rows) in (62, 63)
    assert all(row.audio and not row.face for row in rows)


@pytest.mark.parametrize("seconds", [0.04, 0.3, 1.0])
def test_a_clip_within_one_window_is_judged_as_a_clip(
    model: BimodalNet, tmp_path: Path, seconds: float
) -> None:
    video = synthesize_clip(tmp_path / "short.mp4", 3, "Fear", seed=2, seconds=seconds)
    rows = list(predict_video(video, model, FULL_FRAME, smoothing_seconds=0.0))
    check(rows)
    batch = collate_clips([prepare_clip(Clip(video), FULL_FRAME)])
    with torch.inference_mode():
        expected = model(
            batch["frames"], batch["spectrogram"], batch["frame_mask"], batch["spectrogram_mask"]
        ).probabilities[0]
    for row in rows:
        np.testing.assert_allclose(row.probabilities, expected.numpy(), atol=2e-3)


def test_windows_are_judged_as_clips_and_interpolated(model: BimodalNet, clip: Path) -> None:
    rows = list(predict_video(clip, model, FULL_FRAME, hop_seconds=0.5, smoothing_seconds=0.0))
    answers = []
    for start in (0.5, 1.0):
        batch = collate_clips([prepare_clip(Clip(clip, start=start, end=start + 1.0), FULL_FRAME)])
        with torch.inference_mode():
            answers.append(
                model(batch["frames"], batch["spectrogram"], batch["frame_mask"]).probabilities[0].numpy()
            )
    np.testing.assert_allclose(rows[25].probabilities, answers[0], atol=2e-3)
    row = rows[30]  # 1.2 s, between the centres at 1.0 and 1.5 s
    np.testing.assert_allclose(row.probabilities, 0.6 * answers[0] + 0.4 * answers[1], atol=2e-3)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batch_size_does_not_matter(model: BimodalNet, clip: Path, batch_size: int) -> None:
    expected = np.array([r.probabilities for r in predict_video(clip, model, FULL_FRAME, hop_seconds=0.25)])
    rows = predict_video(clip, model, FULL_FRAME, hop_seconds=0.25, batch_size=batch_size)
    np.testing.assert_allclose([row.probabilities for row in rows], expected, atol=1e-5)


def test_smoothing_is_a_centred_mean(model: BimodalNet, clip: Path) -> None:
    raw = list(predict_video(clip, model, FULL_FRAME, smoothing_seconds=0.0))
    smooth = list(predict_video(clip, model, FULL_FRAME, smoothing_seconds=0.5))
    times = np.array([row.time for row in raw])
    values = np.array([row.probabilities for row in raw])
    for row in smooth:
        near = np.abs(times - row.time) <= 0.25 + 1e-9
        np.testing.assert_allclose(row.probabilities, values[near].mean(axis=0), atol=1e-9)


def test_the_model_is_left_in_its_mode(model: BimodalNet, clip: Path) -> None:
    model.train()
    try:
        first = [row.probabilities for row in predict_video(clip, model, FULL_FRAME)]
        assert model.training
    finally:
        model.eval()
    assert first == [row.probabilities for row in predict_video(clip, model, FULL_FRAME)]


def long_film(seconds: float, alive: list[int]) -> Iterator[tuple[float, np.ndarray]]:
    """Frames that leave `alive` when nothing holds them any more."""
    for index in range(int(seconds * 25)):
        frame = np.full((64, 64, 3), index % 256, dtype=np.uint8)
        alive.append(index)
        weakref.finalize(frame, alive.remove, index)
        yield index / 25, frame


def test_memory_does_not_grow_with_length(model: BimodalNet, monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(seconds: float) -> int:
        alive: list[int] = []
        info = MediaInfo(Path("film"), seconds, 25.0, 64, 64, 0, True, True)
        monkeypatch.setattr(predictor, "probe", lambda path: info)
        monkeypatch.setattr(bins, "iterate_frames", lambda path: long_film(seconds, alive))
        monkeypatch.setattr(
            bins,
            "iterate_audio",
            lambda path, rate, chunk_seconds: (np.ones(rate, np.float32) for _ in range(int(seconds))),
        )
        gc.collect()
        tracemalloc.start()
        most = count = 0
        for _ in predict_video("film", model, FULL_FRAME, hop_seconds=1.0):
            count += 1
            most = max(most, len(alive))
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == seconds * 25
        assert most <= 4  # whole frames alive at a time
        return memory

    peak(20)  # first use allocates what stays
    assert peak(160) < 1.5 * peak(40)


def test_csv(model: BimodalNet, clip: Path, tmp_path: Path) -> None:
    rows = list(predict_video(clip, model, SETTINGS))
    write_csv(tmp_path / "out.csv", rows)
    with (tmp_path / "out.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == ["frame", "time", "label", *EMOTIONS, "face", "audio", "note"]
    assert len(read) == len(rows)
    assert read[7]["label"] == rows[7].label
    assert float(read[7]["time"]) == pytest.approx(0.28)
    assert [float(read[7][name]) for name in EMOTIONS] == pytest.approx(rows[7].probabilities, abs=1e-6)
    assert read[7]["face"] == "1"


def test_json(model: BimodalNet, clip: Path, tmp_path: Path) -> None:
    rows = list(predict_video(clip, model, SETTINGS))
    write_json(tmp_path / "out.json", rows, source='a "film".mp4')
    read = json.loads((tmp_path / "out.json").read_text())
    assert read["video"] == 'a "film".mp4'
    assert read["classes"] == list(EMOTIONS)
    assert len(read["frames"]) == len(rows)
    assert read["frames"][3]["probabilities"] == pytest.approx(rows[3].probabilities, abs=1e-6)
    assert set(read["frames"][3]) == set(FramePrediction._fields)
    write_json(tmp_path / "none.json", [])
    assert json.loads((tmp_path / "none.json").read_text())["frames"] == []


@pytest.mark.parametrize("write", [write_csv, write_json])
def test_an_interrupted_run_leaves_no_file(write: Any, tmp_path: Path) -> None:
    def rows() -> Iterator[FramePrediction]:
        yield FramePrediction(0, 0.0, "Neutral", (1.0, *[0.0] * 7), True, True, "")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out.x", rows())
    assert list(tmp_path.iterdir()) == []


def test_summary_and_timeline(tmp_path: Path) -> None:
    rows = [
        FramePrediction(
            i, i / 25, "Fear" if i % 3 else "Anger", (0.125,) * 8, i > 50, True, "no face" * (i <= 50)
        )
        for i in range(500)
    ]
    summary, timeline = Summary(), Timeline(limit=64)
    assert list(timeline.observe(summary.observe(rows))) == rows
    assert summary.frames == 500
    assert summary.faces == 449
    assert "mostly Fear (67 %)" in summary.describe()
    assert "no face (in 51 frames)" in summary.describe()
    assert len(timeline.rows) <= 64
    spacing = {b.frame - a.frame for a, b in pairwise(timeline.rows)}
    assert len(spacing) == 1
    assert timeline.plot(tmp_path / "t.png", EMOTIONS).read_bytes().startswith(b"\x89PNG")


def test_unreadable_files(model: BimodalNet, clip: Path, tmp_path: Path) -> None:
    empty, cut = tmp_path / "empty.mp4", tmp_path / "cut.mp4"
    empty.touch()
    cut.write_bytes(clip.read_bytes()[:2000])
    for path in (empty, cut, tmp_path / "none.mp4"):
        with pytest.raises(MediaError, match=path.name):
            predict_video(path, model, SETTINGS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hop_seconds": 0.0}, "hop_seconds"),
        ({"hop_seconds": float("nan")}, "hop_seconds"),
        ({"smoothing_seconds": -1.0}, "smoothing_seconds"),
        ({"batch_size": 0}, "batch_size"),
        ({"classes": ("a", "b")}, "2 class names"),
    ],
)
def test_bad_arguments(model: BimodalNet, clip: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict_video(clip, model, SETTINGS, **arguments)
