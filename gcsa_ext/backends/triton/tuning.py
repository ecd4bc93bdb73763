"""Which of a few configurations of a kernel is fastest on a device, measured once per shape class.

Configurations differ in how work is laid out and loads are scheduled, never in the order of a sum: whichever
is taken, the results have the same bits. Triton keeps compiled kernels on disk, so that measuring them once
more takes another process milliseconds: choices are kept in memory alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import partial

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

Configuration = dict[str, int]
"""Block sizes, num_warps, num_stages."""

_SHARE = 0.95
"""Of the time of the best configuration so far another one must stay below: the first is the safe one."""

enabled = True
"""Whether anything is timed. Tests switch it off, which compile hundreds of kernels to call each once."""

_chosen: dict[Hashable, Configuration] = {}


def launch_fastest(
    shape_class: tuple[Hashable, ...],
    configurations: Iterable[Configuration],
    launch: Callable[[Configuration], None],
    x: Tensor,
) -> None:
    """Call `launch` with the fastest of the configurations on the device of x.

    The first call of a shape class times all of them, but while a CUDA graph is captured, where nothing may
    wait, and in the interpreter: there the first one is taken.

    Args:
        shape_class: what decides which is fastest, the kernel's name included.
        launch: must write the same whenever it is called again, and read none of it.
    """
    key = (x.device, x.dtype, *shape_class)
    configuration = _chosen.get(key)
    if configuration is None:
        if enabled and x.is_cuda and not torch.cuda.is_current_stream_capturing():
            configuration = _chosen[key] = _fastest(configurations, launch)
        else:
            configuration = next(iter(configurations))
    launch(configuration)


def _fastest(
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
