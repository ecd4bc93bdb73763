"""Which backend is forced on all operators, if one is."""

from __future__ import annotations

import os

name: str | None = os.environ.get("GCSA_EXT_BACKEND") or None
