"""Backend "triton": kernels in Triton's language, for any GPU that Triton supports; compiled when first
called.

Importing this never fails: without Triton the reason is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from gcsa_ext.backends import forced

load_error: str | None = None
INTERPRETED = False
operators: Mapping[str, Callable[..., Any]] = {}
try:
    from gcsa_ext.backends.gpu import Operators
    from gcsa_ext.backends.triton import convolution, gates, mask, tuning
    from gcsa_ext.backends.triton.interpreter import INTERPRETED, compute_as_a_gpu_does

    operators = {
        **Operators(gates, convolution).functions(),
        "frequency_mask": mask.frequency_mask,
        "frequency_mask_": mask.frequency_mask_,
    }
    if INTERPRETED:
        compute_as_a_gpu_does()
except Exception as error:  # a broken installation raises anything
    load_error = f"triton cannot be imported: {error}"

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MASK_DTYPES = (*DTYPES, torch.float64)


def unsupported(operator: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot run `operator` on such tensors, or None if it can.

    What it can run it may still leave to torch in part: convolutions, see `convolution.unsupported`, and the
    channel gate of a perceptron with more than gates.LARGEST_HIDDEN hidden units.

    Under TRITON_INTERPRET=1 it takes tensors on the CPU too, for tests, but only when it is forced: nobody
    wants the interpreter's speed by accident.
    """
    if device.type not in ("cpu", "cuda"):
        return f"the triton backend takes tensors on a GPU, not on {device}"
    if device.type == "cpu" and not (INTERPRETED and forced.name == "triton"):
        return (
            "the triton backend takes tensors on a GPU, not on cpu (for tests those too: set "
            "TRITON_INTERPRET=1 before Python starts, and force the backend)"
        )
    if load_error is not None:
        return load_error
    if device.type == "cuda" and (reason := _too_old(device)) is not None:
        return reason
    dtypes = MASK_DTYPES if operator.startswith("frequency_mask") else DTYPES
    if dtype not in dtypes:
        return f"the triton backend has {operator} for {', '.join(map(str, dtypes))}, not {dtype}"
    return None


def _too_old(device: torch.device) -> str | None:
    if torch.version.hip is not None:
        return None
    found = torch.cuda.get_device_properties(device)
    if found.major >= 8:
        return None
    return f"Triton's kernels need compute capability 8.0, {device} has {found.major}.{found.minor}"


__all__ = ["convolution", "operators", "tuning", "unsupported"]
