"""Where our convolution beats torch's: ``python benchmarks/crossover.py --help``.

The limits in ``cpu.explain_convolution`` rest on what this prints: one Markdown table per size of kernel,
torch's time over that of Fourier transforms, or for bfloat16 of the matrix registers where the processor has
them, which are forced on every shape.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from harness.disturbances import WAITED, Disturbances
from harness.errors import relative_error
from harness.timing import measure

from gcsa_ext import functional
from gcsa_ext.backends import cpu, forced_backend

KERNELS = (3, 5, 7, 9, 11)
CHANNELS = ((4, 4), (16, 4), (16, 16), (32, 32), (64, 16), (16, 64), (64, 64), (256, 64))
MAPS = ((1, 7), (1, 14), (1, 28), (1, 56), (8, 7), (8, 14), (8, 28), (8, 56))

QUICK_KERNELS, QUICK_CHANNELS, QUICK_MAPS = (3, 7), ((4, 4), (16, 16), (64, 16)), ((1, 7), (8, 14))

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Largest `relative_error` against torch."""

MARGIN = 1.1
"""The rule is wrong where the other way is faster by more than this factor."""


@dataclass(frozen=True)
class Shape:
    """A convolution of (batch, inputs, size, size) to as many outputs, with a square kernel."""

    kernel: int
    inputs: int
    outputs: int
    batch: int
    size: int

    def __str__(self) -> str:
        return (
            f"{self.kernel}x{self.kernel}, {self.inputs} to {self.outputs}, {map_name(self.batch, self.size)}"
        )


@dataclass(frozen=True)
class Found:
    """What was measured of one shape.

    Attributes:
        ratio: torch's time over ours, median.
        rule: "fft", "amx" or "direct" (torch's), what `conv2d_same` would have done.
        disturbed: other processes were in the way.
    """

    ratio: float
    rule: str
    disturbed: bool = False

    @property
    def loss(self) -> float:
        """The time of what the rule takes over that of the faster way."""
        return max(1.0, self.ratio if self.rule == "direct" else 1.0 / self.ratio)


def map_name(batch: int, size: int) -> str:
    """As in the head of a table."""
    return f"{batch}x{size}x{size}"


def shapes(quick: bool) -> Iterator[Shape]:
    """All shapes, or a few."""
    kernels, channels, maps = (
        (QUICK_KERNELS, QUICK_CHANNELS, QUICK_MAPS) if quick else (KERNELS, CHANNELS, MAPS)
    )
    for kernel in kernels:
        for inputs, outputs in channels:
            for batch, size in maps:
                yield Shape(kernel, inputs, outputs, batch, size)


def compare(
    shape: Shape,
    seconds: float,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
) -> Found:
    """Time both ways in turn, in this process, for about so many seconds.

    Raises:
        RuntimeError: ours cannot run here, or its result is wrong.
    """
    torch.manual_seed(0)
    x = torch.randn(shape.batch, shape.inputs, shape.size, shape.size).to(dtype, memory_format=layout)
    weight = torch.randn(shape.outputs, shape.inputs, shape.kernel, shape.kernel) / shape.kernel
    weight, bias = weight.to(dtype, memory_format=layout), torch.randn(shape.outputs, dtype=dtype)
    reason = cpu.unsupported("conv2d_same", x.device, x.dtype)
    if reason is None and forced_backend() not in (None, "cpu"):
        reason = f"backend {forced_backend()!r} is forced"
    if reason is not None:
        raise RuntimeError(f"{shape}: {reason}")
    rule = cpu.explain_convolution(x, weight)[0]
    calls = {
        "direct": lambda: F.conv2d(x, weight, bias, padding=shape.kernel // 2),
        "ours": lambda: functional.conv2d_same(x, weight, bias),
    }
    with torch.no_grad(), mock.patch.object(cpu, "explain_convolution", return_value=("fft", "")):
        error = relative_error([calls["ours"]()], [calls["direct"]()])
        if error > TOLERANCE[dtype]:
            raise RuntimeError(f"{shape}: error {error:.1e}")
        watch = Disturbances()
        spans = measure(calls, seconds, between=watch.between)
    ratio = statistics.median(spans["direct"]) / statistics.median(spans["ours"])
    return Found(ratio, rule, watch.found()["waited"] > WAITED)


def tables(found: dict[Shape, Found]) -> str:
    """One Markdown table for each kernel, and a line about the rule."""
    parts = []
    maps = list(dict.fromkeys((shape.batch, shape.size) for shape in found))
    for kernel in dict.fromkeys(shape.kernel for shape in found):
        rows = [shape for shape in found if shape.kernel == kernel]
        lines = [
            f"| {kernel}x{kernel} | " + " | ".join(map_name(*sizes) for sizes in maps) + " |",
            "|---|" + "--:|" * len(maps),
        ]
        for inputs, outputs in dict.fromkeys((shape.inputs, shape.outputs) for shape in rows):
            cells = [_cell(found.get(Shape(kernel, inputs, outputs, *sizes))) for sizes in maps]
            lines.append(f"| {inputs} to {outputs} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, summary(found.values())])


def _cell(found: Found | None) -> str:
    if found is None:
        return ""
    text = f"({found.ratio:.2f})" if found.rule == "direct" else f"{found.ratio:.2f}"
    text = f"**{text}**" if found.loss > MARGIN else text
    return f"{text} disturbed" if found.disturbed else text


def summary(found: Iterable[Found]) -> str:
    """How often the rule was wrong, and what that costs."""
    results = list(found)
    wrong = sum(result.loss > MARGIN for result in results)
    mean = statistics.geometric_mean(result.loss for result in results)
    worst = max(result.loss for result in results)
    return (
        f"The rule is wrong by more than {MARGIN - 1:.0%} for {wrong} of {len(results)} shapes. What it "
        f"takes lasts {mean:.2f} times as long as the other (geometric mean), at worst {worst:.2f} times."
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Where our convolution beats torch's, and whether conv2d_same knows."
    )
    parser.add_argument("--quick", action="store_true", help="few shapes; seconds")
    parser.add_argument("--seconds", type=float, help="for each shape (default 0.5; 0.1 with --quick)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--channels-last", action="store_true", help="maps and weights (default contiguous)")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    seconds = arguments.seconds if arguments.seconds is not None else 0.1 if arguments.quick else 0.5
    found, wanted = {}, list(shapes(arguments.quick))
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
    for index, shape in enumerate(wanted, 1):
        print(f"[{index}/{len(wanted)}] {shape}", file=sys.stderr, flush=True)
        found[shape] = compare(shape, seconds, dtype, layout)
    name = "channels_last" if arguments.channels_last else "contiguous"
    print(
        f"The time of torch's convolution over ours, forward, {arguments.dtype}, {name}, {arguments.threads} "
        f"threads, torch {torch.__version__}, {cpu.isa()}. In brackets: shapes for which conv2d_same takes "
        f"torch's. **Bold**: the other way would be faster by more than {MARGIN - 1:.0%}.\n"
    )
    print(tables(found))


if __name__ == "__main__":
    main()
