"""The proof of the kernels for GPUs: the first use of an operator compares small cases with the reference.

A proof holds for one `Subject`: an operator with its gradient, on a device, for a dtype and a layout. It
computes two random cases, forward and backward, by the kernels and by the reference in float64 on the CPU.
Kernels that differ by more than rounding, or raise an error, are not used in this process: the next backend
or the reference computes, with one warning. Later calls look the outcome up in `results`.

A proof runs in a thread of its own. PyTorch keeps grad mode, inference mode, autocast, the modes that
intercept operators, and the default device per thread, so that those of the caller neither matter nor change.
Random numbers come from a generator of the proof. The reference runs on the CPU because autograd computes the
gradients of each GPU in one thread, which may be the one that waits for the proof.
"""

from __future__ import annotations

import os
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from gcsa_ext.backends import cuda, reference, triton
from gcsa_ext.backends.gpu import capture
from gcsa_ext.backends.gpu.support import MASK_DTYPES, convolution_tf32, tf32
from gcsa_ext.backends.operands import Arguments, ChannelGateArguments, NormGateArguments
from gcsa_ext.layout import memory_format

BACKENDS: Mapping[str, ModuleType] = {"triton": triton, "cuda": cuda}
"""The backends whose kernels are proved."""

FAMILIES: Mapping[str, str] = {
    "channel_gate": "channel_gate",
    "channel_gate_backward": "channel_gate",
    "gcsa": "gcsa",
    "gcsa_backward": "gcsa",
    "gcsa_inference": "gcsa",
    "norm_gate": "norm_gate",
    "norm_gate_backward": "norm_gate",
    "spectrogram_mask": "spectrogram_mask",
    "spectrogram_mask_": "spectrogram_mask",
}
"""The operators that one proof covers, by the operator that names the proof. Others have no kernels."""

TOLERANCES = {
    torch.float64: 2.0**-40,
    torch.float32: 2.0**-15,
    torch.bfloat16: 2.0**-5,
    torch.float16: 2.0**-7,
}
"""The largest error relative to the largest value: 8 to 32 times the floors of the tests of the project
(python_tests/helpers/accuracy.py), since the tests also allow for the errors of plain PyTorch."""

TF32_TOLERANCE = TOLERANCES[torch.float16]
"""That of float32 where tf32 is allowed, whose significand has as many bits as that of float16."""

enabled = os.environ.get("GCSA_EXT_PROOF") != "0"
"""Whether kernels are proved: not under GCSA_EXT_PROOF=0."""

on_cpu = False
"""Whether kernels that run on the CPU, interpreted or emulated, are proved as well. Tests set it."""


class Subject(NamedTuple):
    """What a proof holds for."""

    backend: str
    operator: str
    device: torch.device
    dtype: torch.dtype
    layout: torch.memory_format
    tf32: tuple[bool, bool]
    """Whether matrix products and convolutions of float32 values are rounded to tf32."""

    def __str__(self) -> str:
        dtype, layout = (str(value).removeprefix("torch.") for value in (self.dtype, self.layout))
        allowed = ", tf32 allowed" if any(self.tf32) else ""
        return f"{self.backend} {self.operator} on {self.device}, {dtype}, {layout}{allowed}"


results: dict[Subject, str | None] = {}
"""The outcome of every proof of this process: why it failed, or None if it passed."""

_lock = threading.Lock()
_postponed: set[Subject] = set()
"""The subjects whose proof had to wait, of which a warning has been given."""


def failure(backend: str, operator: str, x: Tensor, forced: bool = False) -> str | None:
    """Why the kernels of `operator` are not to be used on tensors like x, or None if they are.

    The first call for a `Subject` proves it. Kernels whose proof has to wait are not used either, with a
    warning, and the next call tries again.

    Args:
        backend: a name of `BACKENDS`, whose `unsupported` has no reason against x.
        operator: the name of an operator.
        x: the map or spectrogram whose layout the result has.
        forced: use kernels whose proof has to wait.
    """
    name = FAMILIES.get(operator)
    if name is None or not enabled or not (x.is_cuda or on_cpu):
        return None
    layout = torch.contiguous_format if name == "spectrogram_mask" else memory_format(x)
    subject = Subject(backend, name, x.device, x.dtype, layout, (tf32(x), convolution_tf32(x)))
    if subject not in results:
        why = _prove(subject, x)
        if why is not None:
            return None if forced else _postpone(subject, why)
    reason = results[subject]
    return None if reason is None else f"its kernels failed their proof: {subject}: {reason}"


