"""The worked example of docs/guide/operator.md is applied to a copy of the sources, built and tested."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("CMakeLists.txt", "LICENSE", "README.md", "csrc", "gcsa_ext", "pyproject.toml")


class Addition(NamedTuple):
    """A captioned block of the page: the file it belongs to, the text that it stands below, if it is not a
    whole file, and its code."""

    path: str
    below: str | None
    code: str


def additions() -> list[Addition]:
    page = (ROOT / "docs" / "guide" / "operator.md").read_text(encoding="utf-8")
    caption = r"^```\{code-block\} \w+\n:caption: (\S+?)(?:, ([^\n]*))?\n"
    block = re.compile(rf"{caption}(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [
        Addition(path, place.removeprefix("below ") if place else None, code)
        for path, place, code in block.findall(page)
    ]


def apply(addition: Addition, root: Path) -> None:
    file = root / addition.path
    if addition.below is None:
        assert not file.exists(), f"{addition.path} exists: the page should say where its block goes"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(addition.code, encoding="utf-8")
        return
    text = file.read_text(encoding="utf-8")
    if addition.below == "at the end":
        file.write_text(f"{text}\n\n{addition.code}", encoding="utf-8")
        return
    assert text.count(addition.below) == 1, f"{addition.path}: {addition.below!r} is not there once"
    file.write_text(
        text.replace(addition.below, f"{addition.below}\n{addition.code.rstrip()}"), encoding="utf-8"
    )


def test_an_operator_touches_at_most_nine_files() -> None:
    found = additions()
    assert len({addition.path for addition in found}) <= 9
    assert any(addition.path.startswith("python_tests/") for addition in found)


@pytest.mark.timeout(900)  # it compiles the extension, for one instruction set
def test_the_example_builds_and_passes_its_test(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    for addition in additions():
        apply(addition, source)
    options = {"GCSA_EXT_BASELINE_ONLY": "ON", "GCSA_EXT_CUDA": "OFF", "GCSA_EXT_WERROR": "ON"}
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-build-isolation",
        "--no-deps",
        "--target",
        str(site),
    ]
    environment = {
        **os.environ,
        "SKBUILD_CMAKE_DEFINE": ";".join(f"{name}={value}" for name, value in options.items()),
        "PYTHONPATH": str(site),
    }
    environment.pop("GCSA_EXT_CPU_ISA", None)
    built = subprocess.run([*install, str(source)], capture_output=True, text=True, env=environment)
    assert built.returncode == 0, built.stdout + built.stderr
    test = source / next(a.path for a in additions() if a.path.startswith("python_tests/"))
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:xdist",
        "--rootdir",
        str(source),
        str(test),
    ]
    tested = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert " passed" in tested.stdout and "skipped" not in tested.stdout
