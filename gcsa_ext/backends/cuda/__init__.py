"""Backend "cuda": the CUDA C++ kernels of csrc/cuda, for NVIDIA's GPUs of compute capability 8.0 and newer.

They are compiled with the extension if nvcc is installed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gcsa_ext.backends import forced
from gcsa_ext.backends.cuda import gates, launch, mask
from gcsa_ext.backends.cuda import small_gcsa as small
from gcsa_ext.backends.gpu import Operators
from gcsa_ext.backends.gpu.support import too_old, unsupported_dtype
from gcsa_ext.backends.operands import Arguments


def unsupported(operator: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot run `operator` on such tensors, or None if it can.

    Even where it can, torch computes masks with bands of frames or with a value on the GPU; see mask.py.

    While the kernels are emulated (in tests) the backend takes tensors on the CPU, but only if it is forced.
    """
    on_cpu = device.type == "cpu" and launch.emulated() and forced.name == "cuda"
    if device.type != "cuda" and not on_cpu:
        return f"the cuda backend takes tensors on a GPU, not on {device}"
    if (reason := launch.missing()) is not None:
        return reason
    if device.type == "cuda" and (reason := _unsupported_gpu(device)) is not None:
        return reason
    return unsupported_dtype("cuda", operator, dtype)


@functools.cache
def _unsupported_gpu(device: torch.device) -> str | None:
    """Why the kernels cannot run on this GPU, or None if they can."""
    if torch.version.hip is not None:
        return f"the CUDA kernels run on NVIDIA's GPUs, not on {device}"
    if (reason := too_old("the CUDA kernels", device)) is not None:
        return reason
    error = str(launch.kernels().driver_error())
    return f"the CUDA kernels cannot run: {error}" if error else None


def takes(a: Arguments) -> bool:
    """Whether the kernels of gcsa take these arguments: they have the spatial gate with its sigmoid only."""
    return a.gate_sigmoid


_operators = Operators(gates)


def gcsa_inference(a: Arguments) -> Tensor:
    """See backends/reference.py. Small maps take one launch, all others one or more a layer."""
    return small.small_gcsa(a) if small.takes(a) else _operators.attention.inference(a)


operators: Mapping[str, Callable[..., Any]] = {
    **_operators.functions(),
    "gcsa_inference": gcsa_inference,
    "spectrogram_mask": mask.spectrogram_mask,
    "spectrogram_mask_": mask.spectrogram_mask_,
}

__all__ = ["operators", "takes", "unsupported"]
