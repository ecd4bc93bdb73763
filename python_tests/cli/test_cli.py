"""The command line: every verb, exit codes, one-line errors, and what works without the extras."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gcsa_ext import __version__
from gcsa_ext.cli import main
from gcsa_ext.corpora import synthesize_corpus

NO_EXTRAS = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ImportError(f"No module named {{name!r}}")
sys.meta_path.insert(0, Refuse())
import gcsa_ext.cli
sys.exit(max(gcsa_ext.cli.main(arguments) for arguments in {runs}))
"""
EXTRAS = {"av", "cv2", "lightning", "matplotlib", "rich", "safetensors", "torchaudio", "torchmetrics"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def cache_of_the_test(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def clip_options(folder: Path) -> list[str]:
    """The options that name the corpus in the folder and its prepared clips."""
    return ["--manifest", str(folder / "corpus" / "manifest.csv"), "--cache", str(folder / "prepared")]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a checkpoint trained on it by the command line."""
    folder: Path = tmp_path_factory.mktemp("run")
    synthesize_corpus(folder / "corpus", identities=3, size=64)
    small = ["--frames", "1", "--image-size", "16", "--faces", "frame", "--epochs", "1", "--batch-size", "8"]
    assert main(["train", *clip_options(folder), "--out", str(folder / "out"), *small]) == 0
    return folder


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_module_prints_info() -> None:
    done = python("-m", "gcsa_ext")
    assert done.returncode == 0, done.stderr
    assert torch.__version__ in done.stdout


def test_info_and_help_work_without_the_extras() -> None:
    verbs = ("info", "demo", "train", "evaluate", "predict")
    runs = [["info"], ["--help"], *([verb, "--help"] for verb in verbs)]
    done = python("-c", NO_EXTRAS.format(missing=EXTRAS, runs=runs))
    assert done.returncode == 0, done.stderr


def test_missing_extra_is_named() -> None:
    runs = [["predict", "film.mp4", "--checkpoint", "model"]]
    done = python("-c", NO_EXTRAS.format(missing=EXTRAS, runs=runs))
    assert done.returncode == 1
    assert 'pip install ".[train]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_version_help_and_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert main(["train", "--help"]) == 0
    assert "seconds" in capsys.readouterr().out
    for arguments in ([], ["sing"], ["predict"], ["train", "--manifest", "x.csv", "--epochs", "0"]):
        assert main(arguments) == 2
    assert "--epochs" in capsys.readouterr().err


def test_training_leaves_checkpoint_and_scores(run_folder: Path) -> None:
    names = sorted(path.name for path in (run_folder / "out").iterdir())
    assert names == ["confusion-test.png", "model.json", "model.safetensors", "scores-test.json"]


def test_evaluate(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--checkpoint", str(run_folder / "out" / "model"), "--out", str(tmp_path)]
    assert main(["evaluate", *clip_options(run_folder), *options, "--split", "validation"]) == 0
    out = capsys.readouterr().out
    assert "macro-F1" in out
    assert "8 clips" in out
    scores = json.loads((tmp_path / "scores-validation.json").read_text())
    assert scores["fused"]["clips"] == 8


def test_train_from_a_checkpoint(run_folder: Path, tmp_path: Path) -> None:
    start = ["--start", str(run_folder / "out" / "model.json"), "--epochs", "1", "--balance", "--no-augment"]
    assert main(["train", *clip_options(run_folder), *start, "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "model.json").read_text())["settings"]["image_size"] == 16


def test_predict_goes_on_after_a_bad_file(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = sorted((run_folder / "corpus").glob("*/*.mp4"))[:2]
    empty = tmp_path / "empty.mp4"
    empty.touch()
    checkpoint = str(run_folder / "out" / "model")
    arguments = [str(videos[0]), str(empty), str(videos[1]), "--checkpoint", checkpoint, "--plot"]
    assert main(["predict", *arguments, "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert [line for line in captured.err.splitlines() if line.startswith("gcsa-ext:")] == [
        f"gcsa-ext: {empty}: the file is empty (0 bytes); expected a readable media file with a video or a "
        "sound track, such as .mp4, .mov, .mkv or .wav"
    ]
    assert captured.out.count("mostly") == 2
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == sorted(
        f"{video.stem}.emotions.{suffix}" for video in videos for suffix in ("csv", "png")
    )
    with (tmp_path / "out" / f"{videos[0].stem}.emotions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) > 30


def test_predict_json(run_folder: Path, tmp_path: Path) -> None:
    video = min((run_folder / "corpus").glob("*/*.mp4"))
    checkpoint = str(run_folder / "out" / "model")
    options = ["--format", "json", "--smoothing", "0", "--hop", "0.5", "--out", str(tmp_path)]
    assert main(["predict", str(video), "--checkpoint", checkpoint, *options]) == 0
    assert json.loads((tmp_path / f"{video.stem}.emotions.json").read_text())["video"] == str(video)


def test_errors_are_one_line(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = str(min((run_folder / "corpus").glob("*/*.mp4")))
    checkpoint = str(run_folder / "out" / "model")
    manifest = str(run_folder / "corpus" / "manifest.csv")
    for arguments, message in (
        (["predict", video, "--checkpoint", str(tmp_path / "none")], "none.safetensors"),
        (["predict", video, str(tmp_path / Path(video).name), "--checkpoint", checkpoint], "same file"),
        (["predict", video, "--checkpoint", checkpoint, "--smoothing", "-1"], "smoothing_seconds"),
        (["predict", video, "--checkpoint", checkpoint, "--device", "toaster"], "toaster"),
        (["evaluate", "--manifest", str(tmp_path / "no.csv"), "--checkpoint", checkpoint], "no.csv"),
        (["train", "--manifest", manifest, "--out", str(tmp_path), "--resume"], "resume"),
    ):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
        assert error.splitlines()[-1].startswith("gcsa-ext: ")
    assert main(["predict", video, "--checkpoint", str(tmp_path / "none"), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("gcsa_ext.cli.info.format_info", interrupted)
    assert main(["info"]) == 1
    assert capsys.readouterr().err == "gcsa-ext: interrupted\n"


def test_quick_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--quick", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    for word in (
        "macro-F1: audio",
        "time per training step",
        "confusion matrix:",
        "checkpoint:",
        "wall time",
    ):
        assert word in out
    for name in ("confusion-test.png", "unseen.emotions.csv", "unseen.emotions.png", "model.json"):
        assert (tmp_path / "out" / name).stat().st_size > 0


@pytest.mark.parametrize("verb", ["demo", "train", "evaluate", "predict"])
def test_help_states_existing_defaults(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "(default: " in printed and "None" not in printed and "False" not in printed
    assert not re.search(r"\(default[^)]*\) \(default", printed)
