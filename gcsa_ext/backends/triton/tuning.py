"""The choice of the fastest of a few configurations of a kernel, measured once per device and shape class.

Configurations differ in the layout of the work and the schedule of loads, never in the order of a sum, so all
of them give the same bits. Choices are kept in memory alone: Triton caches compiled kernels on disk, so
another process measures again in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import partial

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from gcsa_ext.backends.gpu.capture import relaxed_capture_mode

Configuration = dict[str, int]
"""Block sizes, num_warps, num_stages."""

_FASTER = 0.95
"""A configuration replaces the best one so far if it takes less than this share of its time, so that noise
does not replace the first one, which is known to fit in registers."""

enabled = True
"""Whether configurations are timed. Tests that compile hundreds of kernels and call each once set False."""

chosen: dict[Hashable, Configuration] = {}


def launch_fastest(
    shape_class: tuple[Hashable, ...],
    configurations: Iterable[Configuration],
    launch: Callable[[Configuration], None],
    x: Tensor,
) -> None:
    """Call `launch` with the fastest of the configurations on the device of x.

    The first call of a shape class times all of them. In the interpreter, and while the current stream is
    captured into a CUDA graph and hence cannot be waited for, the first configuration is taken instead.
    Timing does not disturb a capture in another thread. Kernels of a single configuration are not timed; the
    first call of one loads it, which may disturb such a capture.

    Args:
        shape_class: the kernel's name and all that decides which configuration is fastest.
        configurations: the first is the default.
        launch: launches the kernel; a repeated call must write the same, so it must not read what it writes.
        x: a tensor on the device, of the dtype that the kernel computes with.
    """
    key = (x.device, x.dtype, *shape_class)
    configuration = chosen.get(key)
    if configuration is None:
        configurations = list(configurations)
        if len(configurations) == 1:
            configuration = chosen[key] = configurations[0]
        elif enabled and x.is_cuda and not torch.cuda.is_current_stream_capturing():
            with relaxed_capture_mode():
                configuration = chosen[key] = fastest(configurations, launch)
        else:
            configuration = configurations[0]
    launch(configuration)


def fastest(
    configurations: Iterable[Configuration], launch: Callable[[Configuration], None]
) -> Configuration:
    best, *others = configurations
    best_time = _milliseconds(partial(launch, best))
    for configuration in others:
        try:
            time = _milliseconds(partial(launch, configuration))
        except OutOfResources:  # a device with less shared memory
            continue
        if time < _FASTER * best_time:
            best, best_time = configuration, time
    return best


def _milliseconds(call: Callable[[], None]) -> float:
    """The shortest of 5 times of 3 calls on the current stream, after a first call, which compiles."""
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
