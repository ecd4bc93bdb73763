"""gcsa-ext check: a model in a file, what of it can be fused, and the times before and after."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gcsa_ext.cli import main

SOURCE = """
import torch
from neighbour import Attention
from torch import nn

model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Attention(8), nn.Flatten(), nn.LazyLinear(4))
model(torch.zeros(2, 3, 9, 8))


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return x * self.fc(x.mean((2, 3)))[..., None, None]


class PooledAttention(Pooled):
    pass


def with_inputs():
    attention = Attention(8)
    return attention, (torch.randn(2, 8, 6, 7),)


def wrong_kind():
    return 3


number = 3


def training_only():
    return nn.Sequential(nn.Conv2d(3, 8, 1), Attention(8), nn.Conv2d(8, 3, 1), PooledAttention())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with model.py, which imports the plain attention from a file beside it."""
    helper = Path(__file__).parents[1] / "helpers" / "public_attention.py"
    text = helper.read_text(encoding="utf-8")
    (tmp_path / "neighbour.py").write_text(text + "\n\nAttention = PlainAttention\n", encoding="utf-8")
    (tmp_path / "model.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return tmp_path


@pytest.fixture
def check(folder: Path, capsys: pytest.CaptureFixture[str]) -> object:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["check", *arguments, "--seconds", "0.01"])
        return code, *capsys.readouterr()

    return run


def test_a_model_and_its_times(check) -> None:
    code, out, err = check("model.py:model", "--input", "2,3,9,8")
    assert (code, err) == (0, "")
    assert "fused  1 (PlainAttention): 8 channels, 7x7 convolutions" in out
    assert re.search(r"in evaluation of 2x3x9x8 on cpu, \d+ threads", out)
    for row in ("model", "its fused modules, forward"):
        assert re.search(rf"^{row} +[\d.]+ +[\d.]+ +[\d.]+$", out, re.M)
    error = re.search(r"difference of the results: ([\d.e+-]+) of", out)
    assert error is not None and float(error[1]) < 1e-5


def test_training_and_what_is_left(check) -> None:
    code, out, err = check("model.py:training_only", "--training", "--input", "2,3,9,8")
    assert code == 0, err
    assert "left   3 (PooledAttention): its channel gate is pooled: its linear layer fc sees one value" in out
    assert "in a training step (forward and backward pass) of 2x3x9x8" in out


def test_inputs_of_the_factory(check) -> None:
    code, out, err = check("model.py:with_inputs")
    assert code == 0, err
    assert "fused  (the model) (PlainAttention)" in out
    assert "of 2x8x6x7 on cpu" in out


def test_a_model_without_attention(check) -> None:
    assert check("model.py:Pooled") == (0, "no attention module found\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.py"], "expected MODEL.py:FACTORY or package.module:FACTORY, got 'model.py'"),
        (["missing.py:make"], "missing.py does not exist"),
        (["model.py:make"], "model.py has no 'make'"),
        (["model.py:wrong_kind"], "model.py:wrong_kind gives int, not a torch.nn.Module"),
        (["model.py:number"], "model.py:number, called without arguments, raises TypeError: 'int' object"),
        (["nowhere:make"], "nowhere is neither a file nor a module that can be imported: No module named"),
        (["model.py:model", "--input", "2,4,9,8"], "the model's step raises RuntimeError: "),
    ],
)
def test_errors_in_one_line(check, arguments: list[str], message: str) -> None:
    code, _, err = check(*arguments)
    assert code == 1
    assert err.startswith(f"gcsa-ext: {message}") and err.count("\n") == 1
