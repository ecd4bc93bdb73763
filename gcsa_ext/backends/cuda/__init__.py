"""Backend "cuda": the CUDA C++ kernels of csrc/cuda, for NVIDIA's GPUs of compute capability 8.0 and newer;
compiled with the extension, where nvcc was there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gcsa_ext.backends import forced
from gcsa_ext.backends.cuda import gates, launch, mask
from gcsa_ext.backends.cuda.small_gcsa import small_gcsa, takes
from gcsa_ext.backends.gpu import Operators
from gcsa_ext.backends.operands import Arguments

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MASK_DTYPES = (*DTYPES, torch.float64)


def unsupported(operator: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot run `operator` on such tensors, or None if it can.

    Where the kernels are emulated (in tests) it takes tensors on the CPU, but only when it is forced.
    """
    on_cpu = device.type == "cpu" and launch.emulated() and forced.name == "cuda"
    if device.type != "cuda" and not on_cpu:
        return f"the cuda backend takes tensors on a GPU, not on {device}"
    if (reason := launch.missing()) is not None:
        return reason
    if device.type == "cuda" and (reason := _unfit(device)) is not None:
        return reason
    dtypes = MASK_DTYPES if operator.startswith("frequency_mask") else DTYPES
    if dtype not in dtypes:
        return f"the cuda backend has {operator} for {', '.join(map(str, dtypes))}, not {dtype}"
    return None


@functools.cache
def _unfit(device: torch.device) -> str | None:
    if torch.version.hip is not None:
        return f"the CUDA kernels run on NVIDIA's GPUs, not on {device}"
    found = torch.cuda.get_device_properties(device)
    if found.major < 8:
        return f"the CUDA kernels need compute capability 8.0, {device} has {found.major}.{found.minor}"
    error = str(launch.kernels().driver_error())
    return f"the CUDA kernels cannot run: {error}" if error else None


_layer_by_layer = Operators(gates)


def gcsa(a: Arguments, save: bool) -> tuple[Tensor, ...]:
    """See backends/reference.py. Small maps in eval take one launch."""
    return small_gcsa(a) if takes(a, save) else _layer_by_layer.gcsa(a, save)


operators: Mapping[str, Callable[..., Any]] = {
    **_layer_by_layer.functions(),
    "frequency_mask": mask.frequency_mask,
    "frequency_mask_": mask.frequency_mask_,
    "gcsa": gcsa,
}

__all__ = ["operators", "unsupported"]
