"""Compile the Triton kernels for a GPU that need not be there, and tell what the machine code uses.

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

from gcsa_ext.backends.triton import gates
from gcsa_ext.backends.triton.kernels import batch_norm, channel_gate, frequency_mask, tile

ELEMENTS = {torch.float32: "fp32", torch.bfloat16: "bf16"}
MAPS = (
    *("x", "z", "u", "out", "grad", "grad_x", "grad_u", "grad_z", "spectrogram"),
    *("hidden_out", "g1_out", "hidden_in", "g1_in"),
)
INTEGERS = (
    *("position_units", "P_UNITS", "C", "h", "groups", "parts", "rows", "freq", "time", "bands", "bits"),
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
    options = {"num_warps": constants.pop("num_warps", 4)}
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
    return {
        "registers": found["REG"],
        "stack": found["STACK"],
        "loads": sorted(bits for kind, bits in widths if kind == "ld"),
        "stores": sorted(bits for kind, bits in widths if kind == "st"),
    }


def channel_gate_kernels(dtype: torch.dtype, channels: int, hidden: int) -> Iterator[tuple[str, Any]]:
    """As inside of an attention: in 16 bits all maps but x are channels_last."""
    last = dtype.itemsize == 2
    constants = {"UNIT": 16, "WIDE": False, "X_LAST": False, "SIGMOID": True, "PRECISION": "ieee"}
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
    constants = {"UNIT": 16, "WIDE": False, "LAST": last, **gates.norm_blocks(64, u_layout, out_layout)}
    forward = {**constants, "Z_LAST": last, "OUT_LAST": out_last, "ADD": False}
    yield "forward", compile_kernel(batch_norm.norm_forward, ELEMENTS[dtype], forward)
    added = {**constants, "Z_LAST": out_last, "OUT_LAST": last, "ADD": True}
    yield "forward, added", compile_kernel(batch_norm.norm_forward, ELEMENTS[dtype], added)
    backward = {**constants, "GRAD_LAST": out_last}
    for what, without in (("sums", ("sums", "grad_u", "grad_z")), ("gradients", ("partial",))):
        yield (
            f"backward, {what}",
            compile_kernel(batch_norm.norm_backward, ELEMENTS[dtype], backward, without),
        )
    if u_layout == out_layout:
        yield "statistics", compile_kernel(batch_norm.batch_statistics, ELEMENTS[dtype], constants)


def unusual_calls() -> Iterator[tuple[str, Any]]:
    """Arguments that are missing, numbers that are 1 (they become constants), positions beyond 32 bits."""
    gate = {"UNIT": 1, "X_LAST": False, "SIGMOID": False, "PRECISION": "tf32", "groups": 1}
    gate |= {"BLOCK_C": 16, "BLOCK_H": 16, "BLOCK_P": 16}
    norm = {"UNIT": 1, "LAST": False, "BLOCK_C": 1, "BLOCK_P": 1024}
    few: dict[str, Any]
    for few in ({"WIDE": False}, {"WIDE": True}, {"WIDE": False, "C": 1}):
        name = "beyond 32 bits" if few["WIDE"] else "one channel" if "C" in few else "without"
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
            (batch_norm.batch_statistics, norm, ("partial",), ("offset",)),
            (
                batch_norm.norm_forward,
                {**norm, "Z_LAST": False, "OUT_LAST": True, "ADD": False},
                ("z",),
                ("weight", "bias", "offset"),
            ),
            (
                batch_norm.norm_backward,
                {**norm, "GRAD_LAST": True},
                ("z", "grad_z", "sums"),
                ("weight", "bias", "partial", "sums", "grad_u"),
            ),
        ):
            for missing in without:
                yield (
                    f"{kernel.fn.__name__}, {name} {missing}",
                    compile_kernel(kernel, "fp32", {**constants, **few}, missing),
                )
    pieces = {"size2": 1, "size3": 0, "size4": 0, "BLOCK_ROWS": 32, "BLOCK": 64}
    missing = ("total", "out2", "out3", "out4")
    yield "sum_partials, few pieces", compile_kernel(tile.sum_partials, "fp32", pieces, missing)


def every_kernel() -> Iterator[tuple[str, Any]]:
    """What each is called, and the compiled kernel."""
    yield from unusual_calls()
    for dtype, element in ELEMENTS.items():
        for channels in (64, 128, 256, 512):
            for name, compiled in channel_gate_kernels(dtype, channels, channels // 4):
                yield f"channel gate, {name}, {channels} channels, {element}", compiled
        layouts = (torch.contiguous_format, torch.channels_last)
        for u_layout in layouts:
            for out_layout in layouts:
                for name, compiled in norm_kernels(dtype, u_layout, out_layout):
                    yield f"norm, {name}, {u_layout} to {out_layout}, {element}", compiled
    constants = {"BLOCK_C": 16, "BLOCK_PARTS": 256}
    yield "merge_statistics", compile_kernel(batch_norm.merge_statistics, "fp32", constants)
    constants = {"BLOCK_ROWS": 32, "BLOCK": 64}
    yield "sum_partials", compile_kernel(tile.sum_partials, "fp32", constants)
    for bits in (16, 32, 64):
        for in_place in (False, True):
            constants = {"SHARED": False, "IN_PLACE": in_place, "BLOCK_ROWS": 2, "BLOCK_T": 1024}
            compiled = compile_kernel(frequency_mask.frequency_mask, f"i{bits}", constants)
            yield f"mask, i{bits}{', in place' if in_place else ''}", compiled


if __name__ == "__main__":
    for name, compiled in every_kernel():
        print(json.dumps({"kernel": name, **usage(compiled)}), flush=True)
