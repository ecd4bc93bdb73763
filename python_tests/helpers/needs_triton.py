"""Modules that need Triton: where it is not installed tests are skipped, a broken one fails them."""

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
