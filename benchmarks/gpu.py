"""Test and measure gcsa_ext on a GPU: ``python benchmarks/gpu.py``, under 8 minutes on a fresh machine.

It builds the CUDA kernels into a folder of its own, if those that Python finds have none and there is nvcc;
runs the tests of python_tests/test_gpu.py; measures the two ceilings, how fast memory is copied and matrices
are multiplied, and then every operator and GCSA beside plain PyTorch (eager, eager channels_last,
torch.compile), each called directly and as a replayed CUDA graph. All contenders take turns in one process.
Then the convolution that has norm and gate behind it in one launch beside torch's and a pass of its own.
``--only convolution`` measures no more than that, and likewise every other word of an operation's name.

It writes report.json and report.md into a folder, anew after each result, with every bar met or missed. What
fails is left out, and the report says why.

Where more than one backend has kernels for the GPU, "gcsa_ext" is the one that is chosen, and
"gcsa_ext cuda" (or triton) another. The report ends with what to enter for PREFERRED_ON_GPUS in
gcsa_ext/backends and for FASTER in gcsa_ext/backends/triton/convolution.py.

``--sanitize`` runs the operators' tests on the CUDA kernels under NVIDIA's compute-sanitizer instead, which
finds accesses out of bounds (memcheck) and races in shared memory (racecheck).

Without a GPU, ``--dry-run`` runs all of it but tests, CUDA graphs, torch.compile and memory on the CPU, with
tiny maps: it tells whether the program works, and measures nothing of interest.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
if importlib.util.find_spec("gcsa_ext") is None:
    sys.path.insert(0, str(ROOT))

import plain  # noqa: E402
from cases import MAPS  # noqa: E402
from paired import relative_error  # noqa: E402

import gcsa_ext  # noqa: E402
from gcsa_ext import GCSA, backends, functional, info, use_backend  # noqa: E402
from gcsa_ext.backends import triton  # noqa: E402

Function = Callable[..., Tensor]
Step = Callable[[], tuple[Tensor, ...]]
OURS, EAGER = "gcsa_ext", "eager"
LARGE = 100e6
"""Bytes of a map from which on the caches hold little of a pass's data (L2 of an H200: 50 MB)."""
COMPILED = "torch.compile"
SANITIZED = "gate or mask or band or attention_in_16_bits or sizes_of_the_map"
"""Of the tests on a GPU those that run under compute-sanitizer, which takes many times as long."""


@dataclass
class Workload:
    """One row: an operator on a map or spectrogram of some shape.

    Args:
        operation: what is computed.
        shape: of the main input.
        dtype: of inputs and weights; a module's normalisations stay float32.
        backward: also the gradients of all inputs and weights.
        bytes: that must be moved at least, each pass over a map once; None where they do not bound the time.
        flops: twice the multiply-adds of the direct algorithm; None likewise.
        make: (plain) -> function or module and its inputs; `plain` asks for plain PyTorch's.
        layouts: whether channels_last is another way to run it.
        compiled: whether torch.compile, which takes its time, is a contender.
    """

    operation: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    backward: bool
    bytes: float | None
    flops: float | None
    make: Callable[[bool], tuple[Function, tuple[Tensor, ...]]]
    layouts: bool = True
    compiled: bool = False

    def __str__(self) -> str:
        passes = "forward + backward" if self.backward else "forward"
        name = str(self.dtype).removeprefix("torch.")
        return f"{self.operation} {passes} {name} {'x'.join(map(str, self.shape))}"

    @property
    def operator(self) -> str:
        return self.operation.split()[0].lower()

    def chosen_backend(self, device: torch.device) -> str:
        chosen = backends.select(self.operator, device, self.dtype, self.shape, warn=False)
        return next(name for name in backends.ORDER if getattr(backends, name) is chosen)

    def other_backends(self, device: torch.device) -> list[str]:
        """Those that have kernels for it, but for the one that is chosen."""
        names = [
            name
            for name in backends.ORDER
            if name != "reference" and backends.unsupported(name, self.operator, device, self.dtype) is None
        ]
        chosen = self.chosen_backend(device)
        return [name for name in names if name != chosen]

    def contenders(self, compilers: bool, device: str) -> list[str]:
        names = [EAGER, OURS, *(f"{OURS} {name}" for name in self.other_backends(torch.device(device)))]
        if self.layouts:
            names += [f"{name} channels_last" for name in names]
        return names + [COMPILED] * (self.compiled and compilers)


