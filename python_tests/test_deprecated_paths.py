"""Import paths of version 0.1.0: each gives the object of the new path, with one warning."""

from __future__ import annotations

import importlib
import re
import warnings

import pytest

from gcsa_ext.deprecated import MOVED

# The public names that version 0.1.0 had at each path.
NAMES = {
    "gcsa_ext.data": """
        EMOTIONS FACE_OF IGNORE_INDEX SPLITS VOICE_OF Clip ClipBatch ClipDataset ClipSample ClipSettings
        FaceCropper LogMelSpectrogram ManifestError MediaError MediaInfo collate_clips equal_interval_times
        frames_at is_audible iterate_audio iterate_frames iterate_frames_at make_sample prepare_clip probe
        read_audio read_manifest synthesize_clip synthesize_corpus write_manifest""",
    "gcsa_ext.data.atomic": "whole_file",
    "gcsa_ext.data.clips": """
        ClipBatch ClipDataset ClipSample ClipSettings collate_clips is_audible make_sample prepare_clip""",
    "gcsa_ext.data.emotions": "EMOTIONS IGNORE_INDEX",
    "gcsa_ext.data.extra": "import_extra",
    "gcsa_ext.data.faces": "Box FaceCropper FaceMode",
    "gcsa_ext.data.manifest": "SPLITS Clip ManifestError read_manifest write_manifest",
    "gcsa_ext.data.spectrogram": "LogMelSpectrogram",
    "gcsa_ext.data.synthetic": "EXPRESSIONS FACE_OF PROSODIES VOICE_OF synthesize_clip synthesize_corpus",
    "gcsa_ext.data.synthetic_face": "Expression Face random_face render_empty_room render_face",
    "gcsa_ext.data.synthetic_voice": "Prosody Voice random_voice render_voice",
    "gcsa_ext.data.video": """
        MediaError MediaInfo equal_interval_times frames_at iterate_audio iterate_frames iterate_frames_at
        probe read_audio""",
    "gcsa_ext.prediction": """
        AUDIO_ROWS_PER_SECOND NOTES FramePrediction Summary predict_video write_csv write_json""",
    "gcsa_ext.training.checkpoint": """
        FORMAT FORMAT_VERSION Checkpoint CheckpointError checkpoint_files load_checkpoint save_checkpoint""",
    "gcsa_ext.training.demo": "DemoResult run_demo time_steps UNSEEN_EMOTION UNSEEN_IDENTITY UNSEEN_SECONDS",
    "gcsa_ext.training.evaluation": "Predictions predict_clips run_batch",
    "gcsa_ext.training.metrics": "Scores score",
    "gcsa_ext.training.plots": "Timeline plot_confusion",
    "gcsa_ext.training.report": "COLUMNS format_scores write_scores",
}


def run(source: str) -> tuple[dict[str, object], list[warnings.WarningMessage]]:
    """Run the source as the file user.py; returns its names and the warnings."""
    names: dict[str, object] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(source, "user.py", "exec"), names)
    return names, caught


def check_warning(warning: warnings.WarningMessage, old: str, name: str, line: int) -> object:
    """Assert what the warning says and the line it points at; returns the object at the new path."""
    assert issubclass(warning.category, DeprecationWarning)
    assert (warning.filename, warning.lineno) == ("user.py", line)
    match = re.fullmatch(
        rf"{old}\.{name} is now ([\w.]+)\.{name}; the old path will be removed in gcsa_ext 0\.3\.0",
        str(warning.message),
    )
    assert match is not None, warning.message
    assert match[1] not in MOVED
    return getattr(importlib.import_module(match[1]), name)


def test_every_old_module_is_listed() -> None:
    assert set(NAMES) == set(MOVED)


@pytest.mark.parametrize(("old", "name"), [(old, name) for old in NAMES for name in NAMES[old].split()])
def test_old_path_gives_the_same_object(old: str, name: str) -> None:
    names, (warning,) = run(f"\nfrom {old} import {name}\n")
    assert check_warning(warning, old, name, line=2) is names[name]


def test_every_use_of_an_attribute_warns() -> None:
    names, caught = run(
        "import gcsa_ext.data.clips, gcsa_ext.training.metrics\n"
        "one = gcsa_ext.data.clips.ClipSettings\n"
        "two = gcsa_ext.data.clips.ClipSettings\n"
        "from gcsa_ext.training import metrics\n"
        "three = metrics.Scores\n"
    )
    first, second, third = caught
    assert check_warning(first, "gcsa_ext.data.clips", "ClipSettings", line=2) is names["one"]
    assert check_warning(second, "gcsa_ext.data.clips", "ClipSettings", line=3) is names["two"]
    assert check_warning(third, "gcsa_ext.training.metrics", "Scores", line=5) is names["three"]


def test_submodules_of_an_old_package_are_its_attributes() -> None:
    names, caught = run("from gcsa_ext import data\nvideo, manifest = data.video, data.manifest\n")
    assert caught == []
    assert names["video"] is importlib.import_module("gcsa_ext.data.video")
    assert names["manifest"] is importlib.import_module("gcsa_ext.data.manifest")


@pytest.mark.parametrize("old", ["gcsa_ext.data", "gcsa_ext.training.plots"])
def test_import_of_everything(old: str) -> None:
    names, caught = run(f"from {old} import *")
    expected = set(NAMES[old].split())
    assert expected <= set(names)
    assert expected <= {str(warning.message).partition(" ")[0].rpartition(".")[2] for warning in caught}


def test_what_never_existed_is_missing() -> None:
    with pytest.raises(ImportError, match=r"cannot import name 'Film' from 'gcsa_ext\.data'"):
        run("from gcsa_ext.data import Film")
    with pytest.raises(ModuleNotFoundError, match=r"gcsa_ext\.data\.film"):
        run("import gcsa_ext.data.film")
    with pytest.raises(
        AttributeError, match=r"module 'gcsa_ext\.prediction' has no attribute 'predict_film'"
    ):
        run("import gcsa_ext.prediction\ngcsa_ext.prediction.predict_film")