def prove_all() -> None:
    """Prove every operator of every backend on every GPU, for every dtype and both layouts.

    Kernels are compiled, which may take minutes. The outcome is in `results`.
    """
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if on_cpu:
        devices.append(torch.device("cpu"))
    for backend, module in BACKENDS.items():
        for device in devices:
            for operator in _CASES:
                for dtype in MASK_DTYPES:
                    if module.unsupported(operator, device, dtype) is not None:
                        continue
                    for layout in (torch.contiguous_format, torch.channels_last):
                        x = torch.empty((1, 2, 2, 2), dtype=dtype, device=device, memory_format=layout)
                        failure(backend, operator, x, forced=True)


def _prove(subject: Subject, x: Tensor) -> str | None:
    """Add the outcome of a proof to `results`; returns why it has to wait, or None."""
    if capture.is_capturing(x):
        return "a CUDA graph is being captured; call the operator once before the capture"
    with _lock:
        if subject in results:
            return None
        try:
            with ThreadPoolExecutor(1, "gcsa_ext-proof") as thread:
                reason = thread.submit(_find_difference, subject).result()
        except torch.OutOfMemoryError as error:
            return f"memory ran out: {error}"
        results[subject] = reason
    if reason is not None:
        warnings.warn(
            f"gcsa_ext: kernels failed their proof and are not used: {subject}: {reason}. The next backend "
            "or plain PyTorch computes: correct, but it may be slower. gcsa_ext.info() lists all proofs.",
            RuntimeWarning,
            stacklevel=4,
        )
    return None


def _postpone(subject: Subject, why: str) -> str:
    """The reason against kernels whose proof has to wait; warns once for each subject."""
    reason = f"its kernels could not be proved yet: {subject}: {why}"
    if subject not in _postponed:
        _postponed.add(subject)
        warnings.warn(
            f"gcsa_ext: {reason}. Until then the next backend or plain PyTorch computes.",
            RuntimeWarning,
            stacklevel=4,
        )
    return reason


def _find_difference(subject: Subject) -> str | None:
    """How the kernels differ from the reference, or None where they agree; runs in a thread of its own."""
    operators, device = BACKENDS[subject.backend].operators, subject.device
    compute, cases = _CASES[subject.operator]
    tolerance = TF32_TOLERANCE if any(subject.tf32) else TOLERANCES[subject.dtype]
    if subject.operator == "spectrogram_mask":
        tolerance = 0.0  # masking copies bits
    with torch.no_grad(), capture.relaxed_capture_mode(), torch.cuda.device_of(torch.empty(0, device=device)):
        for arguments, grad in cases(_Random(subject.dtype, subject.layout)):
            exact = compute(reference.function, _each(_widen, arguments), grad.double())
            try:
                found = compute(
                    lambda name: operators.get(name) or reference.function(name),
                    _each(lambda tensor: tensor.to(device), arguments),
                    grad.to(device),
                )
                found = {name: None if value is None else value.cpu() for name, value in found.items()}
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # compilers and drivers raise exceptions of any class
                return textwrap.shorten(f"{type(error).__name__}: {error}", 800)
            difference = _compare(found, exact, tolerance)
            if difference is not None:
                return difference
    return None


_Results = dict[str, Tensor | None]
_Lookup = Callable[[str], Callable[..., Any]]
_Case = tuple[Any, Tensor]
"""The arguments of an operator, on the CPU, and the gradient of its result."""

_T = TypeVar("_T", bound=tuple[Any, ...])


def _each(change: Callable[[Tensor], Tensor], arguments: _T) -> _T:
    """The same arguments with every tensor changed."""
    return arguments._make(  # type: ignore[attr-defined,no-any-return]
        change(value) if isinstance(value, Tensor) else value for value in arguments
    )


def _widen(tensor: Tensor) -> Tensor:
    """A floating tensor in float64; an integer tensor as it is."""
    return tensor.double() if tensor.is_floating_point() else tensor


def _compare(found: _Results, exact: _Results, tolerance: float) -> str | None:
    """The first difference of two dicts of results that is larger than rounding, or None."""
    largest = max(float(value.abs().max()) for value in exact.values() if value is not None)
    for name, value in exact.items():
        if value is None:
            continue
        other = found[name]
        if other is None or other.shape != value.shape:
            return (
                f"{name}: expected shape {tuple(value.shape)}, got {None if other is None else other.shape}"
            )
        error = float((other.double() - value).abs().max())
        allowed = tolerance * max(float(value.abs().max()), largest / 16)
        if not error <= allowed:  # also where the error is NaN
            return f"{name}: off by {error:.3g}, allowed are {allowed:.3g}"
    return None


