"""Who computes an operator: the choice of a backend, and the reason where one cannot run.

A backend is a module with `operators`, the functions it has, by name, and `unsupported(operator, device,
dtype) -> str | None`: the one predicate that both selects it and words the reason. What it lacks the backend
"reference" computes, plain PyTorch (gcsa_ext/reference.py), which has all operators and runs everywhere.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gcsa_ext.backends import cpu, cuda, forced, native, reference, triton

_warned: set[str] = set()


class Backend(Protocol):
    """What a backend has."""

    @property
    def operators(self) -> Mapping[str, Callable[..., Any]]:
        """Functions that take arguments which gcsa_ext/ops has checked, and return new tensors, None for a
        gradient that is not needed. gcsa_ext/backends/reference.py has them all."""

    def unsupported(self, operator: str, device: torch.device, dtype: torch.dtype, /) -> str | None: ...


_BACKENDS: dict[str, Backend] = {"cpu": cpu, "triton": triton, "cuda": cuda, "reference": reference}
ORDER = tuple(_BACKENDS)
"""The backends, best first."""


class Preference(NamedTuple):
    """A backend that was measured to be faster on GPUs than those before it in ORDER."""

    operator: str
    backend: str
    takes: Callable[[Sequence[int], torch.dtype], bool]
    """Of the shape and dtype of the operator's first tensor: whether it is one of these."""


PREFERRED_ON_GPUS: tuple[Preference, ...] = ()
"""Empty until it is measured on a GPU, both backends in one process:

    python benchmarks/gpu.py
"""


def _order(
    operator: str, device: torch.device, dtype: torch.dtype, shape: Sequence[int] | None
) -> tuple[str, ...]:
    if device.type == "cuda" and shape is not None:
        for preference in PREFERRED_ON_GPUS:
            if preference.operator == operator and preference.takes(shape, dtype):
                return preference.backend, *ORDER
    return ORDER


def _backend(name: str) -> Backend:
    if name not in _BACKENDS:
        raise ValueError(
            f"unknown backend {name!r} (use_backend or GCSA_EXT_BACKEND): expected one of {', '.join(ORDER)}"
        )
    return _BACKENDS[name]


def unsupported(backend: str, operator: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why `backend` cannot run `operator` on tensors of that device and dtype, or None if it can.

    Raises:
        ValueError: there is no such backend.
    """
    return _backend(backend).unsupported(operator, device, dtype)


def choose(
    operator: str,
    device: torch.device,
    dtype: torch.dtype,
    shape: Sequence[int] | None = None,
    warn: bool = True,
) -> str:
    """The name of the backend that runs `operator` on tensors of that device and dtype.

    Args:
        shape: of the operator's first tensor, for PREFERRED_ON_GPUS.
        warn: once for each reason, where only the reference can.

    Raises:
        RuntimeError: the backend forced by `use_backend` or GCSA_EXT_BACKEND cannot run it; the message says
            why.
    """
    if forced.name is not None:
        reason = unsupported(forced.name, operator, device, dtype)
        if reason is not None:
            raise RuntimeError(f"{operator}: backend {forced.name!r} is forced but cannot run: {reason}")
        return forced.name
    reasons = []
    for name in _order(operator, device, dtype, shape):
        reason = _BACKENDS[name].unsupported(operator, device, dtype)
        if reason is None:
            break
        reasons.append(reason)
    if name == "reference" and warn and reasons[0] not in _warned:
        _warned.add(reasons[0])
        warnings.warn(
            f"gcsa_ext: plain PyTorch computes {operator}, correct but slower: {'; '.join(reasons)}. "
            "`gcsa-ext info` tells more.",
            RuntimeWarning,
            stacklevel=2,
        )
    return name


def select(operator: str, x: Tensor, warn: bool = True) -> Callable[..., Any]:
    """The function that computes `operator` on a first tensor like x: that of the backend which `choose`
    names, or the reference's where this backend lacks it."""
    name = choose(operator, x.device, x.dtype, x.shape, warn)
    found = _BACKENDS[name].operators.get(operator)
    return reference.operators[operator] if found is None else found


def has_kernels(operator: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `choose` picks another backend than the reference; without its warning."""
    for name in ORDER if forced.name is None else (forced.name,):
        if name != "reference" and unsupported(name, operator, device, dtype) is None:
            return True
    return False


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one backend for all operators, in this process, as long as the context lasts.

    It acts on calls that run, forward and backward; a compiled graph asks for the backend whenever it runs.

    Args:
        name: "reference", "cpu", "triton" or "cuda".

    Raises:
        ValueError: there is no such backend.
    """
    _backend(name)
    previous, forced.name = forced.name, name
    try:
        yield
    finally:
        forced.name = previous


def forced_backend() -> str | None:
    """The backend forced by `use_backend` or GCSA_EXT_BACKEND, or None."""
    return forced.name


__all__ = [
    "ORDER",
    "PREFERRED_ON_GPUS",
    "Backend",
    "Preference",
    "choose",
    "cpu",
    "cuda",
    "forced",
    "forced_backend",
    "has_kernels",
    "native",
    "reference",
    "select",
    "triton",
    "unsupported",
    "use_backend",
]
