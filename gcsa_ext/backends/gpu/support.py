"""Which GPUs and dtypes the kernels for GPUs support, and whether they multiply in tf32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MASK_DTYPES = (*DTYPES, torch.float64)


def unsupported_dtype(backend: str, operator: str, dtype: torch.dtype) -> str | None:
    """Why `backend` has no kernel of `operator` for `dtype`, or None if it has one."""
    dtypes = MASK_DTYPES if operator.startswith("spectrogram_mask") else DTYPES
    if dtype in dtypes:
        return None
    return f"the {backend} backend has {operator} for {', '.join(map(str, dtypes))}, not {dtype}"


def too_old(kernels: str, device: torch.device) -> str | None:
    """Why an NVIDIA GPU is missing or too old for `kernels`, or None if it is neither."""
    try:
        properties = torch.cuda.get_device_properties(device)
    except (RuntimeError, AssertionError) as error:  # no driver, no GPU, or a torch without CUDA
        return f"{kernels} cannot run on {device}: {error}"
    if properties.major >= 8:
        return None
    return f"{kernels} need compute capability 8.0, {device} has {properties.major}.{properties.minor}"


def tf32(x: Tensor) -> bool:
    """Whether float32 operands are rounded to tf32 before they are multiplied: where torch's own are."""
    if x.dtype != torch.float32:
        return False
    switch: Any = torch.backends.cuda.matmul
    # allow_tf32 raises an error once the newer fp32_precision was set. Both are slow to read.
    precision = getattr(switch, "fp32_precision", None)
    return bool(switch.allow_tf32 if precision is None else precision == "tf32")


def convolution_tf32(x: Tensor) -> bool:
    """Whether convolutions of x round float32 operands to tf32: where torch's own convolutions do."""
    if x.dtype != torch.float32 or not x.is_cuda:
        return False
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # allow_tf32 raises it once the newer fp32_precision was set
        return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]
