"""Checkpoints: what is stored, files of version 0.1.0, and one clear error for each kind of damage."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from small_network import CONFIG, SETTINGS, make_model

from gcsa_ext.corpora import ABAW, EMOTIONS, RAVDESS, ClipSettings, LabelSet, label_set
from gcsa_ext.inference.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from gcsa_ext.nn import BimodalNet

# Written by gcsa-ext 0.1.0, with the seed 0 and the settings and metadata that the test expects.
OLD_CHECKPOINT = Path(__file__).with_name("checkpoint_0.1.0")

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.parametrize(
    ("classes", "expected"),
    [(EMOTIONS, ABAW), (RAVDESS, RAVDESS), (tuple("abcdefgh"), label_set("abcdefgh"))],
)
def test_the_label_set_travels_in_the_checkpoint(
    tmp_path: Path, classes: Sequence[str], expected: LabelSet
) -> None:
    save_checkpoint(tmp_path / "m", make_model(), SETTINGS, classes)
    kept = load_checkpoint(tmp_path / "m")
    assert kept.labels == expected
    assert kept.classes == expected.classes


def test_a_checkpoint_of_0_1_0_loads() -> None:
    kept = load_checkpoint(OLD_CHECKPOINT / "model")
    assert kept.labels is ABAW
    assert kept.settings == ClipSettings(frames_per_clip=2, image_size=24)
    assert kept.metadata == {"validation_macro_f1": {"fused": 0.5}, "epoch": 3}
    assert kept.model.fusion.scores.tolist() == [0.25, 0.5]
    torch.manual_seed(0)
    fresh = BimodalNet.from_config(kept.model.config())
    for name, parameter in fresh.named_parameters():
        torch.testing.assert_close(kept.model.get_parameter(name), parameter, rtol=0, atol=0)


def test_other_classes_of_0_1_0_make_a_custom_label_set(tmp_path: Path) -> None:
    shutil.copytree(OLD_CHECKPOINT, tmp_path / "old")
    edit(tmp_path / "old" / "model.json", classes=list(RAVDESS))
    labels = load_checkpoint(tmp_path / "old" / "model").labels
    assert (labels.name, labels.classes, labels.groups, labels.maps) == ("custom", RAVDESS.classes, (), {})


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
    edit(description, classes=list(RAVDESS))
    expect("beside a label set")
    edit(description, label_set={**ABAW.to_dict(), "groups": [["Neutral"]]})
    expect("exactly one group")
    edit(description, label_set=["ABAW"])
    expect("expected the keys")
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


def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    """Also where the description has the digest of the damaged file."""
    weights, description = save_checkpoint(tmp_path / "m", make_model(), SETTINGS, EMOTIONS)
    weights.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00 damaged")
    values = json.loads(description.read_text(encoding="utf-8"))
    values["weights_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    description.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(CheckpointError, match="its parts do not fit together"):
        load_checkpoint(tmp_path / "m")
