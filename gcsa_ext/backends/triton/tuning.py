"""Which of a few configurations of a kernel is fastest on a device, measured once per shape class.

Configurations differ in how work is laid out and loads are scheduled, never in the order of a sum: whichever
is taken, the results have the same bits. Triton keeps compiled kernels on disk, so that measuring them once
more takes another process milliseconds: choices are kept in memory alone.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cache, partial

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

Configuration = dict[str, int]
"""Block sizes, num_warps, num_stages."""

_SHARE = 0.95
"""Of the time of the best configuration so far another one must stay below: the first is the safe one."""

enabled = True
"""Whether anything is timed. Tests switch it off, which compile hundreds of kernels to call each once."""

chosen: dict[Hashable, Configuration] = {}


def launch_fastest(
    shape_class: tuple[Hashable, ...],
    configurations: Iterable[Configuration],
    launch: Callable[[Configuration], None],
    x: Tensor,
) -> None:
    """Call `launch` with the fastest of the configurations on the device of x.

    The first call of a shape class times all of them, but while its stream is captured into a CUDA graph,
    where nothing may wait, and in the interpreter: there the first one is taken. A capture in another thread
    is not disturbed by what is compiled and timed here (by kernels of a single configuration, which are
    loaded when they are first called, it may be).

    Args:
        shape_class: what decides which is fastest, the kernel's name included.
        launch: must write the same whenever it is called again, and read none of it.
    """
    key = (x.device, x.dtype, *shape_class)
    configuration = chosen.get(key)
    if configuration is None:
        configurations = list(configurations)
        if len(configurations) == 1:
            configuration = chosen[key] = configurations[0]
        elif enabled and x.is_cuda and not torch.cuda.is_current_stream_capturing():
            with _beside_captures():
                configuration = chosen[key] = fastest(configurations, launch)
        else:
            configuration = configurations[0]
    launch(configuration)


@cache
def cuda_driver() -> ctypes.CDLL | None:
    """CUDA's, or None where it cannot be loaded, as with AMD's GPUs."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


@contextlib.contextmanager
def _beside_captures() -> Iterator[None]:
    """Let this thread load modules and wait for events while another one captures a CUDA graph.

    In CUDA's default mode of capturing, which is also torch.cuda.graph's, such calls of any thread would fail
    and spoil the capture, unless that thread has said that it knows what it does.
    """
    driver = cuda_driver()
    if driver is None:
        yield
        return
    # CU_STREAM_CAPTURE_MODE_RELAXED; the call puts the previous one in its place.
    mode = ctypes.c_int(2)
    exchanged = driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode)) == 0
    try:
        yield
    finally:
        if exchanged:
            driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))


def fastest(
    configurations: Iterable[Configuration], launch: Callable[[Configuration], None]
) -> Configuration:
    best, *others = configurations
    least = _milliseconds(partial(launch, best))
    for configuration in others:
        try:
            found = _milliseconds(partial(launch, configuration))
        except OutOfResources:  # a device with less shared memory
            continue
        if found < _SHARE * least:
            best, least = configuration, found
    return best


def _milliseconds(call: Callable[[], None]) -> float:
    """The least of a few times on the current stream, after a call that compiles."""
    call()
    times: list[float] = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(3):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return min(times)
