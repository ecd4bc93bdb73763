"""The compiled module, or the reason why there is none. Importing this never fails."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import torch  # noqa: F401  (first: the extension then shares the OpenMP threads that torch has loaded)

extension: ModuleType | None = None
load_error: str | None = None

try:
    extension = importlib.import_module("gcsa_ext._C")
except ImportError as error:
    folder = Path(__file__).parents[1]
    load_error = f"the compiled module gcsa_ext._C cannot be loaded: {error} (gcsa_ext is in {folder})"
    if isinstance(error, ModuleNotFoundError):
        load_error += "; if that is the source tree, run outside of it after `pip install .`"
