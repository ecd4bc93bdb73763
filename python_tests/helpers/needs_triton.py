"""Imports of modules that need Triton: without Triton tests are skipped, with a broken one they fail."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import pytest


def imported(name: str) -> Any:
    if importlib.util.find_spec("triton") is None:
        pytest.skip(
            "triton is not installed: torch's builds for the CPU come without it", allow_module_level=True
        )
    return importlib.import_module(name)
