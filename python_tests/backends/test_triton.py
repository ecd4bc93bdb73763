"""Triton's kernels beyond the tests of operators, which run on them by the fixture `backend`: kernels for
many channels, sums in parts, and machine code for GPUs. Without a GPU the kernels are interpreted."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import only
from gate_checks import channel_gate_arguments, check, gate, norm, norm_gate_arguments, run, statistics
from layouts import LAYOUTS
from needs_triton import imported
from subprocesses import HELPERS, python

import gcsa_ext
from gcsa_ext import GCSA, backends

gates = imported("gcsa_ext.backends.triton.gates")
launch = imported("gcsa_ext.backends.triton.launch")
pytestmark = [pytest.mark.usefixtures("one_thread"), *only("triton")]


def test_the_kernels_are_interpreted() -> None:
    """Otherwise the backend would refuse the tensors of these tests."""
    assert backends.triton.load_error is None and backends.triton.INTERPRETED


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 130, 5, 7), (1, 48, 3, 11)], ids=str)
def test_many_channels_take_other_kernels(shape: tuple[int, ...], layout: str) -> None:
    hidden = 70
    assert not gates.fits_one_block(shape[1], hidden, torch.float32)
    check(*gate(2), channel_gate_arguments(LAYOUTS[layout](shape, torch.float32), hidden))


@pytest.mark.parametrize(
    ("groups", "channels", "hidden"),
    [(2, 6, 3), (4, 96, 5), (32, 96, 5), (2, 160, 70), (16, 160, 70), (64, 128, 150)],
)
def test_groups_of_channels_that_are_contiguous(groups: int, channels: int, hidden: int) -> None:
    """Tiles in the order of x, of all channels or some. In the last case a tile has too few channels."""
    x = LAYOUTS["channels_last"]((2, channels, 3, 5), torch.bfloat16)
    blocks = gates.backward_blocks(channels, hidden, x.dtype)
    expected = groups if groups < 64 else 0
    assert gates.contiguous_groups(groups, x, torch.channels_last, blocks) == expected
    assert gates.contiguous_groups(groups, x, torch.contiguous_format, blocks) == 0
    check(*gate(groups), channel_gate_arguments(x, hidden))


def test_kernels_for_few_and_for_many_channels_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = channel_gate_arguments(torch.randn(2, 12, 9, 9), 5)
    grad = torch.randn(2, 12, 9, 9)
    out, found = run(gate(3)[0], arguments, range(5), grad)
    monkeypatch.setattr(gates, "fits_one_block", lambda *_: False)
    for wanted in (range(5), [0], [2]):
        other_out, other = run(gate(3)[0], arguments, wanted, grad)
        torch.testing.assert_close(other_out, out)
        torch.testing.assert_close(other, tuple(found[i] for i in wanted), rtol=1e-5, atol=1e-6)


def test_more_hidden_units_than_a_program_holds() -> None:
    """Torch computes such a channel gate, and Triton the rest of an attention."""
    C, h = 6, gates.LARGEST_HIDDEN + 1
    check(*gate(2), channel_gate_arguments(torch.randn(2, C, 3, 4), h))
    arguments: list[Any] = [torch.randn(1, C, 3, 4)]
    shapes = (h, C), (h,), (C, h), (C,), (h, C, 3, 3), (h,), (C, h, 3, 3), (C,), (h,), (h,), (C,), (C,)
    arguments += [torch.randn(shape) / math.sqrt(math.prod(shape[1:])) for shape in shapes]
    for tensor in arguments:
        tensor.requires_grad_()
    results = []
    for backend in ("triton", "reference"):
        with gcsa_ext.use_backend(backend):
            out = torch.ops.gcsa_ext.gcsa(*arguments, *4 * (None,), 1e-2, 1e-2, 2, True, False)[0]
            results.append((out, *torch.autograd.grad(out.sin().sum(), arguments)))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_any_number_of_programs(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over positions have one part per program: more and fewer programs than blocks."""
    monkeypatch.setattr(gates, "programs", lambda *_: count)
    for layout in ("contiguous", "channels_last"):
        check(*gate(2), channel_gate_arguments(LAYOUTS[layout]((3, 6, 11, 13), torch.float32), 3))
        check(*norm(), norm_gate_arguments(layout, (3, 6, 11, 31), torch.float32))
        check(
            *norm(*statistics(6, torch.float32)), norm_gate_arguments(layout, (3, 6, 11, 31), torch.float32)
        )


