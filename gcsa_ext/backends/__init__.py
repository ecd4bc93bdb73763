"""Who computes an operator: the choice of a backend, and the reason where one cannot run.

A backend is a module with the functions of the operators (`Backend`) and `unsupported(operator, device,
dtype) -> str | None`: the one predicate that both selects it and words the reason. "reference" is plain
PyTorch (gcsa_ext/reference.py) and runs everything.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gcsa_ext.backends import cpu, cuda, forced, native, reference, triton

_warned: set[str] = set()


class Backend(Protocol):
    """The functions of a backend. They take checked arguments (see gcsa_ext/ops) and return new tensors, None
    for a gradient that is not needed; the docstrings of gcsa_ext/backends/cpu.py say more."""

    def unsupported(self, operator: str, device: torch.device, dtype: torch.dtype, /) -> str | None: ...

    def channel_gate(
        self, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, groups: int, sigmoid: bool, /
    ) -> Tensor: ...

    def channel_gate_backward(
        self,
        grad_out: Tensor,
        x: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        groups: int,
        sigmoid: bool,
        need_x: bool,
        need_weights: bool,
        /,
    ) -> tuple[Tensor | None, ...]: ...

    def norm_gate(
        self,
        u: Tensor,
        z: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        eps: float,
        /,
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def norm_gate_backward(
        self,
        grad_out: Tensor,
        u: Tensor,
        z: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
        batch_statistics: bool,
        need: tuple[bool, bool, bool, bool],
        /,
    ) -> tuple[Tensor | None, ...]: ...

    def conv2d_same(self, x: Tensor, weight: Tensor, bias: Tensor | None, /) -> Tensor: ...

    def conv2d_same_backward(
        self, grad_out: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool, /
    ) -> tuple[Tensor | None, Tensor | None]: ...

    def frequency_mask(
        self, spectrogram: Tensor, start: Tensor, width: Tensor, value: float, /
    ) -> Tensor: ...

    def frequency_mask_(self, spectrogram: Tensor, start: Tensor, width: Tensor, value: float, /) -> None: ...

    def saved_shape(self, channels: int, x: Tensor, /) -> tuple[int, ...]: ...

    def gcsa(
        self,
        x: Tensor,
        gate: Sequence[Tensor],
        convolutions: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
        norms: Sequence[Tensor | None],
        statistics: Sequence[Tensor | None],
        eps: tuple[float, float],
        groups: int,
        sigmoid: bool,
        mixed: bool,
        save: bool,
        /,
    ) -> tuple[Tensor, ...]: ...

    def gcsa_backward(
        self,
        grad_out: Tensor,
        x: Tensor,
        gate: Sequence[Tensor],
        convolutions: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
        norms: Sequence[Tensor | None],
        used: Sequence[Tensor | None],
        saved: tuple[Tensor, Tensor],
        batch_statistics: tuple[bool, bool],
        eps: tuple[float, float],
        groups: int,
        sigmoid: bool,
        mixed: bool,
        need: Sequence[bool],
        /,
    ) -> Sequence[Tensor | None]: ...


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


def select(
    operator: str,
    device: torch.device,
    dtype: torch.dtype,
    shape: Sequence[int] | None = None,
    warn: bool = True,
) -> Backend:
    """The backend that runs `operator` on tensors of that device and dtype.

    Args:
        shape: of the operator's first tensor, which PREFERRED_ON_GPUS asks for.
        warn: once for each reason, where only the reference can.

    Raises:
        RuntimeError: the backend forced by `use_backend` or GCSA_EXT_BACKEND cannot run it; the message says
            why.
    """
    if forced.name is not None:
        reason = unsupported(forced.name, operator, device, dtype)
        if reason is not None:
            raise RuntimeError(f"{operator}: backend {forced.name!r} is forced but cannot run: {reason}")
        return _backend(forced.name)
    reasons = []
    for name in _order(operator, device, dtype, shape):
        reason = unsupported(name, operator, device, dtype)
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
    return _backend(name)


def has_kernels(operator: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `select` picks another backend than the reference; without its warning."""
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
