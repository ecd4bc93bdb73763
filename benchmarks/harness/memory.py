"""Memory of a training step of GCSA: bytes saved for the backward pass, and the process's peak."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import math
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from harness.case import EAGER, LAST, OURS, Call
from harness.operators import gcsa_case
from torch import Tensor, nn

from gcsa_ext import functional


def saved_bytes(call: Call) -> int:
    """Bytes of the storages that one forward pass keeps for the backward pass, parameters left out."""
    parameters = {t.untyped_storage().data_ptr() for t in call.parameters}
    if isinstance(call.function, nn.Module):
        parameters |= {t.untyped_storage().data_ptr() for t in call.function.buffers()}
    storages: dict[int, int] = {}
    kept = []  # alive until the end, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(storages.values())


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _step(shape: Sequence[int], contender: str) -> Call:
    return gcsa_case(shape, training=True, backward=True).build(contender)


def _peak(shape: Sequence[int], contender: str, threads: int) -> int | None:
    torch.set_num_threads(threads)
    # What every process does once (kernels compiled at run time, threads' stacks) belongs to no step.
    _step((1, shape[1], 8, 8), contender)()
    call = _step(shape, contender)
    gc.collect()
    functional.release_workspace()  # the workspace that the kernels keep belongs to the step that needs it
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from the present size
        before = _status("VmRSS")
        call()
        return _status("VmHWM") - before
    except OSError:
        return None


def peak_bytes(shape: Sequence[int], contender: str) -> int | None:
    """By how many bytes a step on `shape` (N, C, H, W) raises a fresh process's resident memory at its peak.

    The native workspaces and the gradients count, inputs and parameters do not. None where the system does
    not tell (it takes Linux).
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_peak, tuple(shape), contender, torch.get_num_threads()).result()


@functools.cache
def training_step(shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """Bytes that a training step of GCSA on `shape` (N, C, H, W) saves, and its peak, by contender.

    Returns:
        dictionaries of "shape", "contender", and in bytes "input", "saved" and "peak" (None: see peak_bytes).
    """
    return [
        {
            "shape": list(shape),
            "contender": name,
            "input": 4 * math.prod(shape),
            "saved": saved_bytes(_step(shape, name)),
            "peak": peak_bytes(shape, name),
        }
        for name in (OURS, EAGER, EAGER + LAST)
    ]
