"""GAM as a layer of an Ultralytics model: swapped, trained, averaged, folded, saved, read and exported.

Ultralytics is under AGPL-3.0 and no dependency. The extra "test-ultralytics" installs it, into an environment
of its own, since its opencv-python and the opencv-python-headless of the extra "train" are the same module.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from leaving import operators_called, same_gradients
from public_attention import GroupedAttention, PlainAttention, randomize_statistics
from torch import Tensor, nn

import gcsa_ext

if importlib.util.find_spec("ultralytics") is None:
    pytest.skip("ultralytics is not installed: see the extra test-ultralytics", allow_module_level=True)

_settings = tempfile.TemporaryDirectory(prefix="ultralytics-")
os.environ["YOLO_CONFIG_DIR"] = _settings.name
os.environ["YOLO_OFFLINE"] = "true"  # no downloads
os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ["YOLO_VERBOSE"] = "false"

pytestmark = [
    pytest.mark.usefixtures("one_thread", "registered"),
    pytest.mark.filterwarnings("ignore"),  # of Ultralytics, but not of this package:
    pytest.mark.filterwarnings("error:replace_attention"),
    pytest.mark.filterwarnings("error:gcsa_ext"),
    pytest.mark.xdist_group("ultralytics"),
]


class GAM(PlainAttention):
    """GAM as a layer of a model's YAML, which gives the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, groups=1)


class GroupedGAM(GroupedAttention):
    """GAM with grouped convolutions."""


NETWORK = """
nc: 2
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, GAM, [32]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, GroupedGAM, [32]]
head:
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, 2], 1, Concat, [1]]
  - [-1, 1, Conv, [32, 3, 1]]
  - [[7, 4], 1, Detect, [nc]]
"""
ATTENTIONS = "2", "4"
"""The names of both attentions in the model's Sequential."""


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make both classes known to Ultralytics' model parser."""
    from ultralytics.nn import tasks

    # It takes names of modules from its own globals. Its random numbers are not all deterministic.
    for kind in (GAM, GroupedGAM):
        monkeypatch.setattr(tasks, kind.__name__, kind, raising=False)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    file = tmp_path / "network.yaml"
    file.write_text(NETWORK)
    return file


def detector(yaml: Path) -> Any:
    """A new detection model, with random statistics in its attentions."""
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel(str(yaml), verbose=False)
    model.args = get_cfg()
    for name in ATTENTIONS:
        randomize_statistics(model.model.get_submodule(name))
    return model


def pair(yaml: Path) -> tuple[Any, Any]:
    """A detection model in evaluation, and a fused copy."""
    plain = detector(yaml).eval()
    fused = copy.deepcopy(plain)
    assert gcsa_ext.replace_attention(fused) == 2
    return plain, fused


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def boxes(model: Any, x: Tensor) -> Tensor:
    """The detections of a model in evaluation, before non-maximum suppression."""
    with torch.no_grad():
        out = model(x)
    found: Tensor = out[0] if isinstance(out, (list, tuple)) else out
    return found


def count_operators(model: Any) -> int:
    return operators_called(model, images()).count("gcsa_inference")


def test_a_swap_keeps_what_the_parser_has_set(yaml: Path) -> None:
    plain = detector(yaml).eval()
    fused = copy.deepcopy(plain)
    modules = list(fused.modules())
    assert gcsa_ext.replace_attention(fused) == 2
    assert all(a is b for a, b in zip(fused.modules(), modules, strict=True))
    for name in ATTENTIONS:
        before, after = (model.model.get_submodule(name) for model in (plain, fused))
        assert [getattr(after, key) for key in ("f", "i", "type", "np")] == [
            getattr(before, key) for key in ("f", "i", "type", "np")
        ]
    torch.testing.assert_close(boxes(fused, images()), boxes(plain, images()), rtol=1e-4, atol=1e-3)
    assert count_operators(fused) == 2 and count_operators(plain) == 0
    assert gcsa_ext.restore_attention(fused) == 2
    assert torch.equal(boxes(fused, images()), boxes(plain, images()))


