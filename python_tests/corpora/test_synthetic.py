"""The synthetic corpus: reproducible, whole, split by identity, and neither modality tells all."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gcsa_ext.corpora import EMOTIONS, FACE_OF, VOICE_OF, read_manifest, synthesize_clip, synthesize_corpus
from gcsa_ext.corpora.synthetic.clip import EXPRESSIONS, PROSODIES
from gcsa_ext.corpora.synthetic.face import random_face, render_face
from gcsa_ext.corpora.synthetic.voice import random_voice, render_voice
from gcsa_ext.media import FaceCropper, LogMelSpectrogram, frames_at, probe, read_audio

LOG_MEL = LogMelSpectrogram(n_mels=24)


def test_face_and_voice_together_name_every_emotion_but_neither_does_alone() -> None:
    assert set(FACE_OF) == set(VOICE_OF) == set(EMOTIONS)
    assert set(FACE_OF.values()) == set(EXPRESSIONS) and set(VOICE_OF.values()) == set(PROSODIES)
    assert len({(FACE_OF[name], VOICE_OF[name]) for name in EMOTIONS}) == len(EMOTIONS)
    assert len(set(FACE_OF.values())) == 5 and len(set(VOICE_OF.values())) == 4


def test_a_clip_is_a_real_media_file(tmp_path: Path) -> None:
    path = synthesize_clip(tmp_path / "new" / "clip.mp4", 3, "happiness", 1, seconds=1.0)
    info = probe(path)
    assert info.has_video and info.has_audio and (info.width, info.height) == (112, 112)
    assert info.duration == pytest.approx(1.0, abs=0.01) and info.frame_rate == pytest.approx(25)
    sound = read_audio(path)
    assert sound is not None and len(sound) == pytest.approx(16000, abs=1100)
    assert 0.01 < np.sqrt(np.mean(sound**2)) < 0.5
    assert [file.name for file in path.parent.iterdir()] == ["clip.mp4"]


def test_the_same_seed_gives_the_same_file_and_another_seed_another(tmp_path: Path) -> None:
    first, again, other = (
        synthesize_clip(tmp_path / f"{i}.mp4", 3, "Fear", seed, seconds=0.6).read_bytes()
        for i, seed in enumerate((5, 5, 6))
    )
    assert first == again and first != other


def test_clips_without_sound_and_without_face(tmp_path: Path) -> None:
    soundless = synthesize_clip(tmp_path / "a.mp4", 1, 0, 0, sound=False, seconds=0.4)
    assert not probe(soundless).has_audio
    faceless = synthesize_clip(tmp_path / "b.mp4", 1, 0, 0, face=False, seconds=0.4)
    assert probe(faceless).has_audio
    frames, _ = frames_at(faceless, [0.0, 0.2])
    assert all(FaceCropper(32)(frame) is None for frame in frames)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"emotion": "Joy"}, "'Joy'"),
        ({"emotion": 8}, "8"),
        ({"identity": -1}, "identity is -1"),
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"size": 97}, "size is 97"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path: Path, arguments: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        synthesize_clip(
            **{"path": tmp_path / "clip.mp4", "identity": 1, "emotion": 0, "seed": 0, **arguments}
        )
    assert not list(tmp_path.iterdir())


def test_a_corpus_is_split_by_identity_and_not_made_twice(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    manifest = synthesize_corpus(
        tmp_path, identities=3, seed=1, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(i, 24) for i in range(25)]
    clips = read_manifest(manifest)
    assert len(clips) == 24
    who = {split: {c.speaker for c in clips if c.split == split} for split in {c.split for c in clips}}
    assert all(clip.speaker == clip.path.name[:3] for clip in clips)
    assert set(who) == {"train", "validation", "test"}
    assert sum(len(names) for names in who.values()) == len(set().union(*who.values())) == 3
    for label in range(len(EMOTIONS)):
        assert sum(clip.label == label for clip in clips) == 3

    written = {clip.path: clip.path.stat().st_mtime_ns for clip in clips}
    calls.clear()
    assert synthesize_corpus(tmp_path, 3, seed=1, progress=lambda *call: calls.append(call)) == manifest
    assert calls == [(24, 24)]

    # An interrupted corpus has no record yet: only what is missing is made.
    (tmp_path / "corpus.json").unlink()
    clips[7].path.unlink()
    synthesize_corpus(tmp_path, 3, seed=1)
    changed = [p for p in written if p.stat().st_mtime_ns != written[p]]
    assert changed == [clips[7].path]
    assert json.loads((tmp_path / "corpus.json").read_text())["identities"] == 3

    with pytest.raises(ValueError, match="identities is 2"):
        synthesize_corpus(tmp_path, identities=2)


def test_the_detector_finds_the_faces() -> None:
    found = []
    for i, expression in enumerate(EXPRESSIONS.values()):
        for person in range(4):
            random = np.random.default_rng([i, person])
            film = render_face(random, random_face(random), expression, np.zeros(30, np.float32), 112, 25.0)
            cropper = FaceCropper(64)
            found += [cropper(frame) is not None for frame in film[::10]]
    assert np.mean(found) >= 0.9


def features_of_voice(name: str, seed: int) -> npt.NDArray[np.floating[Any]]:
    """Mean and spread of each mel band and of its change in time."""
    random = np.random.default_rng([EMOTIONS.index(name), seed])
    waveform, _ = render_voice(random, random_voice(random), PROSODIES[VOICE_OF[name]], 1.6, 16000)
    mel = LOG_MEL(torch.from_numpy(waveform)).numpy()
    return np.concatenate([mel.mean(1), mel.std(1), np.abs(np.diff(mel)).mean(1)])


def features_of_face(name: str, seed: int) -> npt.NDArray[np.floating[Any]]:
    """The face in a late frame, coarse and without its brightness."""
    random = np.random.default_rng([EMOTIONS.index(name), seed])
    film = render_face(
        random, random_face(random), EXPRESSIONS[FACE_OF[name]], np.zeros(24, np.float32), 112, 25.0
    )
    crop = FaceCropper(24)(film[-1])
    gray = np.zeros((24, 24)) if crop is None else crop.mean(2)
    return ((gray - gray.mean()) / (gray.std() + 1e-6)).reshape(-1)


def ridge_regression(
    x: npt.NDArray[np.floating[Any]], targets: Sequence[str], unseen: npt.NDArray[np.floating[Any]]
) -> list[str]:
    """Fit one-hot targets on standardised features, and name the class of each unseen vector."""
    classes = sorted(set(targets))
    mean, scale = x.mean(0), x.std(0) + 1e-6
    a, b = (np.pad((each - mean) / scale, ((0, 0), (0, 1)), constant_values=1.0) for each in (x, unseen))
    one_hot = np.array([[target == name for name in classes] for target in targets], float)
    weights = np.linalg.solve(a.T @ a + 30.0 * np.eye(a.shape[1]), a.T @ one_hot)
    return [classes[i] for i in (b @ weights).argmax(1)]


@pytest.mark.parametrize(
    ("features", "group_of"), [(features_of_voice, VOICE_OF), (features_of_face, FACE_OF)]
)
def test_a_linear_classifier_tells_the_groups_apart_and_no_more(
    features: Callable[[str, int], npt.NDArray[np.floating[Any]]], group_of: dict[str, str]
) -> None:
    seen = [(name, seed) for name in EMOTIONS for seed in range(16)]
    unseen = [(name, 100 + seed) for name in EMOTIONS for seed in range(10)]
    x, test = (np.stack([features(*each) for each in part]) for part in (seen, unseen))

    groups = ridge_regression(x, [group_of[name] for name, _ in seen], test)
    assert np.mean([group == group_of[name] for group, (name, _) in zip(groups, unseen, strict=True)]) > 0.8
    # Within a group of k emotions nothing is left to learn: one in k is right, by chance.
    size = {name: list(group_of.values()).count(group_of[name]) for name in EMOTIONS}
    emotions = ridge_regression(x, [name for name, _ in seen], test)
    hits = [guess == name for guess, (name, _) in zip(emotions, unseen, strict=True) if size[name] > 1]
    chance = np.mean([1 / size[name] for name, _ in unseen if size[name] > 1])
    assert np.mean(hits) < chance + 0.15