@dataclass
class Row:
    """What was found; seconds by contender, with " in a graph" behind the name of a replayed CUDA graph."""

    operation: str
    shape: tuple[int, ...]
    dtype: str
    backward: bool
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    bytes_per_second: float | None = None
    of_ceiling: float | None = None
    chosen: str = ""
    """Which backend "gcsa_ext" was."""


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def told(error: Exception) -> str:
    """In one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def make_step(workload: Workload, contender: str, dtype: torch.dtype | None = None) -> Step:
    """The workload as one contender runs it: a call that returns the result, and the gradients if wanted.

    Args:
        dtype: another one than the workload's, for the same random numbers.
    """
    torch.manual_seed(0)
    function, inputs = workload.make(not contender.startswith(OURS))
    if dtype is not None:
        function = function.to(dtype) if isinstance(function, nn.Module) else function
        inputs = tuple(t.to(dtype) if t.is_floating_point() else t for t in inputs)
    if contender.endswith("channels_last"):
        if isinstance(function, nn.Module):
            function = function.to(memory_format=torch.channels_last)
        inputs = tuple(t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in inputs)
    inputs = tuple(t.detach().requires_grad_(t.is_floating_point() and workload.backward) for t in inputs)
    wanted = [t for t in inputs if t.requires_grad]
    if isinstance(function, nn.Module):
        wanted += function.parameters()
    grad = torch.randn(workload.shape, dtype=torch.float32, device=inputs[0].device)
    grad = grad.to(inputs[0].dtype).to(memory_format=_format(inputs[0]))
    call = function
    if contender == COMPILED:
        torch.compiler.reset()  # or it would stop compiling after so many shapes
        call = torch.compile(function, dynamic=False)

    forced = [name for name in backends.ORDER if name in contender.split()]

    def step() -> tuple[Tensor, ...]:
        with use_backend(forced[0]) if forced else contextlib.nullcontext():
            with torch.set_grad_enabled(workload.backward):
                out = call(*inputs)
            if not workload.backward:
                return (out,)
            return out.detach(), *torch.autograd.grad(out, wanted, grad)

    return step


def _format(x: Tensor) -> torch.memory_format:
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def captured(step: Step) -> Step:
    """The step as a CUDA graph; returns its replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return results

    return replay


