"""Who computes an operator: the choice of a backend, and the reason where one cannot run.

A backend is a module with the functions of the operators and `unsupported(operator, device, dtype) -> str |
None`: the one predicate that both selects it and words the reason. "reference" is plain PyTorch
(gcsa_ext/reference.py) and runs everything.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator

import torch

from gcsa_ext.backends import cpu, native

ORDER = ("cpu", "reference")
"""The backends, best first."""

_forced: str | None = os.environ.get("GCSA_EXT_BACKEND") or None
_warned: set[str] = set()


def unsupported(backend: str, operator: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why `backend` cannot run `operator` on tensors of that device and dtype, or None if it can.

    Raises:
        ValueError: there is no such backend.
    """
    if backend == "reference":
        return None
    if backend == "cpu":
        return cpu.unsupported(operator, device, dtype)
    raise ValueError(
        f"unknown backend {backend!r} (use_backend or GCSA_EXT_BACKEND): expected one of {', '.join(ORDER)}"
    )


def select(operator: str, device: torch.device, dtype: torch.dtype) -> str:
    """The name of the backend that runs `operator` on tensors of that device and dtype.

    Raises:
        RuntimeError: the backend forced by `use_backend` or GCSA_EXT_BACKEND cannot run it; the message says
            why.
    """
    if _forced is not None:
        reason = unsupported(_forced, operator, device, dtype)
        if reason is not None:
            raise RuntimeError(f"{operator}: backend {_forced!r} is forced but cannot run: {reason}")
        return _forced
    reasons = []
    for backend in ORDER:
        reason = unsupported(backend, operator, device, dtype)
        if reason is None:
            break
        reasons.append(reason)
    if backend == "reference" and reasons[0] not in _warned:
        _warned.add(reasons[0])
        warnings.warn(
            f"gcsa_ext: plain PyTorch computes {operator}, correct but slower: {'; '.join(reasons)}. "
            "`gcsa-ext info` tells more.",
            RuntimeWarning,
            stacklevel=2,
        )
    return backend


def runs_on(backend: str, operator: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `select` picks that backend; without its warning."""
    return (_forced or backend) == backend and unsupported(backend, operator, device, dtype) is None


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one backend for all operators, in this process, as long as the context lasts.

    It acts on calls that run, forward and backward; a compiled graph asks for the backend whenever it runs.

    Args:
        name: "reference" or "cpu".

    Raises:
        ValueError: there is no such backend.
    """
    global _forced
    if name not in ORDER:
        unsupported(name, "", torch.device("cpu"), torch.float32)
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous


def forced_backend() -> str | None:
    """The backend forced by `use_backend` or GCSA_EXT_BACKEND, or None."""
    return _forced


__all__ = ["ORDER", "cpu", "forced_backend", "native", "runs_on", "select", "unsupported", "use_backend"]
