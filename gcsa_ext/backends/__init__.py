"""The backends, and the choice of the one that computes an operator.

A backend is a module with the attributes of the protocol `Backend`. The backend "reference" (plain PyTorch,
see gcsa_ext/reference.py) has all operators and runs on every device. It computes the operators that another
backend lacks.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from gcsa_ext.backends import cpu, cuda, forced, native, proof, reference, triton
from gcsa_ext.backends.operands import Arguments

_warned: set[str] = set()


class Backend(Protocol):
    """The attributes of a backend."""

    @property
    def operators(self) -> Mapping[str, Callable[..., Any]]:
        """The functions that the backend has, by the name of the operator.

        Their arguments have been checked by gcsa_ext/ops. They return new tensors, and None for a gradient
        that is not needed. gcsa_ext/backends/reference.py has and documents all of them.
        """

    def unsupported(self, operator: str, device: torch.device, dtype: torch.dtype, /) -> str | None:
        """Why the backend cannot run `operator` on tensors of this device and dtype, or None if it can.

        This predicate both selects the backend and words the reason.
        """

    def takes(self, a: Arguments, /) -> bool:
        """Whether the backend's functions of gcsa take these arguments. The reference computes all others."""


_BACKENDS: dict[str, Backend] = {"cpu": cpu, "triton": triton, "cuda": cuda, "reference": reference}
ORDER = tuple(_BACKENDS)
"""The backends, best first."""


def _backend(name: str) -> Backend:
    """The backend of this name, or ValueError."""
    if name not in _BACKENDS:
        raise ValueError(
            f"unknown backend {name!r} (use_backend or GCSA_EXT_BACKEND): expected one of {', '.join(ORDER)}"
        )
    return _BACKENDS[name]


def unsupported(backend: str, operator: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why `backend` cannot run `operator` on tensors of this device and dtype, or None if it can.

    Raises:
        ValueError: there is no such backend.
    """
    return _backend(backend).unsupported(operator, device, dtype)


def choose(
    operator: str,
    device: torch.device,
    dtype: torch.dtype,
    warn: bool = True,
    x: Tensor | None = None,
) -> str:
    """The name of the backend that runs `operator` on tensors of this device and dtype.

    Args:
        operator: the name of the operator.
        device, dtype: of the operator's first tensor.
        warn: warn if only the reference can run it; once for each reason.
        x: the map or spectrogram whose layout the result has. With it the kernels of a backend for GPUs
            must also agree with the reference, which their first use compares; see backends/proof.py.

    Raises:
        RuntimeError: the backend forced by `use_backend` or GCSA_EXT_BACKEND cannot run it; the message says
            why.
    """
    if forced.name is not None:
        reason = unsupported(forced.name, operator, device, dtype)
        if reason is None and x is not None and forced.name in proof.BACKENDS:
            reason = proof.failure(forced.name, operator, x, forced=True)
        if reason is not None:
            raise RuntimeError(f"{operator}: backend {forced.name!r} is forced but cannot run: {reason}")
        return forced.name
    reasons = []
    for name in ORDER:
        reason = _BACKENDS[name].unsupported(operator, device, dtype)
        if reason is None and x is not None and name in proof.BACKENDS:
            reason = proof.failure(name, operator, x)
            warn = warn and reason is None  # proof.failure has warned
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
    """The function that computes `operator` for x, the map or spectrogram whose layout the result has.

    It is that of the backend which `choose` names, or that of the reference if this backend lacks it.
    """
    return _function(choose(operator, x.device, x.dtype, warn, x), operator)


def select_gcsa(operator: str, a: Arguments, warn: bool = True) -> Callable[..., Any]:
    """`select` for gcsa, gcsa_inference, gcsa_backward and saved_shape, which a backend may have for some
    arguments only, by its predicate `takes`."""
    name = choose(operator, a.x.device, a.x.dtype, warn, a.x)
    return _function(name if _BACKENDS[name].takes(a) else "reference", operator)


def _function(name: str, operator: str) -> Callable[..., Any]:
    function = _BACKENDS[name].operators.get(operator)
    return reference.function(operator) if function is None else function


def has_kernels(operator: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `choose` names another backend than the reference, without a proof. Never warns."""
    for name in ORDER if forced.name is None else (forced.name,):
        if name != "reference" and unsupported(name, operator, device, dtype) is None:
            return True
    return False


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one backend for all operators of this process while the context lasts.

    The backend is chosen when an operator runs. A backward pass is therefore forced only if it runs inside
    the context, and a compiled graph is forced even if it was compiled outside.

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
    "Backend",
    "choose",
    "cpu",
    "cuda",
    "forced",
    "forced_backend",
    "has_kernels",
    "native",
    "proof",
    "reference",
    "select",
    "select_gcsa",
    "triton",
    "unsupported",
    "use_backend",
]
