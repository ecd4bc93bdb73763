"""What holds for every test: fixed random numbers, and memory that is full of NaN before it is written."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from types import ModuleType

import emulated_cuda as emulation
import pytest
import torch

if torch.cuda.is_available():
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic algorithms ask for it
else:
    os.environ["TRITON_INTERPRET"] = "1"  # before gcsa_ext defines its Triton kernels

import gcsa_ext

if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of several processes would wait for each other's cores. Tests of threads ask for theirs.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(20250311)


@pytest.fixture(autouse=True)
def nan_in_new_memory() -> Iterator[None]:
    """torch.empty returns NaN (or the largest integer), so that an output which nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def keep_threads() -> Iterator[None]:
    """Restore the number of threads after a test that sets it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def one_thread(keep_threads: None) -> None:
    """For thousands of calls on tiny tensors, whose threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def emulated_cuda() -> Iterator[ModuleType]:
    """The CUDA kernels on the CPU, for the backend "cuda" when it is forced; compiled at the first use. They
    stand in for those of a GPU, so only as long as the test lasts."""
    if emulation.compiler() is None:
        pytest.skip("the emulated CUDA kernels are C++ that the test compiles, and there is no C++ compiler")
    module = emulation.load()
    gcsa_ext.backends.cuda.launch.emulate(module)
    yield module
    gcsa_ext.backends.cuda.launch.emulate(None)


@pytest.fixture(params=["cpu", "triton", "cuda"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test once for each backend whose kernels take tensors on the CPU: Triton's are interpreted, those
    of CUDA are emulated."""
    name: str = request.param
    if name == "triton" and torch.cuda.is_available():
        pytest.skip("where there is a GPU Triton compiles its kernels, and these take no tensors on the CPU")
    if name == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: torch's builds for the CPU come without it")
    if name == "cuda":
        request.getfixturevalue("emulated_cuda")
    with gcsa_ext.use_backend(name):
        yield name
