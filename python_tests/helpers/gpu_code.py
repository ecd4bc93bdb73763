"""Compile the Triton kernels for a GPU, on a machine that needs none, and print what the machine code uses.

Run as a program, without TRITON_INTERPRET: prints one JSON object per kernel, with its registers per thread,
bytes of local memory per thread ("stack": spilled registers), and the widths in bits of its accesses
to global memory.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gcsa_ext.backends.triton import gates, mask
from gcsa_ext.backends.triton.kernels import batch_norm, channel_gate, spectrogram_mask, tile

ELEMENTS = {torch.float32: "fp32", torch.bfloat16: "bf16"}
MAPS = (
    *("x", "z", "u", "out", "grad", "grad_x", "grad_u", "grad_z", "spectrogram", "fill"),
    *("hidden_out", "g1_out", "hidden_in", "g1_in"),
)
INTEGERS = (
    *("position_units", "P_UNITS", "C", "h", "groups", "parts", "rows", "freq", "time", "bands"),
    *("time_bands", "bits"),
    *("size1", "size2", "size3", "size4"),
)
ALIGNED = ("C", "time")
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
    gate = {"SIGMOID": True}
    usual, large = gates.elementwise_blocks(64, u_layout, out_layout)
    forward = {**constants, **gate, "Z_LAST": last, "OUT_LAST": out_last, "ADD": False}
    for name, blocks in (("forward", usual), ("forward, large", large)):
        yield name, compile_kernel(batch_norm.norm_forward, ELEMENTS[dtype], {**forward, **blocks})
    added = {**constants, **gate, "Z_LAST": out_last, "OUT_LAST": last, "ADD": True}
    yield "forward, added", compile_kernel(batch_norm.norm_forward, ELEMENTS[dtype], {**added, **usual})
    backward = {**constants, **gate, "GRAD_LAST": out_last}
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
                {**norm, "Z_LAST": False, "OUT_LAST": True, "ADD": False, "SIGMOID": False},
                ("z",),
                ("weight", "bias", "offset"),
            ),
            (
                batch_norm.norm_backward,
                {**norm, "GRAD_LAST": True, "AHEAD": 3, "SIGMOID": False},
                ("z", "grad_z", "sums"),
                ("weight", "bias", "partial", "sums", "grad_u"),
            ),
        ):
            for missing in without:
                yield (
                    f"{kernel.fn.__name__}, {name} {missing}",
                    compile_kernel(kernel, "fp32", {**constants, **few}, missing),
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
    constants = {"BLOCK_C": 16, "BLOCK_PARTS": 128}
    yield "merge_statistics", compile_kernel(batch_norm.merge_statistics, "fp32", constants)
    constants = {"BLOCK_ROWS": 128, "BLOCK": 16}
    yield "sum_partials", compile_kernel(tile.sum_partials, "fp32", constants)
    for bits in (16, 32, 64):
        usual, large = mask.mask_blocks(1024)
        for without in (("fill",), ()):
            value = "a tensor" if "fill" not in without else "a number"
            for time in (False, True):
                for size, blocks in (("", usual), (", large", large)):
                    constants = {"SHARED": False, "TIME": time, **blocks}
                    compiled = compile_kernel(
                        spectrogram_mask.spectrogram_mask, f"i{bits}", constants, without
                    )
                    kinds = "frames and bins" if time else "bins"
                    yield f"mask, copy{size}, {kinds}, {value}, i{bits}", compiled
            constants = {"SHARED": False, **usual}
            compiled = compile_kernel(
                spectrogram_mask.spectrogram_mask_in_place, f"i{bits}", constants, without
            )
            yield f"mask, in place, {value}, i{bits}", compiled


if __name__ == "__main__":
    for name, compiled in every_kernel():
        print(json.dumps({"kernel": name, **usage(compiled)}), flush=True)
