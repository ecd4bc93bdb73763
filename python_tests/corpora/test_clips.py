"""From clips to tensors: clip settings, prepared clips, the cache and batches."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from gcsa_ext.corpora import Clip, ClipDataset, ClipSettings, collate_clips, prepare_clip, synthesize_clip
from gcsa_ext.corpora import dataset as dataset_module
from gcsa_ext.extra import import_extra
from gcsa_ext.media import MediaError


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("media")
    return {
        "talking": synthesize_clip(folder / "talking.mp4", 1, "Happiness", 0, seconds=1.2),
        "long": synthesize_clip(folder / "long.mp4", 2, "Fear", 0, seconds=4.0),
        "soundless": synthesize_clip(folder / "soundless.mp4", 3, "Anger", 0, sound=False, seconds=0.8),
        "faceless": synthesize_clip(folder / "faceless.mp4", 4, "Anger", 0, face=False, seconds=0.8),
        "nothing": synthesize_clip(
            folder / "nothing.mp4", 4, "Anger", 0, sound=False, face=False, seconds=0.4
        ),
        "voice": write_voice(folder / "voice.wav"),
        "muted": write_voice(folder / "muted.wav", loudness=0.0),
    }


def write_voice(path: Path, loudness: float = 0.3, seconds: float = 0.5) -> Path:
    samples = loudness * np.sin(2 * np.pi * 300 * np.arange(round(16000 * seconds)) / 16000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_settings_survive_json() -> None:
    settings = ClipSettings(frames_per_clip=4, faces="frame")
    assert ClipSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert ClipSettings.from_dict({}) == ClipSettings()
    with pytest.raises(ValueError, match=r"frame_count.*expected.*frames_per_clip"):
        ClipSettings.from_dict({"frame_count": 3})
    with pytest.raises(ValueError, match="n_mels is 0"):
        ClipSettings(n_mels=0)
    with pytest.raises(ValueError, match="image_size is '64'"):
        ClipSettings.from_dict({"image_size": "64"})
    with pytest.raises(ValueError, match="window_seconds is nan"):
        ClipSettings(window_seconds=float("nan"))
    with pytest.raises(ValueError, match="'both'"):
        ClipSettings.from_dict({"faces": "both"})


def test_a_talking_face_fills_every_tensor(media: dict[str, Path]) -> None:
    sample = prepare_clip(Clip(media["talking"], 4, "train"), ClipSettings())
    assert sample["frames"].shape == (8, 3, 64, 64) and sample["frames"].dtype == torch.uint8
    assert sample["frame_mask"].shape == (8,) and sample["frame_mask"].float().mean() >= 0.75
    assert sample["spectrogram"].shape[:2] == (1, 64)
    assert sample["spectrogram"].shape[2] == pytest.approx(121, abs=2)
    assert sample["spectrogram_mask"].all()
    assert sample["present"].tolist() == [True, True]
    assert sample["label"].item() == 4 and sample["label"].dtype == torch.int64


@pytest.mark.parametrize(
    ("name", "present"),
    [
        ("soundless", [True, False]),
        ("faceless", [False, True]),
        ("nothing", [False, False]),
        ("voice", [False, True]),
        ("muted", [False, False]),
    ],
)
def test_a_missing_modality_is_marked_and_zero(
    media: dict[str, Path], name: str, present: list[bool]
) -> None:
    sample = prepare_clip(Clip(media[name]), ClipSettings(frames_per_clip=4))
    assert sample["present"].tolist() == present
    assert sample["frame_mask"].any().item() == present[0]
    assert sample["spectrogram_mask"].any().item() == present[1]
    if not present[0]:
        assert not sample["frames"].any()
    if not present[1]:
        assert sample["spectrogram"].shape == (1, 64, 1) and not sample["spectrogram"].any()
        assert sample["spectrogram_mask"].shape == (1,)


def test_start_end_and_the_longest_window(media: dict[str, Path]) -> None:
    settings = ClipSettings(window_seconds=1.0)
    middle = prepare_clip(Clip(media["long"]), settings)
    the_same = prepare_clip(Clip(media["long"], start=1.5, end=2.5), settings)
    other = prepare_clip(Clip(media["long"], start=0.5, end=1.2), settings)
    assert middle["spectrogram"].shape[2] == 101 and other["spectrogram"].shape[2] == 71
    torch.testing.assert_close(middle["spectrogram"], the_same["spectrogram"], atol=0.1, rtol=0)
    assert torch.equal(middle["frames"], the_same["frames"])
    beyond = prepare_clip(Clip(media["long"], start=3.5, end=99.0), settings)
    assert beyond["spectrogram"].shape[2] == pytest.approx(51, abs=4)
    with pytest.raises(MediaError, match=r"starts at 9.0 s.*expected"):
        prepare_clip(Clip(media["long"], start=9.0), settings)


def test_the_cache_is_hit_until_the_file_or_a_setting_changes(
    media: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[Path] = []

    def counting(clip: Clip, settings: ClipSettings) -> object:
        prepared.append(clip.path)
        return prepare_clip(clip, settings)

    monkeypatch.setattr(dataset_module, "prepare_clip", counting)
    copy = tmp_path / "clip.mp4"
    copy.write_bytes(media["soundless"].read_bytes())
    cache, settings = tmp_path / "cache", ClipSettings(frames_per_clip=2)

    first = ClipDataset([Clip(copy, 1)], settings, cache)[0]
    again = ClipDataset([Clip(copy, 5)], settings, cache)[0]
    assert len(prepared) == 1
    assert again["label"].item() == 5, "labels come from the clip, not from the cache"
    for key in ("frames", "frame_mask", "spectrogram", "spectrogram_mask", "present"):
        assert torch.equal(first[key], again[key]) and first[key].dtype == again[key].dtype

    ClipDataset([Clip(copy)], ClipSettings(frames_per_clip=3), cache)[0]
    ClipDataset([Clip(copy, start=0.1)], settings, cache)[0]
    assert len(prepared) == 3
    copy.write_bytes(media["talking"].read_bytes())
    assert ClipDataset([Clip(copy)], settings, cache)[0]["present"].all()
    assert len(prepared) == 4
    assert all(file.suffix == ".safetensors" and file.name[0] != "." for file in cache.iterdir())


def test_prepare_fills_the_cache_and_reports_progress(media: dict[str, Path], tmp_path: Path) -> None:
    clips = [Clip(media[name]) for name in ("talking", "soundless", "faceless", "voice")]
    dataset = ClipDataset(clips, ClipSettings(frames_per_clip=2), tmp_path / "cache")
    threads = torch.get_num_threads()
    calls: list[tuple[int, int]] = []
    for _ in range(2):
        dataset.prepare(lambda done, total: calls.append((done, total)), workers=2)
    assert calls == 2 * [(i, 4) for i in range(5)]
    assert len(list((tmp_path / "cache").iterdir())) == 4
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("keep_threads")
def test_one_cache_may_be_prepared_several_times_at_once(media: dict[str, Path], tmp_path: Path) -> None:
    clips, settings = [Clip(media["talking"]), Clip(media["voice"])], ClipSettings(frames_per_clip=2)
    datasets = [ClipDataset(clips, settings, tmp_path / "cache") for _ in range(3)]
    with ThreadPoolExecutor(max_workers=3) as pool:
        list(pool.map(ClipDataset.prepare, datasets))
    assert {file.name for file in (tmp_path / "cache").iterdir()} == {
        file.name for index in range(2) if (file := datasets[0].cache_file(index)) is not None
    }
    torch.testing.assert_close(datasets[0][0], ClipDataset(clips, settings)[0])


def test_prepare_names_the_file_that_fails(media: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"")
    for bad in ("bad.mp4", "missing.mp4"):
        dataset = ClipDataset([Clip(tmp_path / bad), Clip(media["voice"])], cache_folder=tmp_path / "cache")
        with pytest.raises(MediaError, match=bad):
            dataset.prepare()
    with pytest.raises(ValueError, match="cache_folder is None"):
        ClipDataset([Clip(media["voice"])]).prepare()


# Forking with threads alive is what this test is about; Python 3.12 and later warn of it.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_loading_with_workers_after_the_parent_has_decoded(
    media: dict[str, Path], tmp_path: Path, context: str
) -> None:
    clips = [Clip(media[name], i) for i, name in enumerate(("talking", "soundless", "faceless", "voice"))]
    dataset = ClipDataset(clips, ClipSettings(frames_per_clip=2), tmp_path / "cache")
    expected = collate_clips([ClipDataset(clips, ClipSettings(frames_per_clip=2))[i] for i in range(4)])
    loader = DataLoader(
        dataset,
        batch_size=4,
        num_workers=1,
        collate_fn=collate_clips,
        multiprocessing_context=context,
        timeout=120,
    )
    (batch,) = list(loader)
    for key, tensor in expected.items():
        torch.testing.assert_close(batch[key], tensor)


def test_collating_pads_spectrograms_and_marks_it(media: dict[str, Path]) -> None:
    settings = ClipSettings(frames_per_clip=2, n_mels=16)
    samples = [prepare_clip(Clip(media[name], 1), settings) for name in ("talking", "voice", "soundless")]
    batch = collate_clips(samples)
    lengths = [sample["spectrogram"].shape[-1] for sample in samples]
    assert batch["frames"].shape == (3, 2, 3, 64, 64) and batch["frames"].dtype == torch.uint8
    assert batch["frame_mask"].shape == (3, 2)
    assert batch["spectrogram"].shape == (3, 1, 16, max(lengths))
    assert batch["spectrogram_mask"].sum(1).tolist() == [lengths[0], lengths[1], 0]
    assert batch["present"].tolist() == [[True, True], [False, True], [True, False]]
    assert batch["label"].tolist() == [1, 1, 1]
    assert not batch["spectrogram"][1, :, :, lengths[1] :].any()
    assert torch.equal(batch["spectrogram"][1, :, :, : lengths[1]], samples[1]["spectrogram"])


def test_collating_refuses_nothing_and_a_mixture(media: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="empty"):
        collate_clips([])
    mixture = [prepare_clip(Clip(media["voice"]), ClipSettings(n_mels=n)) for n in (16, 32)]
    with pytest.raises(ValueError, match="same settings"):
        collate_clips(mixture)


def test_a_missing_package_names_the_command_that_installs_it() -> None:
    with pytest.raises(ImportError, match=r'no_such_package.*pip install "\.\[train\]"'):
        import_extra("no_such_package.part")
