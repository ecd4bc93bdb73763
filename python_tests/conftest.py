"""What holds for every test: fixed random numbers, and NaN in new memory. Fixtures of several files."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import emulated_cuda as emulation
import pytest
import torch

if torch.cuda.is_available():
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic algorithms ask for it
else:
    os.environ["TRITON_INTERPRET"] = "1"  # before gcsa_ext defines its Triton kernels

import gcsa_ext

if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of several processes would wait for each other's cores. Tests of threads set their number.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(20250311)


@pytest.fixture(autouse=True)
def nan_in_new_memory() -> Iterator[None]:
    """Fill new memory with NaN (or the largest integer): a test fails where an output was not written."""
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
    """Compute on one thread: threads slow down thousands of calls on tiny tensors."""
    torch.set_num_threads(1)


@pytest.fixture
def emulated_cuda() -> Iterator[ModuleType]:
    """Replace the CUDA kernels by emulated ones on the CPU, for the backend "cuda" when it is forced.

    They are compiled at the first use."""
    if emulation.compiler() is None:
        pytest.skip("the emulated CUDA kernels are C++ that the test compiles, and there is no C++ compiler")
    module = emulation.load()
    gcsa_ext.backends.cuda.launch.emulate(module)
    yield module
    gcsa_ext.backends.cuda.launch.emulate(None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which kernels of gcsa were called, "gcsa" (for training or inference) and "gcsa_backward"; not those of
    the reference."""
    names: list[str] = []

    def recorded(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any) -> Any:
            names.append(name.removesuffix("_inference"))
            return kernel(*args)

        return record

    for backend in (gcsa_ext.backends.cpu, gcsa_ext.backends.triton, gcsa_ext.backends.cuda):
        for name in ("gcsa", "gcsa_inference", "gcsa_backward"):
            if name in backend.operators:
                monkeypatch.setitem(backend.operators, name, recorded(name, backend.operators[name]))
    return names


@pytest.fixture
def any_order(emulated_cuda: ModuleType) -> Iterator[ModuleType]:
    """`emulated_cuda` for tests that change the order of threads and blocks."""
    yield emulated_cuda
    emulated_cuda.shuffle_order(0)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """Where a test with `backend` has its new tensors: on the CPU, but see devices.every_device."""
    name: str = getattr(request, "param", "cpu")
    return name


@pytest.fixture(params=["cpu", "triton", "cuda"])
def backend(request: pytest.FixtureRequest, device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the test once for each backend, which is forced. On the CPU Triton's kernels are interpreted and
    those of CUDA are emulated."""
    name: str = request.param
    if name == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: torch's builds for the CPU come without it")
    if device == "cuda":
        _prepare_gpu(name, monkeypatch)
    elif name == "triton" and torch.cuda.is_available():
        pytest.skip("where there is a GPU Triton compiles its kernels, and these take no tensors on the CPU")
    elif name == "cuda":
        request.getfixturevalue("emulated_cuda")
    on_device = torch.device(device) if device == "cuda" else contextlib.nullcontext()
    with on_device, gcsa_ext.use_backend(name):
        yield name


def _prepare_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "cpu":
        pytest.skip("the cpu backend takes no tensors on a GPU; on the CPU this test runs on it")
    reason = gcsa_ext.backends.unsupported(name, "gcsa", torch.device("cuda"), torch.float32)
    if name == "cuda" and gcsa_ext.info()["build"]["cuda"] is None:
        pytest.skip(f"gcsa_ext was built without CUDA kernels: {reason}")
    assert reason is None  # every other reason is a fault
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # errors are measured in float32
    monkeypatch.setattr(gcsa_ext.backends.proof, "enabled", False)  # tests compare more, and count launches
    if name == "triton":
        monkeypatch.setattr(gcsa_ext.backends.triton.tuning, "enabled", False)
