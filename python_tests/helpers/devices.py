"""Marks of tests that run once for each backend, dtype or device."""

from __future__ import annotations

import pytest
import torch
from layouts import DTYPES

every_backend = pytest.mark.usefixtures("backend")
"""Run the test once for each backend, by the fixture `backend`."""

BACKEND_DTYPES = [("cpu", dtype) for dtype in DTYPES] + [
    (backend, dtype)
    for backend in ("triton", "cuda")
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
]
every_backend_and_dtype = pytest.mark.parametrize(
    ("backend", "dtype"), BACKEND_DTYPES, ids=str, indirect=["backend"]
)
"""Run the test once for each backend and each dtype that it takes, by the fixture `backend` and a parameter
`dtype`."""

ON_A_GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.filterwarnings(*(f"ignore::{kind}Warning" for kind in ("Deprecation", "Future", "User"))),
    ],
)
every_device = pytest.mark.parametrize(
    "device", ["cpu", ON_A_GPU] if torch.cuda.is_available() else ["cpu"], indirect=True
)
"""Run a test that uses `backend` on the CPU and, where there is one, on a GPU as well: its new tensors are
then there, and the kernels are the compiled ones."""


def only(backend: str) -> list[pytest.MarkDecorator]:
    """Run the test with this backend alone."""
    return [every_backend, pytest.mark.parametrize("backend", [backend], indirect=True)]