def test_training_steps(yaml: Path) -> None:
    """Loss, gradients and weights of two steps, and an average of the weights."""
    from ultralytics.utils.torch_utils import ModelEMA

    batch = {
        "img": images(),
        "batch_idx": torch.tensor([0.0, 0.0, 1.0]),
        "cls": torch.tensor([[0.0], [1.0], [1.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.4], [0.3, 0.6, 0.2, 0.3], [0.6, 0.4, 0.6, 0.5]]),
    }
    models = pair(yaml)
    optimizers = [torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9) for model in models]
    averages = [ModelEMA(model, decay=0.5, tau=1) for model in models]
    for _ in range(2):
        losses = []
        for model, optimizer, average in zip(models, optimizers, averages, strict=True):
            optimizer.zero_grad()
            loss, _ = model.train()(batch)
            loss.sum().backward()
            optimizer.step()
            average.update(model)
            losses.append(loss.detach())
        torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)
        same_gradients(*models)
    plain, fused = (average.ema for average in averages)
    torch.testing.assert_close(boxes(fused, images()), boxes(plain, images()), rtol=1e-3, atol=1e-2)
    assert count_operators(fused) == 2


def test_folding_and_half(yaml: Path) -> None:
    plain, fused = pair(yaml)
    expected = boxes(plain, images())
    fused.fuse(verbose=False)
    torch.testing.assert_close(boxes(fused, images()), expected, rtol=1e-3, atol=1e-2)
    assert count_operators(fused) == 2
    half = boxes(fused.half(), images().half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=1.0)


def test_save_and_load(yaml: Path, tmp_path: Path) -> None:
    """A file has the plain attention, which is fused again after loading."""
    from ultralytics import YOLO

    model = YOLO(str(yaml), verbose=False)
    assert gcsa_ext.replace_attention(model.model) == 2
    file = tmp_path / "model.pt"
    model.save(str(file))
    expected = boxes(model.model.float().eval(), images())
    loaded = YOLO(str(file)).model.float().eval()
    assert count_operators(loaded) == 0
    # It is saved in half precision.
    torch.testing.assert_close(boxes(loaded, images()), expected, rtol=0.02, atol=0.2)
    assert gcsa_ext.replace_attention(loaded) == 2 and count_operators(loaded) == 2


def test_export(yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx
    import onnxruntime
    from ultralytics import YOLO

    monkeypatch.chdir(tmp_path)  # where the file is written
    model = YOLO(str(yaml), verbose=False)
    expected = boxes(model.model.eval(), images(1))
    assert gcsa_ext.replace_attention(model.model) == 2
    file = model.export(format="onnx", imgsz=64, simplify=False, device="cpu", verbose=False)
    assert {node.domain for node in onnx.load(file).graph.node} == {""}
    session = onnxruntime.InferenceSession(file)
    (found,) = session.run(None, {session.get_inputs()[0].name: images(1).numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-3)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of four images, each with one box."""
    import cv2

    random = np.random.default_rng(1)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"images/{i}.png"), random.integers(0, 256, (64, 64, 3), np.uint8))
        (tmp_path / f"labels/{i}.txt").write_text(f"{i % 2} 0.5 0.5 0.{3 + i} 0.5\n")
    file = tmp_path / "data.yaml"
    file.write_text(f"path: {tmp_path}\ntrain: images\nval: images\nnames: [a, b]\n")
    return file


@pytest.fixture
def fused_classes() -> Iterator[None]:
    kinds: tuple[type[nn.Module], ...] = GAM, GroupedGAM
    for kind in kinds:
        assert gcsa_ext.replace_attention(kind) == 1
    yield
    for kind in kinds:
        assert gcsa_ext.restore_attention(kind) == 1


@pytest.mark.usefixtures("fused_classes")
def test_the_trainer_builds_fused_models(yaml: Path, data: Path, tmp_path: Path) -> None:
    """It makes a new model from the YAML, so its classes are fused; then it trains, averages and saves."""
    from ultralytics import YOLO

    model = YOLO(str(yaml), verbose=False)
    seen: list[Any] = []
    model.add_callback("on_train_start", lambda trainer: seen.append(trainer.model))
    before = copy.deepcopy(model.model.state_dict())
    model.train(
        data=str(data),
        epochs=1,
        imgsz=64,
        batch=2,
        workers=0,
        device="cpu",
        plots=False,
        amp=False,
        verbose=False,
        optimizer="SGD",
        project=str(tmp_path),
        name="run",
    )
    (trained,) = seen
    assert trained is not model.model and count_operators(trained.eval()) == 2
    name = "model.2.spatial_attention.0.weight"
    assert not torch.equal(trained.state_dict()[name], before[name])
    best = YOLO(str(tmp_path / "run/weights/best.pt")).model.float().eval()
    assert count_operators(best) == 2, "objects of a fused class are fused where they are used"
    assert torch.isfinite(boxes(best, images())).all()