class _Random:
    """Random tensors on the CPU, the same ones in every proof."""

    def __init__(self, dtype: torch.dtype, layout: torch.memory_format) -> None:
        self._dtype, self._layout = dtype, layout
        self._generator = torch.Generator("cpu").manual_seed(21)

    def _make(self, make: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        return make(shape, generator=self._generator, dtype=torch.float64, device="cpu")

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normally distributed numbers of a standard deviation of `scale`."""
        return (scale * self._make(torch.randn, shape)).to(self._dtype)

    def positive(self, *shape: int) -> Tensor:
        """Numbers from 0.5 to 1.5."""
        return (self._make(torch.rand, shape) + 0.5).to(self._dtype)

    def map(self, *shape: int) -> Tensor:
        """A normally distributed map (N, C, H, W) in the layout of the proof."""
        return self.normal(*shape).contiguous(memory_format=self._layout)

    def kinks(self, units: int) -> Tensor:
        """Biases that keep a unit on one side of the kink of relu, where rounding would switch its gradient.

        Every other unit is on.
        """
        signs = torch.tensor([1.0, -1.0], dtype=torch.float64, device="cpu").repeat(units)[:units]
        return (4.0 * signs).to(self._dtype)


def _gate(random: _Random, channels: int, hidden: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weights w1, b1, w2, b2 of a channel gate."""
    return (
        random.normal(hidden, channels, scale=channels**-0.5),
        random.kinks(hidden),
        random.normal(channels, hidden, scale=0.25 * hidden**-0.5),
        random.normal(channels),
    )


def _compute_channel_gate(function: _Lookup, a: ChannelGateArguments, grad: Tensor) -> _Results:
    grads = function("channel_gate_backward")(grad, *a, True, True)
    return {"result": function("channel_gate")(*a), **_gradients(a, grads)}


def _channel_gates(random: _Random) -> Iterator[_Case]:
    """Few channels, which a block of threads holds, and many; rows on odd addresses and on even ones."""
    shapes = ((5, 20, 9, 7), 2, True), ((2, 136, 8, 8), 4, False)
    for shape, groups, sigmoid in shapes:
        gate = _gate(random, shape[1], shape[1] // 4)
        x, grad = random.map(*shape), random.map(*shape)
        yield ChannelGateArguments(x, *gate, groups=groups, sigmoid=sigmoid), grad


def _compute_norm_gate(function: _Lookup, a: NormGateArguments, grad: Tensor) -> _Results:
    out, mean, var = function("norm_gate")(*a)
    affine = a.weight is not None, a.bias is not None
    grads = function("norm_gate_backward")(
        grad, *a._replace(mean=mean, var=var), a.mean is None, True, True, *affine
    )
    return {"result": out, "mean": mean, "variance": var, **_gradients(a, grads)}


def _norm_gates(random: _Random) -> Iterator[_Case]:
    """Statistics of the batch, and given ones without weight and bias."""
    u, z, grad = (random.map(5, 20, 9, 7) for _ in range(3))
    weight, bias = random.normal(20), random.normal(20)
    yield NormGateArguments(u=u, z=z, weight=weight, bias=bias, mean=None, var=None, eps=1e-3), grad
    u, z, grad = (random.map(2, 136, 8, 8) for _ in range(3))
    mean, var = random.normal(136), random.positive(136)
    yield NormGateArguments(u=u, z=z, weight=None, bias=None, mean=mean, var=var, eps=1e-3), grad


def _compute_gcsa(function: _Lookup, a: Arguments, grad: Tensor) -> _Results:
    out, u1, u2, mean1, var1, mean2, var2 = function("gcsa")(a)
    found = {"result": out, "mean1": mean1, "variance1": var1, "mean2": mean2, "variance2": var2}
    batch_statistics = a.mean1 is None, a.mean2 is None
    if not any(batch_statistics):
        found["result in evaluation"] = function("gcsa_inference")(a)
    used = a._replace(mean1=mean1, var1=var1, mean2=mean2, var2=var2)
    need = [tensor is not None for tensor in a.differentiable]
    grads = function("gcsa_backward")(grad, used, u1, u2, batch_statistics, need)
    return {**found, **_gradients(a, grads)}


def _attentions(random: _Random) -> Iterator[_Case]:
    """As in training and in evaluation, and layers as in a published module with every other setting."""
    yield _attention(random, (5, 20, 9, 7), 5, groups=2, sigmoid=True), random.map(5, 20, 9, 7)
    evaluation = _attention(random, (2, 136, 8, 8), 3, groups=4, sigmoid=False)
    evaluation = evaluation._replace(conv1_bias=None, norm2_weight=None, norm2_bias=None)
    yield _with_statistics(random, evaluation), random.map(2, 136, 8, 8)
    published = _attention(random, (3, 16, 9, 7), 5, groups=1, sigmoid=True, gate_groups=4, replicate=True)
    published = published._replace(
        b2=None,
        conv1_weight=published.conv1_weight[:, :8].contiguous(),  # two groups of inputs
        conv2_weight=published.conv2_weight[:, :2].contiguous(),
    )
    yield _with_statistics(random, published), random.map(3, 16, 9, 7)


def _with_statistics(random: _Random, a: Arguments) -> Arguments:
    """The arguments with given statistics in place of those of the batch."""
    m, C = a.hidden, a.x.shape[1]
    mean1, var1, mean2, var2 = random.normal(m), random.positive(m), random.normal(C), random.positive(C)
    return a._replace(mean1=mean1, var1=var1, mean2=mean2, var2=var2)


def _attention(random: _Random, shape: tuple[int, int, int, int], taps: int, **settings: Any) -> Arguments:
    """Arguments of gcsa with statistics of the batch."""
    C, h = shape[1], shape[1] // 4
    w1, b1, w2, b2 = _gate(random, C, h)
    return Arguments(
        x=random.map(*shape),
        w1=w1,
        b1=b1,
        w2=w2,
        b2=b2,
        conv1_weight=random.normal(h, C, taps, taps, scale=1 / (taps * C**0.5)),
        conv1_bias=random.normal(h),
        conv2_weight=random.normal(C, h, taps, taps, scale=1 / (taps * h**0.5)),
        conv2_bias=random.normal(C),
        norm1_weight=random.normal(h, scale=0.3),
        norm1_bias=random.kinks(h),
        norm2_weight=random.normal(C),
        norm2_bias=random.normal(C),
        mean1=None,
        var1=None,
        mean2=None,
        var2=None,
        eps1=1e-3,
        eps2=1e-3,
        **settings,
    )


class _MaskArguments(NamedTuple):
    """The arguments of reference.spectrogram_mask."""

    spectrogram: Tensor
    start: Tensor
    width: Tensor
    value: float
    time_bands: int
    fill: Tensor | None


def _compute_spectrogram_mask(function: _Lookup, a: _MaskArguments, grad: Tensor) -> _Results:
    masked = a.spectrogram.clone()
    function("spectrogram_mask_")(masked, *a[1:])
    # The gradient of the spectrogram is the gradient of the result, masked with 0.
    mask = function("spectrogram_mask")
    return {
        "result": mask(*a),
        "result in place": masked,
        "gradient of spectrogram": mask(grad, a.start, a.width, 0.0, a.time_bands, None),
    }


def _spectrogram_masks(random: _Random) -> Iterator[_Case]:
    """Bands of all samples, and of each sample, of bins and of frames, some of which reach outside."""
    shared, of_samples = ([3, 15], [4, 9]), ([[[0, 5]], [[9, 3]], [[16, 22]]], [[[1, 4]], [[0, 7]], [[2, 3]]])
    for (start, width), time_bands, fills in (
        (shared, 0, False),
        (of_samples, 0, False),
        (of_samples, 1, True),
    ):
        starts, widths = (torch.tensor(values, device="cpu") for values in (start, width))
        spectrogram, grad = random.normal(3, 2, 17, 23), random.normal(3, 2, 17, 23)
        fill = random.normal() if fills else None
        yield _MaskArguments(spectrogram, starts, widths, 0.5, time_bands, fill), grad


def _gradients(arguments: NamedTuple, grads: Any) -> _Results:
    """Gradients of the first arguments, by their names."""
    names = (f"gradient of {name}" for name in arguments._fields)
    return dict(zip(names, grads, strict=False))


_CASES: Mapping[str, tuple[Callable[..., _Results], Callable[[_Random], Iterator[_Case]]]] = {
    "channel_gate": (_compute_channel_gate, _channel_gates),
    "gcsa": (_compute_gcsa, _attentions),
    "norm_gate": (_compute_norm_gate, _norm_gates),
    "spectrogram_mask": (_compute_spectrogram_mask, _spectrogram_masks),
}
"""How each proof computes a case, and its cases."""
