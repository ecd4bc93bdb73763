"""What all launches share: the compiled kernels, or their emulation in tests, and the device they run on."""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor

from gcsa_ext.backends import native

ELEMENTS = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}
"""The dtypes of maps with their codes in csrc/params/tensor.h."""

VECTOR_ELEMENTS = {**ELEMENTS, torch.float64: 1}
"""The dtypes of vectors, which keep the dtype that the user gave them."""

EMULATED_TARGET = (0, 0, 3, 227 * 1024)
"""What `target` returns for the emulation. It has few multiprocessors, so that a block loops even over a few
positions."""

_emulation: ModuleType | None = None


def emulate(module: ModuleType | None) -> None:
    """Compute with `module`, which emulates the kernels on the CPU for tests; None ends the emulation."""
    global _emulation
    _emulation = module


def emulated() -> bool:
    """Whether the kernels are emulated."""
    return _emulation is not None


def kernels() -> ModuleType:
    """The module that csrc/cuda/bindings.cpp defines, or its emulation."""
    if _emulation is not None:
        return _emulation
    assert native.extension is not None
    module: ModuleType = native.extension.cuda
    return module


def missing() -> str | None:
    """Why there are no kernels, or None if there are."""
    if _emulation is not None:
        return None
    if native.extension is None:
        return native.load_error
    reason = native.extension.build_info()["cuda_missing"]
    return None if reason is None else f"there are no CUDA kernels: {reason}"


@functools.cache
def limits(device: int) -> tuple[int, int]:
    """The number of multiprocessors of a GPU, and the bytes of shared memory that a block may have."""
    multiprocessors, shared_bytes = kernels().device_limits(device)
    return multiprocessors, shared_bytes


def target(x: Tensor) -> tuple[int, int, int, int]:
    """The device of x, the handle of its current stream, and `limits`."""
    if not x.is_cuda:
        return EMULATED_TARGET
    device = x.get_device()
    return device, torch.cuda.current_stream(device).cuda_stream, *limits(device)


def address(tensor: Tensor | None) -> int:
    """The address of the first element, or 0 for a missing tensor."""
    return 0 if tensor is None else tensor.data_ptr()


def vector(values: Tensor | None) -> tuple[int, int]:
    """The address of a vector and the code of its dtype, or 0, 0 for a missing vector."""
    return (0, 0) if values is None else (values.data_ptr(), VECTOR_ELEMENTS[values.dtype])
