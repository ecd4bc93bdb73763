"""Compile the Triton kernels for a GPU, on a machine that needs none, and print what the machine code uses.

Run as a program, without TRITON_INTERPRET: prints one JSON object per kernel, with its registers per thread,
bytes of local memory per thread ("stack": spilled registers), and the widths in bits of its accesses
to global memory.

With ``--first-call 8x64x56x56 float32``: compiles what a first training step and a first evaluation of GCSA
launch, all configurations that are tried, and prints the seconds that this takes. Kernels on disk are taken
from there: set TRITON_CACHE_DIR to an empty folder.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.compiler import ASTSource
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from gcsa_ext.backends import triton as backend
from gcsa_ext.backends.triton import convolution, gates, mask
from gcsa_ext.backends.triton.kernels import batch_norm, channel_gate, frequency_mask, tile
from gcsa_ext.backends.triton.kernels import convolution as convolution_kernels

ELEMENTS = {torch.float32: "fp32", torch.bfloat16: "bf16"}
MAPS = (
    *("x", "z", "u", "out", "grad", "grad_x", "grad_u", "grad_z", "spectrogram"),
    *("taps", "hidden_out", "g1_out", "hidden_in", "g1_in"),
)
INTEGERS = (
    *("position_units", "P_UNITS", "C", "h", "groups", "parts", "rows", "freq", "time", "bands", "bits"),
    *("size1", "size2", "size3", "size4", "W", "filters", "steps_per_split", "splits"),
)
ALIGNED = ("C", "time", "filters")
"""Numbers that are divisible by 16 here, like all addresses."""


def compile_kernel(
    kernel: Any, element: str, constants: dict[str, Any], without: Collection[str] = ()
) -> Any:
    """A kernel for compute capability 9.0, its maps with elements of type `element`, other vectors float32;
    the arguments `without` are None."""
    constants = {**constants, **dict.fromkeys(without)}
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    types = {
        name: "constexpr"
        if name in constants
        else f"*{element}"
        if name in MAPS
        else "i32"
        if name in INTEGERS
        else "fp32"
        if name == "eps"
        else "*fp32"
        for name in kernel.arg_names
    }
    numbers = {name: (i,) for i, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        fn=kernel,
        signature=types,
        constexprs={numbers[name]: value for name, value in constants.items()},
        attrs={
            numbers[name]: [["tt.divisibility", 16]]
            for name, kind in types.items()
            if kind.startswith("*") or name in ALIGNED
        },
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def usage(compiled: Any) -> dict[str, Any]:
    """What the machine code uses; see above."""
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [cuobjdump, "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(re.findall(rf"{name}:(\d+)", printed)[0]) for name in ("REG", "STACK")}
    accesses = re.findall(r"(ld|st)\.global(?:\.v(\d))?\.b(\d+)", compiled.asm["ptx"])
    widths = {(kind, int(count or 1) * int(bits)) for kind, count, bits in accesses}
    copied = re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*\], (0x[0-9a-f]+|\d+)", compiled.asm["ptx"])
    widths |= {("ld", 8 * int(count, 0)) for count in copied}
    return {
        "registers": found["REG"],
        "stack": found["STACK"],
        "loads": sorted(bits for kind, bits in widths if kind == "ld"),
        "stores": sorted(bits for kind, bits in widths if kind == "st"),
    }


def channel_gate_kernels(
    dtype: torch.dtype, channels: int, hidden: int, stages: int, x_last: bool = False
) -> Iterator[tuple[str, Any]]:
    """As inside of an attention: in 16 bits all maps but x are channels_last, and in 32 bits if x is."""
    last = x_last or dtype.itemsize == 2
    constants = {"UNIT": 16, "WIDE": False, "X_LAST": x_last, "SIGMOID": True, "PRECISION": "ieee"}
    constants |= {"num_stages": stages, "GROUPS": 4 if x_last and dtype.itemsize == 2 else 0}
    forward = {**constants, "OUT_LAST": last, **gates.forward_blocks(channels, hidden, dtype)}
    fits = gates.fits_one_block(channels, hidden, dtype)
    kernel = channel_gate.channel_gate_forward if fits else channel_gate.channel_gate_forward_split
    yield "forward", compile_kernel(kernel, ELEMENTS[dtype], forward)
    constants["GRAD_LAST"] = last
    blocks = gates.backward_blocks(channels, hidden, dtype)
    if fits:
        kernels = {"backward": channel_gate.channel_gate_backward}
    else:
        kernels = {
            "backward_x": channel_gate.channel_gate_backward_x,
            "backward_weights": channel_gate.channel_gate_backward_weights,
        }
    for name, kernel in kernels.items():
        yield name, compile_kernel(kernel, ELEMENTS[dtype], {**constants, **blocks})


def norm_kernels(
    dtype: torch.dtype, u_layout: torch.memory_format, out_layout: torch.memory_format
) -> Iterator[tuple[str, Any]]:
    last, out_last = (layout == torch.channels_last for layout in (u_layout, out_layout))
    constants = {"UNIT": 16, "WIDE": False, "LAST": last}
    usual, large = gates.elementwise_blocks(64, u_layout, out_layout)
    forward = {**constants, "Z_LAST": last, "OUT_LAST": out_last, "ADD": False}
    for name, blocks in (("forward", usual), ("forward, large", large)):
        yield name, compile_kernel(batch_norm.norm_forward, ELEMENTS[dtype], {**forward, **blocks})
    added = {**constants, "Z_LAST": out_last, "OUT_LAST": last, "ADD": True}
    yield "forward, added", compile_kernel(batch_norm.norm_forward, ELEMENTS[dtype], {**added, **usual})
    backward = {**constants, "GRAD_LAST": out_last}
    for what, without, blocks in (
        ("sums", ("sums", "grad_u", "grad_z"), {**usual, "AHEAD": 3}),
        ("gradients", ("partial",), {**usual, "AHEAD": 1}),
        ("gradients, large", ("partial",), {**large, "AHEAD": 1}),
    ):
        kernel = batch_norm.norm_backward
        yield f"backward, {what}", compile_kernel(kernel, ELEMENTS[dtype], {**backward, **blocks}, without)
    if u_layout == out_layout:
        yield (
            "statistics",
            compile_kernel(batch_norm.batch_statistics, ELEMENTS[dtype], {**constants, **usual, "AHEAD": 4}),
        )


def convolution_kernels_of(
    dtype: torch.dtype, precision: str, channels: int, filters: int, stages: int
) -> Iterator[tuple[str, Any]]:
    """The first convolution of an attention has no gate, the second one has; each alone, and split."""
    last = dtype.itemsize == 2
    constants = {"UNIT": 16, "WIDE": False, "LAST": last, "OUT_LAST": last}
    blocks = convolution.blocks(channels, filters, 2**20, dtype, precision)
    without = {"z"} if filters < channels else set()
    whole = {**constants, "KERNEL": 7, "PRECISION": precision, "num_stages": stages, **blocks}
    for name, missing in (("whole", "partial"), ("split", "out")):
        kernel = convolution_kernels.convolution_norm
        yield name, compile_kernel(kernel, ELEMENTS[dtype], whole, {*without, missing})


def unusual_calls() -> Iterator[tuple[str, Any]]:
    """Arguments that are missing, numbers that are 1 (they become constants), positions beyond 32 bits."""
    gate = {"UNIT": 1, "X_LAST": False, "SIGMOID": False, "PRECISION": "tf32", "groups": 1, "GROUPS": 0}
    gate |= {"BLOCK_C": 16, "BLOCK_H": 16, "BLOCK_P": 16}
    norm = {"UNIT": 1, "LAST": False, "BLOCK_C": 1, "BLOCK_P": 1024}
    few: dict[str, Any]
    for name, few in (("beyond 32 bits", {"WIDE": True}), ("one channel", {"WIDE": False, "C": 1})):
        for kernel, constants, *without in (
            (channel_gate.channel_gate_forward, {**gate, "OUT_LAST": True}, ()),
            (channel_gate.channel_gate_forward_split, {**gate, "OUT_LAST": True}, ()),
            (
                channel_gate.channel_gate_backward,
                {**gate, "GRAD_LAST": True},
                (),
                ("partial",),
                ("grad_x",),
            ),
            (
                channel_gate.channel_gate_backward_x,
                {**gate, "GRAD_LAST": True},
                ("hidden_out", "g1_out"),
                ("grad_x",),
            ),
            (channel_gate.channel_gate_backward_weights, {**gate, "GRAD_LAST": True}, ()),
            (batch_norm.batch_statistics, {**norm, "AHEAD": 4}, ("partial",), ("offset",)),
            (
                batch_norm.norm_forward,
                {**norm, "Z_LAST": False, "OUT_LAST": True, "ADD": False},
                ("z",),
                ("weight", "bias", "offset"),
            ),
            (
                batch_norm.norm_backward,
                {**norm, "GRAD_LAST": True, "AHEAD": 3},
                ("z", "grad_z", "sums"),
                ("weight", "bias", "partial", "sums", "grad_u"),
            ),
        ):
            for missing in without:
                yield (
                    f"{kernel.fn.__name__}, {name} {missing}",
                    compile_kernel(kernel, "fp32", {**constants, **few}, missing),
                )
        taps = {**norm, "OUT_LAST": True, "BLOCK_P": 16, "BLOCK_O": 16, **few}
        last = {**taps, "KERNEL": 3, "PRECISION": "ieee", "BLOCK_C": 16}
        missing = ("z", "scale", "shift", "offset", "partial")
        yield (
            f"convolution, {name}",
            compile_kernel(convolution_kernels.convolution_norm, "fp32", last, missing),
        )
    pieces = {"size2": 1, "size3": 0, "size4": 0, "BLOCK_ROWS": 128, "BLOCK": 16}
    missing = ("total", "out2", "out3", "out4")
    yield "sum_partials, few pieces", compile_kernel(tile.sum_partials, "fp32", pieces, missing)


def every_kernel() -> Iterator[tuple[str, Any]]:
    """What each is called, and the compiled kernel."""
    constants: dict[str, Any]
    yield from unusual_calls()
    # Of the stages that may be chosen, those where registers are scarcest.
    other_stages = {(torch.bfloat16, 128): (3, 2), (torch.bfloat16, 512): (3, 2)}
    for dtype, element in ELEMENTS.items():
        for channels in (64, 128, 256, 512):
            for number in other_stages.get((dtype, channels), (3,)):
                for name, compiled in channel_gate_kernels(dtype, channels, channels // 4, number):
                    yield f"channel gate, {name}, {channels} channels, {element}, {number} stages", compiled
        for channels in (64, 256, 512):
            for name, compiled in channel_gate_kernels(dtype, channels, channels // 4, 3, x_last=True):
                yield f"channel gate, channels_last, {name}, {channels} channels, {element}", compiled
        layouts = (torch.contiguous_format, torch.channels_last)
        for u_layout in layouts:
            for out_layout in layouts:
                for name, compiled in norm_kernels(dtype, u_layout, out_layout):
                    yield f"norm, {name}, {u_layout} to {out_layout}, {element}", compiled
    for dtype, precision in (
        (torch.bfloat16, "ieee"),
        (torch.float32, "tf32"),
        (torch.float32, "ieee"),
    ):
        for channels, filters in ((64, 16), (128, 512)):
            for name, compiled in convolution_kernels_of(dtype, precision, channels, filters, 3):
                yield f"convolution, {name}, {channels} to {filters}, {dtype}, {precision}", compiled
    for stages in (2, 4):
        for name, compiled in convolution_kernels_of(torch.bfloat16, "ieee", 512, 128, stages):
            yield f"convolution, {name}, 512 to 128, {stages} stages", compiled
    constants = {"UNIT": 16, "WIDE": False, "LAST": True, "OUT_LAST": False, "BLOCK_P": 16, "BLOCK_O": 64}
    kernel = convolution_kernels.finish_convolution_norm
    yield "convolution, finish", compile_kernel(kernel, "bf16", constants)
    constants = {"BLOCK_C": 16, "BLOCK_PARTS": 128}
    yield "merge_statistics", compile_kernel(batch_norm.merge_statistics, "fp32", constants)
    constants = {"BLOCK_ROWS": 128, "BLOCK": 16}
    yield "sum_partials", compile_kernel(tile.sum_partials, "fp32", constants)
    for bits in (16, 32, 64):
        usual, large = mask.mask_blocks(1024)
        for name, kernel, blocks in (
            ("copy", frequency_mask.frequency_mask, usual),
            ("copy, large", frequency_mask.frequency_mask, large),
            ("in place", frequency_mask.frequency_mask_in_place, usual),
        ):
            compiled = compile_kernel(kernel, f"i{bits}", {"SHARED": False, **blocks})
            yield f"mask, {name}, i{bits}", compiled


class Hopper:
    """What Triton asks of a driver before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_launcher(compiled: Any, known: set[str]) -> None:
    """Of the C that Triton writes for each signature of a kernel, what is not `known`."""
    arguments = compiled.src.fn.arg_names
    constants = {
        (arguments.index(name),) if isinstance(name, str) else name: value
        for name, value in compiled.src.constants.items()
    }
    code = nvidia.make_launcher(constants, dict(compiled.src.signature), None)
    if code in known:
        return
    known.add(code)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "launcher.c"
        source.write_text(code)
        includes = [f"-I{path}" for path in (*nvidia.include_dirs, sysconfig.get_paths()["include"])]
        options = ["-O3", "-shared", "-fPIC", "-Wno-psabi", *includes]
        subprocess.run(["gcc", source, *options, "-o", source.with_suffix(".so")], check=True)


