"""Nothing imports from a floor above, and the library imports torch and numpy alone."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import gcsa_ext

PACKAGE = Path(gcsa_ext.__file__).parent

# Modules and folders of the package, from the ground. Those of one floor may import each other.
LIBRARY = (
    {"_C", "deprecated", "layout", "openmp", "reference", "transforms"},
    {"backends"},
    {"info", "ops"},
    {"functional"},
    {"nn"},
    {"convert"},
    {"__init__"},
)
APPLICATION = (
    {"atomic", "extra"},
    {"media"},
    {"corpora"},
    {"inference"},
    {"training"},
    {"cli"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate((*LIBRARY, *APPLICATION)) for name in names}

THIRD_PARTY = {"torch", "numpy"}
# These functions of nn import gcsa_ext.convert when they are called.
CONVERTING = {"GCSA.from_module", "replace_attention"}


class Import(NamedTuple):
    """An import: what, at which line, and the qualified name of the function around it, or ""."""

    module: str
    line: int
    function: str


def imports(node: ast.AST, scope: tuple[str, ...] = ()) -> Iterator[Import]:
    """Every import below a node, also inside functions and by import_module("name")."""
    for child in ast.iter_child_nodes(node):
        within = ".".join(scope)
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from imports(child, (*scope, child.name))
            continue
        match child:
            case ast.Import(names=names):
                yield from (Import(alias.name, child.lineno, within) for alias in names)
            case ast.ImportFrom(module="gcsa_ext", level=0, names=names):
                yield from (Import(f"gcsa_ext.{alias.name}", child.lineno, within) for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield Import(module, child.lineno, within)
            case ast.ImportFrom():
                raise ValueError(f"line {child.lineno}: a relative import; imports name the whole path")
            case ast.Call(
                func=ast.Name(id=called) | ast.Attribute(attr=called), args=[ast.Constant(str(module)), *_]
            ) if called in {"import_module", "import_extra", "__import__"}:
                yield Import(module, child.lineno, within)
        yield from imports(child, scope)


def violations(file: Path, source: str) -> list[str]:
    """What breaks the order of the floors in the source of a file; its path is relative to the package."""
    home = file.parts[0].removesuffix(".py")
    assert home in LEVEL, f"{home} has no place in LIBRARY or APPLICATION above"
    allowed = THIRD_PARTY | ({"triton"} if file.is_relative_to("backends/triton") else set())
    found = []
    for module, line, function in imports(ast.parse(source)):
        package, _, rest = module.partition(".")
        if package == "gcsa_ext":
            # A name that is not a module's is defined in __init__.py.
            target = rest.partition(".")[0] if rest.partition(".")[0] in LEVEL else "__init__"
            converts = (home, target) == ("nn", "convert") and function in CONVERTING
            if LEVEL[target] > LEVEL[home] and not converts:
                found.append(f"line {line}: {home} imports {module}, which is on a floor above")
        elif LEVEL[home] < len(LIBRARY) and package not in sys.stdlib_module_names | allowed:
            found.append(f"line {line}: {module} is not among {', '.join(sorted(allowed))}")
    return found


@pytest.mark.parametrize("file", sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")))
def test_imports_go_down(file: str) -> None:
    assert violations(Path(file), (PACKAGE / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("reference.py", "from gcsa_ext.backends import select"),
        ("reference.py", "from gcsa_ext import backends"),
        ("ops/gcsa.py", "import gcsa_ext.nn.attention as attention"),
        ("ops/gcsa.py", "def call():\n    from gcsa_ext import functional"),
        ("ops/gcsa.py", "from gcsa_ext import GCSA"),
        ("functional.py", "if TYPE_CHECKING:\n    from gcsa_ext.corpora import Clip"),
        ("nn/attention.py", "from gcsa_ext.convert import convert"),
        ("nn/attention.py", "class GCSA:\n    def forward(self):\n        import gcsa_ext.convert"),
        ("ops/gcsa.py", "def replace_attention():\n    import gcsa_ext.convert"),
        ("__init__.py", "from gcsa_ext.extra import import_extra"),
        ("media/video.py", "from gcsa_ext.corpora.clips import Clip"),
        ("inference/report.py", "importlib.import_module('gcsa_ext.training.fit')"),
        ("training/fit.py", "from gcsa_ext.cli.options import cache_folder"),
        ("nn/loss.py", "import torchmetrics.functional"),
        ("backends/cpu.py", "import triton"),
        ("backends/triton/launch.py", "from safetensors import torch"),
        (
            "nn/loss.py",
            "def save():\n    try:\n        import_extra('lightning')\n    except ImportError: ...",
        ),
    ],
)
def test_a_violation_is_found(file: str, source: str) -> None:
    last = len(source.splitlines()) - source.count("except")
    (found,) = violations(Path(file), source)
    assert found.startswith(f"line {last}: ")


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("layout.py", "import torch, numpy.typing\nfrom collections import abc"),
        ("backends/triton/launch.py", "import triton.language as tl"),
        ("nn/attention.py", "class GCSA:\n    def from_module(cls):\n        import gcsa_ext.convert"),
        ("nn/attention.py", "def replace_attention():\n    from gcsa_ext import convert"),
        ("media/video.py", "import av\nfrom gcsa_ext.extra import import_extra"),
        ("cli/info.py", "from gcsa_ext import __version__, format_info"),
    ],
)
def test_an_import_downwards_is_no_violation(file: str, source: str) -> None:
    assert violations(Path(file), source) == []


def test_a_file_without_a_floor_is_found() -> None:
    with pytest.raises(AssertionError, match="strangers has no place"):
        violations(Path("strangers.py"), "")
    with pytest.raises(ValueError, match="relative import"):
        violations(Path("nn/loss.py"), "from .fusion import ProportionalFusion")
