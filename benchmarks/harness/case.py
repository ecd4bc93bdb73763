"""A case: one computation on inputs of one shape, by gcsa_ext and by its peers, with the same numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gcsa_ext import backends, use_backend

OURS, EAGER, COMPILED, CLONE = "gcsa_ext", "eager", "torch.compile", "clone"
"""Names of contenders."""

LAST = " channels_last"
"""End of the names of contenders whose maps are channels_last."""

FORWARD_TOLERANCE, BACKWARD_TOLERANCE, BFLOAT16_TOLERANCE = 1e-4, 1e-2, 1e-1
"""Largest `relative_error` against eager PyTorch. One ReLU whose input rounds to the other side of 0 changes
gradients by 1e-3; in bfloat16, and in deep networks, many do."""

Function = Callable[..., Tensor]
Make = Callable[[bool], tuple[Function, tuple[Tensor, ...], Tensor | None]]
"""make(plain) -> function or module, inputs, gradient of the result (None for a scalar); `plain` asks for the
peers' function."""

_NOTHING = contextlib.nullcontext()
_AUTOCAST = torch.autocast("cpu", torch.bfloat16)


@dataclass
class Call:
    """One step to be timed: a function of tensors, forward or forward and backward.

    Args:
        function: a function or module of `inputs` with one tensor as its result.
        inputs: of the function; gradients are taken of those that require one, and of the module's weights.
        grad: gradient of the result; None with `backward` takes that of a scalar.
        backward: also run the backward pass; otherwise no graph is recorded.
        autocast: bfloat16 autocast for the forward pass.
        backend: of gcsa_ext, forced for the whole step; None leaves the choice to gcsa_ext.
    """

    function: Function
    inputs: tuple[Tensor, ...]
    grad: Tensor | None = None
    backward: bool = False
    autocast: bool = False
    backend: str | None = None
    parameters: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = list(self.function.parameters()) if isinstance(self.function, nn.Module) else []

    def __call__(self) -> tuple[Tensor, ...]:
        """The result, and with `backward` the gradients after it."""
        with use_backend(self.backend) if self.backend else _NOTHING:
            with torch.set_grad_enabled(self.backward), _AUTOCAST if self.autocast else _NOTHING:
                out = self.function(*self.inputs)
            if not self.backward:
                return (out,)
            wanted = [t for t in (*self.inputs, *self.parameters) if t.requires_grad]
            return out.detach(), *torch.autograd.grad(out, wanted, self.grad)


@dataclass(eq=False)
class Case:
    """One row of a report.

    Args:
        operation: what is computed, the same words in every case of a group.
        shape: of the main input.
        make: see Make.
        backward: a step is forward and backward; else forward alone.
        dtype: of the arithmetic; rates are compared with the ceiling of this dtype.
        device: of inputs and weights.
        autocast: bfloat16 autocast on the CPU.
        operator: name of the operator for `backends.unsupported`; "" where several operators run.
        input_gradients: the backward pass includes the gradients of floating-point inputs.
        layouts: every contender also runs in channels_last.
        compiled: torch.compile is a peer.
        peer: name of the first peer, which defines the correct result.
        clone: also time a plain copy of the input, as a lower bound.
        flops: twice the multiply-adds of the direct algorithm per call, padding included; None where these do
            not bound the time.
        bytes: that must be read or written at least once per pass over the data; None likewise.
        tolerance: largest `relative_error` against the first peer.
        compiles_long: compiling the peer takes minutes, so that a report only does it when asked.
        quick: part of the quick report.
    """

    operation: str
    shape: Sequence[int]
    make: Make
    backward: bool = False
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    autocast: bool = False
    operator: str = ""
    input_gradients: bool = True
    layouts: bool = True
    compiled: bool = True
    peer: str = EAGER
    clone: bool = False
    flops: float | Callable[[], float] | None = None
    bytes: float | None = None
    tolerance: float = FORWARD_TOLERANCE
    compiles_long: bool = False
    quick: bool = False

    def __str__(self) -> str:
        return f"{self.operation} {shape_name(self.shape)}"

    @property
    def chosen_backend(self) -> str:
        """The backend that gcsa_ext takes for the operator unless another one is forced."""
        return backends.choose(self.operator, torch.device(self.device), self.dtype, warn=False)

    def ours(self, every_backend: bool = False) -> list[str]:
        """The contenders of gcsa_ext; ratios are about the first.

        Args:
            every_backend: also the backends that have kernels for the case but are not the chosen one.
        """
        names = [OURS]
        if every_backend:
            device, left_out = torch.device(self.device), ("reference", self.chosen_backend)
            names += [
                f"{OURS} {name}"
                for name in backends.ORDER
                if name not in left_out
                and backends.unsupported(name, self.operator, device, self.dtype) is None
            ]
        return names + [name + LAST for name in names if self.layouts]

    def peers(self) -> list[str]:
        """The contenders that gcsa_ext is compared with; the first one defines the correct result."""
        return [self.peer] + [self.peer + LAST] * self.layouts + [COMPILED] * self.compiled

    def build(self, contender: str, dtype: torch.dtype | None = None) -> Call:
        """The step of one contender; the random numbers are the same for all.

        Args:
            dtype: replaces the dtype of all floating-point inputs and weights.
        """
        torch.manual_seed(0)
        function, inputs, grad = self.make(not contender.startswith(OURS))
        if contender == CLONE:
            return Call(torch.clone, inputs[:1])
        is_module = isinstance(function, nn.Module)
        if dtype is not None:
            function = function.to(dtype) if is_module else function
            inputs = tuple(t.to(dtype) if t.is_floating_point() else t for t in inputs)
            grad = None if grad is None else grad.to(dtype)
        if contender.endswith(LAST):
            function = function.to(memory_format=torch.channels_last) if is_module else function
            inputs, grad = tuple(map(_channels_last, inputs)), None if grad is None else _channels_last(grad)
        needed = self.backward and self.input_gradients
        inputs = tuple(t.detach().requires_grad_(needed and t.is_floating_point()) for t in inputs)
        forced = next((name for name in backends.ORDER if name in contender.split()), None)
        call = Call(function, inputs, grad, self.backward, self.autocast, forced)
        if contender == COMPILED:
            torch.compiler.reset()  # torch stops compiling a function after a few shapes
            # As in eager mode, random numbers come from torch's generator: the check needs equal ones.
            call.function = torch.compile(function, dynamic=False, options={"fallback_random": True})
        return call


def shape_name(shape: Sequence[int]) -> str:
    """For example 8x64x56x56."""
    return "x".join(map(str, shape))


def passes(backward: bool) -> str:
    """The last words of an operation's name."""
    return "forward + backward" if backward else "forward"


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