def first_call(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Print what each kernel takes to compile; see above. Tensors have no memory, and nothing is launched."""
    found: list[tuple[str, dict[str, int], float, float]] = []
    kernels: dict[int, Any] = {}
    launchers: set[str] = set()
    tried: set[Any] = set()
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        start = time.perf_counter()
        compiled = run(self, *args, grid=grid, warmup=True, **options)
        middle = time.perf_counter()
        if id(compiled) not in kernels:
            kernels[id(compiled)] = compiled
            compile_launcher(compiled, launchers)
            blocks = {k: v for k, v in options.items() if k.startswith(("BLOCK", "num_"))}
            found.append((self.__name__, blocks, middle - start, time.perf_counter() - middle))

    def launch_all(shape_class: Any, configurations: Any, launch: Any, x: torch.Tensor) -> None:
        for configuration in configurations if shape_class not in tried else configurations[:1]:
            launch(configuration)
        tried.add(shape_class)

    driver.set_active(Hopper())
    JITFunction.run = compile_only
    gates.launch_fastest = launch_all
    gates.programs = lambda _, per_multiprocessor: 132 * per_multiprocessor
    C, h = shape[1], shape[1] // 4
    with torch.device("meta"):
        x = torch.empty(shape, dtype=dtype)
        gate = [torch.empty(sizes, dtype=dtype) for sizes in ((h, C), (h,), (C, h), (C,))]
        convolutions = [torch.empty(sizes, dtype=dtype) for sizes in ((h, C, 7, 7), (h,), (C, h, 7, 7), (C,))]
        vectors = [torch.empty(channels) for channels in (h, h, C, C)]
        settings = (1e-5, 1e-5), 4, True, False
        out, u1, u2, *used = backend.gcsa(x, gate, convolutions, vectors, 4 * [None], *settings, True)
        needed = (True, True), *settings, 13 * [True]
        backend.gcsa_backward(out, x, gate, convolutions, vectors, used, (u1, u2), *needed)
        training = len(found)
        backend.gcsa(x, gate, convolutions, vectors, vectors, *settings, False)
    for name, blocks, kernel, launcher in found:
        print(f"{kernel:.2f} s, its launcher {launcher:.2f} s: {name} {blocks}")
    seconds = [sum(map(sum, (row[2:] for row in rows))) for rows in (found[:training], found[training:])]
    print(
        f"{len(found)} kernels, {len(launchers)} launchers; training {seconds[0]:.2f} s, then evaluation",
        end=" ",
    )
    print(f"{seconds[1]:.2f} s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--first-call"]:
        first_call(tuple(map(int, sys.argv[2].split("x"))), getattr(torch, sys.argv[3]))
        sys.exit()
    for name, compiled in every_kernel():
        print(json.dumps({"kernel": name, **usage(compiled)}), flush=True)
