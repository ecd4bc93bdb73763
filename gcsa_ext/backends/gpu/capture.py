"""Whether a CUDA graph is captured, and the capture mode of this thread while another thread captures one."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor


def is_capturing(x: Tensor) -> bool:
    """Whether the current stream of the device of x is captured into a CUDA graph; False on the CPU."""
    if not x.is_cuda:
        return False
    with torch.cuda.device_of(x):
        return torch.cuda.is_current_stream_capturing()


@cache
def cuda_driver() -> ctypes.CDLL | None:
    """The CUDA driver, or None where it cannot be loaded, as with AMD's GPUs."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


@contextlib.contextmanager
def relaxed_capture_mode() -> Iterator[None]:
    """Let this thread load modules and wait for events while another thread captures a CUDA graph.

    In the default capture mode of CUDA and torch.cuda.graph such calls fail and invalidate the capture,
    unless the calling thread has set the relaxed mode for itself.
    """
    driver = cuda_driver()
    if driver is None:
        yield
        return
    # CU_STREAM_CAPTURE_MODE_RELAXED. The call writes the previous mode to the same variable.
    mode = ctypes.c_int(2)
    exchanged = driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode)) == 0
    try:
        yield
    finally:
        if exchanged:
            driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
