"""When plain PyTorch has to compute, since an operator of gcsa_ext would fail or be out of place."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def needs_plain_torch() -> bool:
    """Whether a transform of torch.func, forward-mode differentiation, an export or a trace is active.

    The operators have a formula for plain backward differentiation alone. Under a transform they would fail,
    or drop the tangent without an error, so callers compute with gcsa_ext/reference.py instead, which is
    always right. A graph that leaves this process (torch.export, torch.onnx, torch.jit.trace) has standard
    operators alone, which run where gcsa_ext is not installed. torch.compile keeps the operators.

    Three names below are private. The result is True if the first is missing.
    """
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return (
        active is None
        or active()
        or getattr(forward_ad, "_current_level", 0) >= 0
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        or _exports()
    )


def _exports() -> bool:
    """Whether torch.export runs.

    TorchDynamo takes the public torch.compiler.is_exporting() for True in whatever it traces. Where the
    private flag is missing, an export that uses TorchDynamo (strict=True) is not found out.
    """
    flag: bool | None = getattr(torch.compiler, "_is_exporting_flag", None)
    if flag is None:
        return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
    return flag