def time_in_turns(calls: dict[str, Callable[[], object]], rounds: int, least: float) -> dict[str, float]:
    """Median seconds per call over rounds, in which all are called for `least` seconds each, in random
    order."""

    def run(call: Callable[[], object], times: int) -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(times):
            call()
        synchronize()
        return (time.perf_counter() - start) / times

    times = {name: max(1, math.ceil(least / run(call, 3))) for name, call in calls.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            found[name].append(run(calls[name], times[name]))
    return {name: statistics.median(seconds) for name, seconds in found.items()}


@dataclass
class Ceilings:
    """What the device reaches: bytes per second read and written by a large copy, FLOP per second by
    dtype."""

    bandwidth: float
    rate: dict[str, float]

    @classmethod
    def measure(cls, device: str) -> Ceilings:
        numbers, size = (2**29, 8192) if device == "cuda" else (2**22, 256)
        source = torch.randn(numbers // 4, device=device)
        seconds = time_in_turns({"copy": partial(torch.empty_like(source).copy_, source)}, 7, 0.02)["copy"]
        rate = {}
        for dtype in (torch.bfloat16, torch.float32):
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            product = time_in_turns({"product": partial(torch.matmul, a, b)}, 5, 0.02)["product"]
            rate[str(dtype)] = 2 * size**3 / product
        return cls(2 * source.numel() * 4 / seconds, rate)


def _randn(shape: Sequence[int], dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(tuple(shape), device=device).to(dtype)


def channel_gate_workload(
    shape: tuple[int, ...], dtype: torch.dtype, backward: bool, device: str
) -> Workload:
    N, C, H, W = shape
    h = C // 4

    def make(is_plain: bool) -> tuple[Function, tuple[Tensor, ...]]:
        weights = [_randn(sizes, torch.float32, device) for sizes in ((h, C), (h,), (C, h), (C,))]
        inputs = [_randn(shape, dtype, device), *((w / w[0].numel() ** 0.5).to(dtype) for w in weights)]
        return partial(plain.channel_gate if is_plain else functional.channel_gate, groups=4), tuple(inputs)

    maps = 5 if backward else 2  # x, out; backward: grad_out, x, grad_x
    flops = (3 if backward else 1) * 4 * N * H * W * C * h
    bytes_ = maps * math.prod(shape) * dtype.itemsize
    return Workload(
        "channel_gate", shape, dtype, backward, bytes_, flops, make, compiled=dtype == torch.bfloat16
    )


def norm_gate_workload(shape: tuple[int, ...], dtype: torch.dtype, backward: bool, device: str) -> Workload:
    """In training: with the batch's statistics."""
    C = shape[1]

    def make(is_plain: bool) -> tuple[Function, tuple[Tensor, ...]]:
        u, z = _randn(shape, dtype, device), _randn(shape, dtype, device)
        weight, bias = torch.randn(C, device=device), torch.randn(C, device=device)
        statistics_ = torch.zeros(C, device=device), torch.ones(C, device=device)
        function = plain.norm_gate if is_plain else functional.norm_gate

        def call(u: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            mean, var = (s.to(weight.dtype) for s in statistics_)
            return function(u, z, weight, bias, mean, var, training=True)

        return call, (u, z, weight, bias)

    # u; u, z, out; backward twice grad_out, u, z, then grad_u, grad_z
    maps = 12 if backward else 4
    bytes_ = maps * math.prod(shape) * dtype.itemsize
    return Workload(
        "norm_gate train", shape, dtype, backward, bytes_, None, make, compiled=dtype == torch.bfloat16
    )


def frequency_mask_workload(
    shape: tuple[int, ...], dtype: torch.dtype, in_place: bool, backward: bool, device: str
) -> Workload:
    """One band per sample of spectrograms (N, C, freq, time)."""
    widest = shape[2] // 4
    generator = torch.Generator().manual_seed(0)
    width = torch.randint(1, widest, (*shape[:2], 1), generator=generator)
    start = torch.randint(shape[2] - widest, width.shape, generator=generator)
    masked = width.double().mean().item() / shape[2]
    name = "frequency_mask_" if in_place else "frequency_mask"

    def make(is_plain: bool) -> tuple[Function, tuple[Tensor, ...]]:
        function = getattr(plain if is_plain else functional, name)
        if is_plain:
            bins = torch.arange(shape[2], device=device).unsqueeze(-1)

            def function(x: Tensor, start: Tensor, width: Tensor) -> Tensor:
                inside = (bins >= start.unsqueeze(-1)) & (bins < (start + width).unsqueeze(-1))
                return x.masked_fill_(inside, 0.0) if in_place else x.masked_fill(inside, 0.0)

        return function, (_randn(shape, dtype, device), start.to(device), width.to(device))

    share = masked if in_place else 2 - masked  # masked bins are written, others read and written
    bytes_ = (2 if backward else 1) * share * math.prod(shape) * dtype.itemsize
    return Workload(name, shape, dtype, backward, bytes_, None, make, layouts=False, compiled=not in_place)


def gcsa_workload(shape: tuple[int, ...], dtype: torch.dtype, training: bool, device: str) -> Workload:
    """The module, forward and backward in training, else forward."""
    N, C, H, W = shape
    h = C // 4

    def make(is_plain: bool) -> tuple[Function, tuple[Tensor, ...]]:
        module: nn.Module = GCSA(C).to(device).train(training)
        module = plain.plain_copy(module) if is_plain else module
        for child in module.modules():
            if not isinstance(child, nn.BatchNorm2d):
                for parameter in child.parameters(recurse=False):
                    parameter.data = parameter.data.to(dtype)
        return module, (_randn(shape, dtype, device),)

    flops = (3 if training else 1) * 2 * N * H * W * (2 * C * h + 2 * 49 * C * h)
    name = f"GCSA {'train' if training else 'eval'}"
    compiled = dtype == torch.bfloat16 and N > 1
    return Workload(name, shape, dtype, training, None, flops, make, compiled=compiled)


def workloads(device: str) -> Iterator[Workload]:
    """In the order of what matters most, for the time may run out: first those that have bars."""
    tiny = device == "cpu"
    dtypes = (torch.bfloat16, torch.float32)
    sizes = [(16, 6, 5)] if tiny else MAPS
    for size in sizes:
        yield gcsa_workload((2 if tiny else 256, *size), torch.bfloat16, True, device)
    for dtype in dtypes:
        for backward in (False, True):
            shape = (2, 16, 5, 6) if tiny else (256, 64, 56, 56)
            yield channel_gate_workload(shape, dtype, backward, device)
            yield norm_gate_workload(shape, dtype, backward, device)
        shape = (4, 1, 12, 40) if tiny else (2048, 1, 128, 1024)
        for in_place, backward in ((False, False), (False, True), (True, False)):
            yield frequency_mask_workload(shape, dtype, in_place, backward, device)
    for N in (1, 8):
        for dtype in dtypes:
            for size in sizes:
                yield gcsa_workload((N, *size), dtype, False, device)
    if not tiny:
        for dtype in dtypes:
            for backward in (False, True):
                yield channel_gate_workload((256, 128, 56, 56), dtype, backward, device)
                yield norm_gate_workload((256, 128, 56, 56), dtype, backward, device)
        for size in sizes:
            yield gcsa_workload((256, *size), torch.float32, True, device)
        for size in ((256, 14, 14), (512, 7, 7)):
            for backward in (False, True):
                yield channel_gate_workload((256, *size), torch.bfloat16, backward, device)
                yield norm_gate_workload((256, *size), torch.bfloat16, backward, device)


def measure(workload: Workload, ceilings: Ceilings, device: str, rounds: int, compilers: bool) -> Row:
    """Errors against float64, then times of all contenders in turn."""
    row = Row(workload.operation, workload.shape, str(workload.dtype), workload.backward)
    row.chosen = workload.chosen_backend(torch.device(device))
    # Trying all of cuDNN's convolutions in float64 would take longer than all that is measured.
    with torch.backends.cudnn.flags(benchmark=False):
        exact = [t.float() for t in make_step(workload, EAGER, torch.float64)()]
    calls: dict[str, Callable[[], object]] = {}
    for contender in workload.contenders(compilers, device):
        try:
            step = make_step(workload, contender)
            error = relative_error([t.float() for t in step()], exact)
            row.errors[contender] = error
            if not error <= 4 * row.errors.get(EAGER, error) + 0.02:  # NaN too
                raise ArithmeticError(
                    f"error {error:.1e} against float64, eager's {row.errors.get(EAGER, math.nan):.1e}"
                )
            calls[contender] = step
            if device == "cuda":
                calls[f"{contender} in a graph"] = captured(step)
        except Exception as error:  # a contender that fails is left out, and the report says so
            row.left_out[contender] = told(error)
            synchronize()
    del exact
    row.seconds = time_in_turns(calls, rounds, 0.005)
    ours = [seconds for name, seconds in row.seconds.items() if name.startswith(OURS)]
    if ours and workload.bytes is not None:
        row.bytes_per_second = workload.bytes / min(ours)
    if ours:
        least = max(
            (workload.bytes or 0.0) / ceilings.bandwidth,
            (workload.flops or 0.0) / ceilings.rate[str(workload.dtype)],
        )
        row.of_ceiling = least / min(ours)
    return row


def training_memory(workload: Workload, contender: str) -> dict[str, Any]:
    """Bytes of a training step on the GPU beside inputs and weights: kept for the backward pass, and peak."""
    torch.manual_seed(0)
    function, (x,) = workload.make(not contender.startswith(OURS))
    x.requires_grad_()
    for _ in range(2):  # the first step compiles, and libraries take their workspaces
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = function(x)
        kept = torch.cuda.memory_allocated() - before - out.nbytes
        grads = torch.autograd.grad(out, [x, *function.parameters()], torch.ones_like(out))
        peak = torch.cuda.max_memory_allocated() - before
        del out, grads
    return {"shape": workload.shape, "contender": contender, "input": x.nbytes, "kept": kept, "peak": peak}


FIRST_STEP = """
import sys, time, torch
from gcsa_ext import GCSA
shape, dtype = eval(sys.argv[1]), getattr(torch, sys.argv[2])
module = GCSA(shape[1]).to("cuda", dtype)
x = torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True)
torch.nn.functional.conv2d(x, module.spatial_attention[0].weight, padding=3).sum().backward()
torch.cuda.synchronize()
start = time.perf_counter()
module(x).sum().backward()
torch.cuda.synchronize()
print(time.perf_counter() - start)
"""


def package_environment() -> dict[str, str]:
    """For a process that is to find the gcsa_ext that this one has found, wherever it is started."""
    places = [str(Path(gcsa_ext.__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, places))}


def first_call(backend: str, shape: tuple[int, ...], dtype: str) -> float:
    """Seconds of the first training step of a process for which nothing is compiled yet, after torch's own
    start."""
    with tempfile.TemporaryDirectory() as cache:
        result = subprocess.run(
            [sys.executable, "-c", FIRST_STEP, repr(shape), dtype],
            env={**package_environment(), "TRITON_CACHE_DIR": cache, "GCSA_EXT_BACKEND": backend},
            cwd=cache,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    if result.returncode != 0:
        raise RuntimeError((result.stderr.strip().splitlines() or ["no output"])[-1])
    return float(result.stdout)


def first_calls() -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Of Triton the kernels that take longest to compile, too."""
    cuda = torch.device("cuda")
    for name in ("triton", "cuda"):
        if backends.unsupported(name, "gcsa", cuda, torch.float32) is None:
            yield name, (8, 64, 56, 56), "float32"
    yield "triton", (8, 512, 7, 7), "bfloat16"


@dataclass
class Convolution:
    """Seconds of a convolution with norm and gate, as CUDA graphs: torch's and a pass, and in one launch."""

    shape_class: str
    shape: tuple[int, ...]
    seconds: dict[str, float]
    error: float

    @property
    def ratio(self) -> float:
        return self.seconds["torch"] / self.seconds["one launch"]


def convolution_shapes(device: str) -> Iterator[tuple[tuple[int, ...], int, torch.dtype]]:
    """Shapes of x, filters and dtypes: both convolutions of an attention."""
    tiny = device == "cpu"
    for dtype, batches in ((torch.bfloat16, (1, 8, 256)), (torch.float32, (1, 8))):
        for N in (1,) if tiny else batches:
            for C, H, W in [(16, 6, 5)] if tiny else MAPS:
                yield (N, C, H, W), C // 4, dtype
                yield (N, C // 4, H, W), C, dtype


def compare_convolutions(
    shape: tuple[int, ...], filters: int, dtype: torch.dtype, device: str, rounds: int
) -> Convolution:
    """The first convolution of an attention has fewer filters than channels and a ReLU behind its norm."""
    N, C, H, W = shape
    x = _randn(shape, dtype, device)
    layout = backends.gpu.convolution_layout(x)
    x = x.to(memory_format=layout)
    z = _randn((N, filters, H, W), dtype, device).to(memory_format=layout) if filters > C else None
    weight = (_randn((filters, C, 7, 7), torch.float32, device) / (49 * C) ** 0.5).to(dtype)
    offset, scale, shift, mean = (_randn((filters,), torch.float32, device) for _ in range(4))
    norm = triton.gates.Norm(scale, shift, mean, torch.rand_like(mean) + 0.5, offset, 1e-5)
    inside, taps = weight.to(memory_format=layout), weight.to(memory_format=torch.channels_last)

    def torchs() -> tuple[Tensor, ...]:
        u = torch.nn.functional.conv2d(x, inside, padding=3).contiguous(memory_format=layout)
        return (triton.gates.norm_forward(u, z, norm, layout, layout),)

    def one_launch() -> tuple[Tensor, ...]:
        return (triton.convolution.convolution_norm(x, taps, z, norm, layout, layout),)

    steps: dict[str, Step] = {"torch": torchs, "one launch": one_launch}
    with torch.no_grad():
        error = relative_error([t.float() for t in one_launch()], [t.float() for t in torchs()])
        calls: dict[str, Callable[[], object]] = dict(steps)
        if device == "cuda":
            calls = {name: captured(step) for name, step in steps.items()}
        seconds = time_in_turns(calls, rounds, 0.003)
    return Convolution(repr(triton.convolution.ShapeClass.of(x, weight)), shape, seconds, error)


@dataclass
class Bar:
    """Something that is demanded: at least (or at most) so much of something."""

    what: str
    found: float
    bar: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.found <= self.bar if self.at_most else self.found >= self.bar


def fastest(row: Row, name: str, graph: bool) -> float | None:
    """Seconds of a contender in its faster memory layout, called directly or as a graph."""
    end = " in a graph" if graph else ""
    names = (f"{name}{end}", f"{name} channels_last{end}")
    return min((row.seconds[n] for n in names if n in row.seconds), default=None)


def bars(report: dict[str, Any]) -> list[Bar]:
    """All bars for which something was measured."""
    found = []

    def ratio(row: Row, what: str, peer: str, bar: float, graph: bool) -> None:
        ours, other = fastest(row, OURS, graph), fastest(row, peer, graph)
        if ours is not None and other is not None:
            shape = "x".join(map(str, row.shape))
            found.append(Bar(f"{what} {shape} {row.dtype}: speed over {peer}'s", other / ours, bar))

    for row in report["rows"]:
        bytes_ = math.prod(row.shape) * getattr(torch, row.dtype.removeprefix("torch.")).itemsize
        if row.bytes_per_second is not None and bytes_ >= LARGE:
            passes = "forward + backward" if row.backward else "forward"
            what = f"{row.operation} {passes} {'x'.join(map(str, row.shape))} {row.dtype}"
            share = row.bytes_per_second / report["ceilings"].bandwidth
            found.append(Bar(f"{what}: share of the copy bandwidth", share, 0.8))
        if row.operation == "GCSA train" and row.dtype == "torch.bfloat16":
            ratio(row, "GCSA forward + backward", EAGER, 1.5, False)
            ratio(row, "GCSA forward + backward", COMPILED, 1.15, False)
        if row.operation == "GCSA eval":
            ratio(row, "GCSA eval, CUDA graphs", EAGER, 2.0, True)
    peaks = {(m["shape"], m["contender"]): m["peak"] for m in report["memory"]}
    for (shape, contender), peak in peaks.items():
        if contender == OURS and (shape, EAGER) in peaks:
            what = f"memory of a training step {'x'.join(map(str, shape))}: peak over eager's"
            found.append(Bar(what, peak / peaks[shape, EAGER], 0.5, at_most=True))
    for what, seconds in report["first_call"].items():
        found.append(Bar(f"first training step, nothing compiled, {what}: seconds", seconds, 10.0, True))
    return found


def pytest_command(*options: str) -> list[str]:
    """The tests on a GPU; to be run elsewhere than in the source tree, which would hide another gcsa_ext."""
    present = importlib.util.find_spec("pytest_timeout") is not None
    # pytest-benchmark warns beside workers; warnings are errors in this project, but not for its users.
    plugins = ["-p", "no:cacheprovider", "-p", "no:benchmark", "-W", "default"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(ROOT),
    ]
    command += [*plugins, *([] if present else ["-o", "timeout=0"]), *options]
    return [*command, str(ROOT / "python_tests" / "backends" / "test_gpu.py")]


def run_tests(limit: float, log: Path) -> dict[str, Any]:
    """python_tests/test_gpu.py in a process of its own, on several workers where pytest-xdist is there; what
    it prints goes into the file `log`."""
    if importlib.util.find_spec("pytest") is None:
        return {"status": "not run: there is no pytest"}
    workers = []
    if importlib.util.find_spec("xdist") is not None:
        workers = ["-n", str(max(1, min(12, (os.cpu_count() or 1) - 2))), "--dist", "loadgroup"]
    start = time.perf_counter()
    with log.open("w") as output, tempfile.TemporaryDirectory() as elsewhere:
        process = subprocess.Popen(
            pytest_command(*workers),
            cwd=elsewhere,
            env=package_environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
            told_status = "passed" if status == 0 else f"failed (exit status {status})"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its workers too, or they would disturb the measurements
            process.wait()
            told_status = f"stopped after {limit:.0f} s"
    tail = log.read_text(errors="replace").strip().splitlines()[-40:]
    return {"status": told_status, "seconds": time.perf_counter() - start, "output": tail}


def build(folder: str, limit: float) -> str | None:
    """Install gcsa_ext with its CUDA kernels into a folder; the reason where that fails."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation"]
    command += ["--no-deps", "--target", folder, "--config-settings=cmake.define.GCSA_EXT_CUDA=ON", str(ROOT)]
    nvcc = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    try:
        result = subprocess.run(
            command,
            env={**os.environ, "PATH": nvcc},
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"building took more than {limit:.0f} s"
    lines = (result.stdout + result.stderr).strip().splitlines()
    return None if result.returncode == 0 else "building failed: " + " / ".join(lines[-8:])


def build_and_start_again(seconds: float, start: float) -> int | str:
    """The exit status of this program with the CUDA kernels that it has built, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        reason = build(folder, 0.4 * seconds)
        if reason is not None:
            return reason
        left = (seconds - (time.monotonic() - start)) / 60
        print(f"built in {time.monotonic() - start:.0f} s", flush=True)
        command = [sys.executable, __file__, *sys.argv[1:], "--no-build", "--minutes", f"{left:.3f}"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")]),
        }
        return subprocess.run(command, env=environment, check=False).returncode


def sanitize() -> int:
    """The operators' tests on the CUDA kernels, under memcheck and under racecheck."""
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if program is None:
        sys.exit("benchmarks/gpu.py: --sanitize needs compute-sanitizer, which comes with the CUDA toolkit")
    # Memory of its own for every tensor, or an access beyond one would end in the next.
    environment = {**package_environment(), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    tests = pytest_command("-o", "timeout=0", "-k", f"cuda and ({SANITIZED})")
    failed = 0
    for tool in ("memcheck", "racecheck"):
        print(f"compute-sanitizer --tool {tool}", flush=True)
        command = [program, "--tool", tool, "--target-processes", "all", "--error-exitcode", "77", *tests]
        with tempfile.TemporaryDirectory() as elsewhere:
            failed |= subprocess.run(command, cwd=elsewhere, env=environment, check=False).returncode
    return 1 if failed else 0


def best(row: Row, ours: bool, graph: bool) -> tuple[str, float] | None:
    """The fastest of our contenders, or of the others; directly called or as a graph."""
    found = {
        name: seconds
        for name, seconds in row.seconds.items()
        if name.startswith(OURS) == ours and name.endswith("in a graph") == graph
    }
    return min(found.items(), key=lambda item: item[1]) if found else None


def by_backend(rows: Sequence[Row]) -> list[str]:
    """The table of our backends, where there are several."""
    names = sorted({name for row in rows for name in row.errors if name.split()[0] == OURS})
    names = [name for name in names if not name.endswith("channels_last")]
    if len(names) < 2:
        return []
    lines = [
        "",
        "Our backends, milliseconds per call in the fastest layout; the first is the chosen one:",
        "",
    ]
    lines += [f"| operation | shape | dtype | {' | '.join(names)} |", f"|---|---|---|{'--:|' * len(names)}"]
    for row in rows:
        cells = [f"{row.operation}{' + backward' if row.backward else ''}", "x".join(map(str, row.shape))]
        cells.append(row.dtype.removeprefix("torch."))
        for name in names:
            found = [row.seconds[n] for n in (name, f"{name} channels_last") if n in row.seconds]
            cells.append(f"{min(found) * 1e3:.4g}" if found else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def preferences(rows: Sequence[Row]) -> list[str]:
    """Lines for PREFERRED_ON_GPUS: where another backend was faster by 5 % than the first in ORDER."""
    default, *others = (name for name in backends.ORDER if name not in ("cpu", "reference"))
    winners: dict[tuple[str, str], dict[tuple[int, ...], str]] = {}
    for row in sorted(rows, key=lambda row: row.backward):  # a pass that includes the other one comes last
        graph = row.operation == "GCSA eval"
        seconds = {name: fastest(row, f"{OURS} {name}", graph) for name in (default, *others)}
        seconds[row.chosen] = fastest(row, OURS, graph)
        measured = {name: found for name, found in seconds.items() if found is not None}
        if default not in measured or len(measured) < 2:
            continue
        best_ = min(measured, key=measured.__getitem__)
        winner = best_ if measured[default] > 1.05 * measured[best_] else default
        winners.setdefault((row.operation.split()[0].lower(), row.dtype), {})[row.shape] = winner
    lines = []
    for (operator, dtype), by_shape in winners.items():
        for name in others:
            taken = [shape for shape, winner in by_shape.items() if winner == name]
            left = [shape for shape, winner in by_shape.items() if winner != name]
            if not taken:
                continue
            condition = f"dtype == {dtype}"
            if left and max(map(math.prod, taken)) < min(map(math.prod, left)):
                condition += f" and math.prod(shape) <= {max(map(math.prod, taken))}"
            elif left and min(map(math.prod, taken)) > max(map(math.prod, left)):
                condition += f" and math.prod(shape) >= {min(map(math.prod, taken))}"
            elif left:
                condition += f" and tuple(shape) in {{{', '.join(map(str, sorted(taken)))}}}"
            lines.append(f'Preference("{operator}", "{name}", lambda shape, dtype: {condition}),')
    return lines


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    rows: list[Row] = report["rows"]
    ceilings: Ceilings = report["ceilings"]
    judged = bars(report)
    rates = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in ceilings.rate.items())
    lines = [
        f"# gcsa_ext on {report['device']}",
        "",
        *(["A dry run: tiny maps on a CPU. The times mean nothing.", ""] if report["dry_run"] else []),
        *([f"No CUDA kernels: {report['build']}.", ""] if report["build"] else []),
        f"Tests: {report['tests']['status']}. Copy {ceilings.bandwidth / 1e9:.4g} GB/s, products {rates}.",
        "",
        "| bar | found | demanded | |",
        "|---|--:|--:|---|",
        *(
            f"| {bar.what} | {bar.found:.3g} | {'at most' if bar.at_most else 'at least'} {bar.bar:g} "
            f"| {'PASS' if bar.met else 'FAIL'} |"
            for bar in judged
        ),
        "",
        "Milliseconds per call, median; each contender in its fastest memory layout; the ratio is the best",
        "peer's over ours. Of ceiling: the least time for the bytes or FLOP that the definition asks for,",
        "over our best time. Error: root mean square against float64, the worst tensor.",
        "",
        "| operation | shape | dtype | ours | best peer | its ms | ratio "
        "| ours, graph | best peer, graph | its ms | ratio | GB/s | of ceiling | error | eager's |",
        "|---|---|---|--:|---|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [f"{row.operation}{' + backward' if row.backward else ''}", "x".join(map(str, row.shape))]
        cells.append(row.dtype.removeprefix("torch."))
        for graph in (False, True):
            ours, peer = best(row, True, graph), best(row, False, graph)
            cells.append(f"{ours[1] * 1e3:.4g}" if ours else "")
            cells += [peer[0].removesuffix(" in a graph"), f"{peer[1] * 1e3:.4g}"] if peer else ["", ""]
            cells.append(f"**{peer[1] / ours[1]:.2f}**" if ours and peer else "")
        cells.append(f"{row.bytes_per_second / 1e9:.4g}" if row.bytes_per_second else "")
        cells.append(f"{row.of_ceiling:.0%}" if row.of_ceiling else "")
        cells += [f"{row.errors[name]:.1e}" if name in row.errors else "" for name in (OURS, EAGER)]
        lines.append(f"| {' | '.join(cells)} |")
    left_out = [
        f"- {row.operation} {row.shape} {name}: {why}" for row in rows for name, why in row.left_out.items()
    ]
    left_out += [f"- {what}: {why}" for what, why in report["failed"].items()]
    left_out += [f"- {what}: out of time" for what in report["out_of_time"]]
    if left_out:
        lines += ["", "Left out:", "", *left_out]
    lines += by_backend(rows)
    if report["memory"]:
        lines += ["", "Memory of a training step of GCSA, in times the input:", ""]
        lines += ["| shape | contender | kept for the backward pass | peak |", "|---|---|--:|--:|"]
    for found in report["memory"]:
        kept, peak = (f"{found[key] / found['input']:.2f}" for key in ("kept", "peak"))
        lines.append(f"| {'x'.join(map(str, found['shape']))} | {found['contender']} | {kept} | {peak} |")
    if report["convolutions"]:
        lines += [
            "",
            "Convolution of 7x7 with norm and gate, in CUDA graphs: torch's and a pass, or one launch:",
            "",
        ]
        lines += [
            "| shape class | torch, us | one launch, us | ratio | difference |",
            "|---|--:|--:|--:|--:|",
        ]
    for found in report["convolutions"]:
        times = (f"{found.seconds[name] * 1e6:.4g}" for name in ("torch", "one launch"))
        lines.append(f"| {found.shape_class} | {' | '.join(times)} | {found.ratio:.2f} | {found.error:.1e} |")
    faster = [found.shape_class for found in report["convolutions"] if found.ratio > 1.05]
    if faster:
        lines += ["", "Faster in one launch, for FASTER in gcsa_ext/backends/triton/convolution.py:", ""]
        lines += ["```python", *(f"{name}," for name in faster), "```"]
    preferred = preferences(rows)
    if preferred:
        lines += ["", "For PREFERRED_ON_GPUS in gcsa_ext/backends/__init__.py (which then imports math):", ""]
        lines += ["```python", *preferred, "```"]
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder for the report")
    parser.add_argument("--minutes", type=float, default=7.5, help="start nothing new after this many")
    parser.add_argument("--rounds", type=int, default=7, help="of measuring each row")
    parser.add_argument("--only", default="", help="measure operations with this in their name, alone")
    parser.add_argument("--no-build", action="store_true", help="take gcsa_ext as it is found")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--sanitize", action="store_true", help="run tests under compute-sanitizer instead")
    parser.add_argument("--dry-run", action="store_true", help="tiny maps on the CPU: does the program work?")
    return parser.parse_args()


def main() -> int:
    start, arguments = time.monotonic(), _arguments()
    device = "cpu" if arguments.dry_run else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "benchmarks/gpu.py: torch.cuda.is_available() is False; --dry-run tries the program without a GPU"
        )
    left = 60 * arguments.minutes
    reason = None
    if device == "cuda" and not arguments.no_build:
        reason = backends.unsupported("cuda", "gcsa", torch.device(device), torch.float32)
        if reason is not None:
            found = build_and_start_again(left, start)
            if isinstance(found, int):
                return found
            reason = found
    if arguments.sanitize:
        return sanitize()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tests = {"status": "not run"}
    if not (arguments.no_tests or arguments.dry_run):
        tests = run_tests(0.45 * left, arguments.out / "tests.txt")
        print(f"tests: {tests['status']}", *tests.get("output", [])[-5:], sep="\n", flush=True)
    torch.backends.cudnn.benchmark = True  # every contender's convolutions are the fastest that cuDNN has
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "a CPU",
        "dry_run": arguments.dry_run,
        "info": info(),
        "build": reason,
        "tests": tests,
        "ceilings": Ceilings.measure(device),
        "rows": [],
        "memory": [],
        "convolutions": [],
        "first_call": {},
        "failed": {},
        "out_of_time": [],
    }

    def attempt(what: str, section: Callable[[], None], until: float = left) -> None:
        """Run one part and write the report; what fails, or comes too late, does not stop the others."""
        if time.monotonic() - start > until:
            report["out_of_time"].append(what)
            return
        try:
            section()
        except Exception as error:
            report["failed"][what] = told(error)
            print(f"{what}: {told(error)}", flush=True)
        write(report, arguments.out)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()

    def measure_row(workload: Workload) -> None:
        in_time = time.monotonic() - start < 0.85 * left
        compilers = device == "cuda" and not arguments.no_compile and in_time
        row = measure(workload, report["ceilings"], device, arguments.rounds, compilers)
        report["rows"].append(row)
        shown = {name: f"{seconds * 1e3:.4g}" for name, seconds in row.seconds.items()}
        print(f"{workload}: {shown} {row.left_out or ''}", flush=True)

    def measure_memory(size: tuple[int, int, int], contender: str) -> None:
        workload = gcsa_workload((64, *size), torch.bfloat16, True, device)
        report["memory"].append(training_memory(workload, contender))

    def measure_first_call(what: str, *case: Any) -> None:
        report["first_call"][what] = first_call(*case)

    def measure_convolution(*case: Any) -> None:
        report["convolutions"].append(compare_convolutions(*case, device, arguments.rounds))
        print(report["convolutions"][-1], flush=True)

    everything = not arguments.only
    if device == "cuda" and everything:
        for size in MAPS:
            for contender in (EAGER, OURS):
                attempt(f"memory {size} {contender}", partial(measure_memory, size, contender))
        for name, shape, dtype in first_calls():
            what = f"{name} {dtype} {'x'.join(map(str, shape))}"
            attempt(f"first call {what}", partial(measure_first_call, what, name, shape, dtype))
    runs = device == "cuda" or triton.INTERPRETED
    for workload in [w for w in workloads(device) if arguments.only in str(w)]:
        # Some time is kept for the convolutions, each of which takes little.
        until = left if arguments.only else 0.93 * left
        attempt(str(workload), partial(measure_row, workload), until)
    for case in convolution_shapes(device) if runs and arguments.only in "convolution" else ():
        attempt(f"convolution {case}", partial(measure_convolution, *case))
    print(write(report, arguments.out))
    return 0 if tests["status"] in ("passed", "not run") and not report["failed"] else 1


def write(report: dict[str, Any], folder: Path) -> str:
    """report.md, which is returned, and report.json."""
    text = markdown(report)
    plain_data = {
        **report,
        "ceilings": asdict(report["ceilings"]),
        "rows": [asdict(row) for row in report["rows"]],
        "convolutions": [asdict(found) for found in report["convolutions"]],
        "bars": [{**asdict(bar), "met": bar.met} for bar in bars(report)],
    }
    for name, content in (("report.md", text), ("report.json", json.dumps(plain_data, indent=1) + "\n")):
        (folder / name).with_suffix(".new").write_text(content)
        (folder / name).with_suffix(".new").replace(folder / name)
    return text


if __name__ == "__main__":
    raise SystemExit(main())
