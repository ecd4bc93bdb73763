"""What all launches share: the compiled kernels, or their emulation in tests, and where they run."""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor

from gcsa_ext.backends import native

ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The codes of csrc/cuda/map.h."""

VECTOR_ELEMENTS = {**ELEMENTS, torch.float64: 3}
"""Those of csrc/cuda/vector.h, for vectors that come as the user keeps them."""

EMULATED_TARGET = (0, 0, 3, 227 * 1024)
"""Few multiprocessors, so that blocks of few positions take turns."""

_emulation: ModuleType | None = None


def emulate(module: ModuleType | None) -> None:
    """Compute with the kernels that `module` emulates on the CPU (python_tests/helpers/emulated_cuda.py), or
    with those of GPUs again for None."""
    global _emulation
    _emulation = module


def emulated() -> bool:
    return _emulation is not None


def kernels() -> ModuleType:
    """The functions of csrc/cuda/bindings.cpp."""
    if _emulation is not None:
        return _emulation
    assert native.extension is not None
    module: ModuleType = native.extension.cuda
    return module


def missing() -> str | None:
    """Why there are no kernels, or None."""
    if _emulation is not None:
        return None
    if native.extension is None:
        return native.load_error
    reason = native.extension.build_info()["cuda_missing"]
    return None if reason is None else f"there are no CUDA kernels: {reason}"


@functools.cache
def limits(device: int) -> tuple[int, int]:
    """The multiprocessors of a GPU, and the bytes of shared memory that a block of threads may have there."""
    multiprocessors, shared_bytes = kernels().device_limits(device)
    return multiprocessors, shared_bytes


def target(x: Tensor) -> tuple[int, int, int, int]:
    """The device of x, its current stream, its multiprocessors, and the shared memory a block may have."""
    if not x.is_cuda:
        return EMULATED_TARGET
    device = x.get_device()
    return device, torch.cuda.current_stream(device).cuda_stream, *limits(device)


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
