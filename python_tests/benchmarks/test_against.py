"""benchmarks/against.py: another revision's package under another name, and the budget."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import against
import pytest
import torch
from harness.operators import gcsa_case

import gcsa_ext


def judged(
    shape: tuple[int, ...], training: bool, zen5: bool = True, **times: float
) -> list[tuple[Any, ...]]:
    found = against.judge("it", times, shape, training, zen5)
    return [(verdict.found, verdict.comparison, verdict.limit, verdict.met) for verdict in found]


def test_the_budget_of_large_maps() -> None:
    times = {"gcsa_ext": 1.0, "gcsa_ext_peer": 0.8, "eager": 5.0, "eager channels_last": 4.0}
    assert judged((8, 64, 56, 56), False, **times) == [
        (1.25, "at most", 1.12, False),
        (4.0, "at least", 4.3, False),
    ]
    assert judged((8, 64, 56, 56), True, **{**times, "gcsa_ext_peer": 1.0}) == [
        (1.0, "at most", 1.12, True),
        (4.0, "at least", 3.8, True),
    ]


def test_the_budget_of_one_small_map_is_beside_eager() -> None:
    times = {"gcsa_ext": 1.0, "gcsa_ext_peer": 0.1, "eager": 2.0, "eager channels_last": 1.1}
    assert judged((1, 64, 7, 7), False, **times) == [(2.0, "at least", 2.3, False)]
    assert judged((1, 64, 7, 7), True, **times) == [(2.0, "at least", 1.5, True)]


def test_limits_of_a_zen5_are_not_judged_elsewhere() -> None:
    times = {"gcsa_ext": 1.0, "gcsa_ext_peer": 1.0, "eager": 1.5}
    assert judged((8, 64, 56, 56), False, False, **times) == [
        (1.0, "at most", 1.12, True),
        (None, "at least", 4.3, None),
    ]
    _, verdict = against.judge("it", times, (8, 64, 56, 56), True, False)
    assert verdict.note.startswith("the limit is for a Zen 5; here ")
    assert judged((1, 64, 7, 7), True, False, **times) == [(1.5, "at least", 1.5, True)]


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """With one commit of a package of that name."""
    root = tmp_path / "repository"
    (root / "gcsa_ext" / "nn").mkdir(parents=True)
    (root / "gcsa_ext" / "__init__.py").write_text('import gcsa_ext.nn\nVARIABLE = "GCSA_EXT_BACKEND"\n')
    (root / "gcsa_ext" / "nn" / "__init__.py").write_text("from gcsa_ext import VARIABLE\n")
    (root / "pyproject.toml").write_text('name = "gcsa-ext"\npackages = ["gcsa_ext"]\n')
    (root / "picture.png").write_bytes(b"\x89gcsa_ext\xff")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "one"],
    ):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    monkeypatch.setattr(against, "ROOT", root)
    return root


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="revisions are exported by git")


@needs_git
def test_the_package_is_renamed_and_variables_are_not(repository: Path, tmp_path: Path) -> None:
    against.export("HEAD", tmp_path / "export")
    assert not (tmp_path / "export" / "gcsa_ext").exists()
    package = tmp_path / "export" / "gcsa_ext_peer"
    assert (package / "__init__.py").read_text() == 'import gcsa_ext_peer.nn\nVARIABLE = "GCSA_EXT_BACKEND"\n'
    assert (package / "nn" / "__init__.py").read_text() == "from gcsa_ext_peer import VARIABLE\n"
    project = (tmp_path / "export" / "pyproject.toml").read_text()
    assert project == 'name = "gcsa-ext-peer"\npackages = ["gcsa_ext_peer"]\n'
    assert (tmp_path / "export" / "picture.png").read_bytes() == b"\x89gcsa_ext\xff"


@needs_git
def test_a_revision_is_built_once(monkeypatch: pytest.MonkeyPatch, repository: Path, tmp_path: Path) -> None:
    built: list[Path] = []

    def build(source: Path, folder: Path, *_: str) -> str | None:
        assert (source / "gcsa_ext_peer").is_dir()
        built.append(folder)
        folder.mkdir(parents=True)
        return "building failed: no compiler" if len(built) == 1 else None

    monkeypatch.setattr(against, "build", build)
    with pytest.raises(SystemExit, match="HEAD: building failed: no compiler"):
        against.install("HEAD", tmp_path / "cache")
    folders = {against.install("HEAD", tmp_path / "cache") for _ in range(2)}
    assert folders == set(built) and len(built) == 2
    with pytest.raises(SystemExit, match="git knows no revision 'no-such-tag'"):
        against.install("no-such-tag", tmp_path / "cache")


@pytest.mark.parametrize("training", [False, True])
def test_contenders_have_the_same_weights_and_are_checked(training: bool) -> None:
    class Other(gcsa_ext.GCSA):
        pass

    class Wrong(gcsa_ext.GCSA):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1.1 * super().forward(x)

    case = gcsa_case((2, 8, 5, 6), training, backward=training)
    calls = against.contenders(case, Other, compiled=False)
    assert list(calls) == ["gcsa_ext", "eager", "eager channels_last", "gcsa_ext_peer"]
    assert type(calls["gcsa_ext_peer"].function) is Other
    truth = calls["eager"]()
    assert len(truth) == (14 if training else 1)
    for call in calls.values():
        torch.testing.assert_close(call(), truth, rtol=1e-3, atol=1e-3)
    with pytest.raises(ArithmeticError, match=r"gcsa_ext_peer, GCSA .* 2x8x5x6: error 1\.0e-01 against"):
        against.contenders(case, Wrong, compiled=False)


@pytest.mark.parametrize(("slowdown", "status"), [(1.0, 0), (1.2, 1)])
def test_what_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], slowdown: float, status: int
) -> None:
    times = {"gcsa_ext": slowdown * 1e-3, "gcsa_ext_peer": 1e-3, "eager": 6e-3, "eager channels_last": 7e-3}
    monkeypatch.setattr(against, "install", lambda *_: Path("/nowhere"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("gcsa_ext_peer", "gcsa_ext_peer.nn"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(GCSA=gcsa_ext.GCSA))
    monkeypatch.setattr(against, "contenders", lambda *_: {})
    monkeypatch.setattr(
        against, "measure", lambda *_, **__: {name: [time] * 3 for name, time in times.items()}
    )
    monkeypatch.setattr(against, "is_zen5", lambda: True)
    monkeypatch.setattr("sys.argv", ["against.py", "abc", "--threads", str(torch.get_num_threads())])
    assert against.main() == status
    printed = capsys.readouterr().out
    head = ["GCSA, ms (median)", *times, "over abc", "cores apart"]
    assert f"| {' | '.join(head)} |" in printed
    assert f"| evaluation 8x64x56x56 | {slowdown:.4g} | 1 | 6 | 7 | **{slowdown:.3f}** | 0 of 3 |" in printed
    assert f"{18 if status == 0 else 10} of 18 met." in printed
