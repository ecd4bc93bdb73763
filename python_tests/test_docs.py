"""The documentation: its code runs, its links and paths exist, it builds, and it has every public name."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from public_attention import PlainAttention
from torch import nn

import gcsa_ext
from gcsa_ext.cli import main
from gcsa_ext.corpora import synthesize_clip, synthesize_corpus

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]


class Block(NamedTuple):
    """A fenced block: its language, its code, the comment in the line above it, and the line it begins at."""

    language: str
    code: str
    comment: str
    line: int

    @property
    def where(self) -> str:
        return f"line {self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    fence = re.compile(r"(?:<!-- ([^\n]*) -->\n)?^```(\S*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [
        Block(found[2], found[3], found[1] or "", text.count("\n", 0, found.start(3)) + 1)
        for found in fence.finditer(text)
    ]


def run_command(line: str) -> None:
    """Run a line of a bash block, which must be a gcsa-ext command; a training gets one epoch."""
    program, *arguments = shlex.split(line, comments=True)
    assert program == "gcsa-ext", f"{line!r}: say above the block why it is not run, <!-- not run: ... -->"
    if arguments[0] == "train" and "--epochs" not in arguments:
        arguments += ["--epochs", "1"]
    assert main(arguments) == 0, line


def run_page(page: Path, namespace: dict[str, Any]) -> None:
    for block in blocks(page):
        if block.comment.startswith("not run: ") or block.comment in ("demo", "test"):
            continue
        if block.language == "python":
            # The empty lines give a traceback the line numbers of the page.
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), namespace)
        elif block.language == "bash":
            for line in block.code.splitlines():
                run_command(line)
        else:
            assert block.language == "text" or block.language.startswith("{"), f"{page}, {block.where}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    """An empty working folder, with a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def test_code_of_the_readme_runs(folder: Path) -> None:
    synthesize_corpus(folder, identities=3).rename(folder / "clips.csv")
    synthesize_clip(folder / "holiday.mp4", 12345, "Surprise", seed=0)

    class MyNet(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(3, 16, 3), PlainAttention(16), PlainAttention(16, groups=1))

    namespace: dict[str, Any] = {"MyNet": MyNet}
    run_page(ROOT / "README.md", namespace)
    assert namespace["count"] == 2
    assert {file.name for file in folder.glob("holiday.*")} == {
        "holiday.mp4",
        "holiday.emotions.csv",
        "holiday.emotions.png",
    }


def test_code_of_training_evaluation_and_prediction_runs(folder: Path) -> None:
    """These guides go on in one folder."""
    for name in ("train", "evaluate", "predict"):
        run_page(ROOT / "docs" / "guide" / f"{name}.md", {})


IN_ONE_FOLDER = {ROOT / "docs" / "guide" / f"{name}.md" for name in ("train", "evaluate", "predict")}
OTHERS = [page for page in PAGES[1:] if page not in IN_ONE_FOLDER]


@pytest.mark.parametrize("page", OTHERS, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_runs(page: Path, folder: Path) -> None:
    run_page(page, {})


def test_set_up_commands_are_one_line_and_the_ones_that_ci_runs() -> None:
    commands = {block.comment: block.code for block in blocks(ROOT / "README.md")}
    (demo,), (test,) = commands["demo"].splitlines(), commands["test"].splitlines()
    assert main([shlex.split(demo)[-1], "--help"]) == 0
    patterns = re.findall(r"grep -m 1 '(.*?)' README.md", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    for command, pattern in zip((demo, test), patterns, strict=True):
        assert re.search(pattern, command)


def test_picture_shows_the_speed_table() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("<!-- speed table begin -->")[2].partition("<!-- speed table end -->")[0].strip()
    picture = (ROOT / "docs" / "picture.png").read_bytes()
    assert table.count("\n") >= 2
    assert table.encode() in picture, "draw it again: gcsa-ext demo && python docs/make_picture.py"


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_sections(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\((?!https?://)(.*?)\)", prose):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.is_file(), f"{page}: {target}"
        assert not anchor or anchor in anchors(file), f"{page}: {target}"


PLACES = re.compile(r"(?:gcsa_ext|csrc|python_tests|benchmarks|docs)/[\w./]*")


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_folders_that_are_named_exist(page: Path) -> None:
    for span in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        for name in PLACES.findall(span):
            if "<" not in span and "build/" not in span:
                assert (ROOT / name).exists(), f"{page}: {name}"


INTERNAL = {"atomic", "cli", "deprecated", "extra", "layout", "openmp", "ops", "transforms"}
INTERNAL_PARTS = {"inference.bins", "inference.windows", "training.progress"}


def public_names() -> set[str]:
    """Every public name with its module; those of the modules of a package that has no __all__."""
    names = {f"gcsa_ext.{name}" for name in gcsa_ext.__all__}
    for found in pkgutil.iter_modules(gcsa_ext.__path__):
        if found.name.startswith("_") or found.name in INTERNAL:
            continue
        modules = [importlib.import_module(f"gcsa_ext.{found.name}")]
        if found.ispkg and not hasattr(modules[0], "__all__"):
            parts = (f"{found.name}.{part.name}" for part in pkgutil.iter_modules(modules[0].__path__))
            modules = [
                importlib.import_module(f"gcsa_ext.{part}") for part in parts if part not in INTERNAL_PARTS
            ]
        for module in modules:
            names |= {f"{module.__name__}.{name}" for name in getattr(module, "__all__", defined_in(module))}
    return {name for name in names if not isinstance(find(name), ModuleType)}


def defined_in(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def find(name: str) -> Any:
    """The object of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("Sphinx is not installed: it comes with the extra [docs], which .ci/run installs")
    out = tmp_path_factory.mktemp("docs")
    options = ["-q", "-W", "--keep-going", "-n"]
    command = [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(out)]
    result = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return out


def test_built_documentation_has_every_public_name(built: Path) -> None:
    from sphinx.util.inventory import InventoryFile

    with (built / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, name: name)
    documented = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    objects = {
        id(find(name))
        for kind in ("py:class", "py:exception", "py:function")
        for name in inventory.get(kind, {})
        if name.rpartition(".")[0] in sys.modules
    }
    missing = {name for name in public_names() - documented if id(find(name)) not in objects}
    assert not missing, sorted(missing)
