"""The name of the backend that all operators must use, or None."""

from __future__ import annotations

import os

name: str | None = os.environ.get("GCSA_EXT_BACKEND") or None
