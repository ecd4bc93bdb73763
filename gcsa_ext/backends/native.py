"""The compiled module, or the reason why there is none. Importing this never fails."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch  # noqa: F401  (first: the extension then shares the OpenMP threads that torch has loaded)

extension: ModuleType | None = None
load_error: str | None = None

try:
    extension = importlib.import_module("gcsa_ext._C")
except ImportError as error:
    load_error = f"the compiled module gcsa_ext._C cannot be loaded: {error}"
