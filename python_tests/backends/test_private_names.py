"""A torch without one of its private names: gcsa_ext still computes the right numbers.

Private names may go with any release of torch. The names that gcsa_ext asks for are read from its sources;
beside them are those that version 0.1.0 asked for. Some are needed by torch itself, whose layers or operators
of torch.library fail without them: such a torch cannot exist, and these names do not count.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from subprocesses import python
from torch.autograd import forward_ad

import gcsa_ext

OF_VERSION_0_1_0 = (
    "torch._C._are_functorch_transforms_active",
    "torch._C._dispatch_tls_is_dispatch_key_excluded",
    "torch._C._len_torch_dispatch_stack",
    "torch._C._len_torch_function_stack",
    "torch._C._get_tracing_state",
    "torch._C._autograd._profiler_enabled",
    "torch._C._ExcludeDispatchKeyGuard",
    "torch._C.DispatchKeySet",
    "torch._C.DispatchKey",
    "torch._C._after_ADInplaceOrView_keyset",
    "torch._C._functorch.is_legacy_batchedtensor",
    "torch.autograd.forward_ad._current_level",
)
OWNERS = {
    "torch._C": torch._C,
    "torch.autograd.forward_ad": forward_ad,
    "torch.nn.modules.module": torch.nn.modules.module,
}
"""Modules of torch whose private names are also found where they are written as strings."""


def is_private(part: str) -> bool:
    return part.startswith("_") and not part.startswith("__")


def names_of(source: str) -> Iterator[str]:
    """The private names of torch that a source asks for, with dots."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    aliases: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.split(".")[0]
                aliases[alias.asname or name] = name
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def dotted(node: ast.AST) -> str:
        if isinstance(node, ast.Attribute):
            return f"{dotted(node.value)}.{node.attr}"
        return aliases.get(node.id, "") if isinstance(node, ast.Name) else ""

    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    found = {dotted(node) for node in nodes if id(node) not in inner} | set(aliases.values())
    for name in found - set(OWNERS):
        first, *parts = name.split(".")
        if first == "torch" and any(map(is_private, parts)):
            yield name
    for node in nodes:
        # A literal is a whole name, the beginning of an f-string the beginning of several.
        start = node.values[0] if isinstance(node, ast.JoinedStr) and node.values else node
        if isinstance(start, ast.Constant) and isinstance(start.value, str) and is_private(start.value):
            for owner, module in OWNERS.items():
                for name in vars(module):
                    if name.startswith(start.value) if start is not node else name == start.value:
                        yield f"{owner}.{name}"


SOURCES = Path(gcsa_ext.__file__).parent.rglob("*.py")
ASKED_FOR = sorted({name for path in SOURCES for name in names_of(path.read_text())})
NAMES = sorted({*ASKED_FOR, *OF_VERSION_0_1_0})


@pytest.fixture(scope="module")
def errors() -> dict[str, list[str | None]]:
    """For each name the errors without it, of gcsa_ext and of plain torch; see without_names.py."""
    printed = python(
        f"import without_names; without_names.main({['torch.no_such_name', *NAMES]})", timeout=170
    )
    found: dict[str, list[str | None]] = json.loads(printed)
    return found


def test_names_are_found_in_sources() -> None:
    source = """
import torch
from torch import nn
from torch.autograd import forward_ad as f
torch._C._first(); f._current_level; getattr(torch._C, "_get_tracing_state"); vars(nn.modules.module)
kind = "_forward_hooks"; x = f"_global{kind}"; torch.ops.aten; y.__name__; self._own
"""
    found = set(names_of(source))
    assert {"torch._C._first", "torch.autograd.forward_ad._current_level"} <= found
    assert {"torch._C._get_tracing_state", "torch.nn.modules.module._global_forward_hooks"} <= found
    assert all("_global" in name for name in found if "modules.module" in name)
    assert "torch._C._are_functorch_transforms_active" in ASKED_FOR


def test_a_complete_torch(errors: dict[str, list[str | None]]) -> None:
    assert errors["torch.no_such_name"] == [None, None]


@pytest.mark.parametrize("name", NAMES)
def test_without(name: str, errors: dict[str, list[str | None]]) -> None:
    error, error_of_torch = errors[name]
    assert error is None or error_of_torch is not None, error


def test_names_with_a_substitute(errors: dict[str, list[str | None]]) -> None:
    """gcsa_ext/transforms.py does without them, even where torch does not. Most other names count, too."""
    right = {name for name in NAMES if errors[name][0] is None}
    assert {
        "torch._C._are_functorch_transforms_active",
        "torch.autograd.forward_ad._current_level",
    } <= right and len(right) > len(NAMES) / 3