def test_more_parts_of_a_sum_than_are_merged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large GPUs have hundreds of programs for the positions of a few channels."""
    monkeypatch.setattr(gates, "programs", lambda *_: 1000)
    parts: list[int] = []
    sum_partials = gates.sum_partials
    monkeypatch.setattr(gates, "sum_partials", lambda p, *a: parts.append(len(p)) or sum_partials(p, *a))
    u, z = 5.0 + 0.1 * torch.randn(1, 1, 353, 401), torch.randn(1, 1, 353, 401)
    check(*norm(), [u, z, torch.randn(1), torch.randn(1)])
    assert max(parts) > 128


@pytest.mark.parametrize("channels", [1, 5, 64, 262_140, 262_141, 3_000_000])
def test_a_grid_holds_any_number_of_channels(channels: int) -> None:
    """CUDA allows 65535 programs along a grid's second axis."""
    for layouts in itertools.product((torch.contiguous_format, torch.channels_last), repeat=2):
        for blocks in gates.elementwise_blocks(channels, *layouts):
            assert -(-channels // blocks["BLOCK_C"]) <= 65535
            assert blocks["BLOCK_C"] * blocks["BLOCK_P"] in (1024, 2048)


def test_positions_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 64-bit indices that maps of 2^31 positions need, on small maps. test_gpu.py has large ones."""
    monkeypatch.setattr(launch, "LARGEST_32_BITS", 0)
    for layout in ("contiguous", "channels_last"):
        check(*gate(2), channel_gate_arguments(LAYOUTS[layout]((2, 6, 5, 7), torch.float32), 3))
        check(*norm(), norm_gate_arguments(layout, (2, 6, 5, 7), torch.float32))


def test_another_backend_may_differentiate() -> None:
    """A backend does not read what another one has saved: it computes from the inputs."""
    module = GCSA(16, kernel_size=5)
    x = torch.randn(2, 16, 6, 5, requires_grad=True)
    found = []
    for forward, backward in (("cpu", "triton"), ("triton", "cpu"), ("triton", "reference"), ("cpu", "cpu")):
        with gcsa_ext.use_backend(forward):
            out = module(x)
        with gcsa_ext.use_backend(backward):
            found.append(torch.autograd.grad(out.sin().sum(), [x, *module.parameters()]))
    for grads in found[:-1]:
        torch.testing.assert_close(grads, found[-1], rtol=1e-4, atol=1e-4)


def test_tf32_only_where_torch_multiplies_so() -> None:
    x = torch.ones(1)
    assert launch.precision(x) == "ieee"
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert launch.precision(x) == "tf32" and launch.precision(x.half()) == "ieee"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def test_unsupported_tensors() -> None:
    cpu = torch.device("cpu")
    assert "not torch.float64" in backends.unsupported("triton", "norm_gate", cpu, torch.float64)
    assert backends.unsupported("triton", "spectrogram_mask", cpu, torch.float64) is None
    meta = torch.device("meta")
    assert "on a GPU, not on meta" in backends.unsupported("triton", "gcsa", meta, torch.float32)
    with gcsa_ext.use_backend("reference"):
        assert "set TRITON_INTERPRET=1" in backends.unsupported("triton", "norm_gate", cpu, torch.float32)
    assert "triton on cpu" in gcsa_ext.format_info()


def test_without_triton() -> None:
    """Everything works, and the backend has the reason."""
    printed = python(
        """
        import sys
        sys.modules["triton"] = None
        import torch, gcsa_ext
        from gcsa_ext import backends
        print(gcsa_ext.GCSA(8)(torch.randn(2, 8, 5, 5)).shape)
        print(backends.triton.load_error)
        print(backends.unsupported("triton", "gcsa", torch.device("cuda"), torch.float32))
        """
    )
    assert printed.splitlines()[0] == "torch.Size([2, 8, 5, 5])"
    assert all(line.startswith("triton cannot be imported: ") for line in printed.splitlines()[1:])


def test_uncompiled_kernels_are_not_run_on_the_cpu() -> None:
    printed = python(
        """
        import torch, gcsa_ext
        try:
            with gcsa_ext.use_backend("triton"):
                gcsa_ext.functional.norm_gate(*2 * [torch.randn(2, 3, 4, 5)], training=True)
        except RuntimeError as error:
            print(error)
        """,
        TRITON_INTERPRET="0",
    )
    assert "norm_gate: backend 'triton' is forced but cannot run: the triton backend takes tensors" in printed


@pytest.mark.timeout(600)
def test_machine_code_for_a_gpu_keeps_to_registers_and_moves_16_bytes_at_once(tmp_path: Path) -> None:
    """The interpreter does not compile: this does, for a GPU, and reads the machine code."""
    program = (HELPERS / "gpu_code.py").read_text()
    printed = python(program, timeout=500.0, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    kernels = [json.loads(line) for line in printed.splitlines()]
    assert len(kernels) > 130
    for kernel in kernels:
        assert kernel["stack"] == 0, kernel
        if kernel["kernel"].startswith(("norm,", "mask,")):
            if "sums" not in kernel["kernel"] and "statistics" not in kernel["kernel"]:
                assert max(kernel["stores"]) == 128, kernel
            if "in place" not in kernel["kernel"]:
                assert max(kernel["loads"]) == 128, kernel
