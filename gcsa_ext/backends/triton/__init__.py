"""Backend "triton": kernels in Triton's language, for any GPU that Triton supports.

A kernel is compiled when it is first called. Importing this package never fails: without Triton, `load_error`
is the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from gcsa_ext.backends import forced
from gcsa_ext.backends.gpu import Operators
from gcsa_ext.backends.gpu.support import too_old, unsupported_dtype
from gcsa_ext.backends.operands import Arguments

load_error: str | None = None
INTERPRETED = False
operators: Mapping[str, Callable[..., Any]] = {}
try:
    from gcsa_ext.backends.triton import gates, mask, tuning
    from gcsa_ext.backends.triton.interpreter import INTERPRETED, compute_as_a_gpu_does

    operators = {
        **Operators(gates).functions(),
        "spectrogram_mask": mask.spectrogram_mask,
        "spectrogram_mask_": mask.spectrogram_mask_,
    }
    if INTERPRETED:
        compute_as_a_gpu_does()
except Exception as error:  # a broken installation may raise any exception
    load_error = f"triton cannot be imported: {error}"


def unsupported(operator: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot run `operator` on such tensors, or None if it can.

    Even where it can, torch computes a channel gate of more than gates.LARGEST_HIDDEN hidden units.

    Under TRITON_INTERPRET=1, which is for tests, the backend takes tensors on the CPU too, but only if it is
    forced, since the interpreter is very slow.
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
    if device.type == "cuda" and torch.version.hip is None:
        reason = too_old("Triton's kernels", device)
        if reason is not None:
            return reason
    return unsupported_dtype("triton", operator, dtype)


def takes(a: Arguments) -> bool:
    """The functions of gcsa take all arguments."""
    return True


__all__ = ["operators", "takes", "tuning", "unsupported"]
