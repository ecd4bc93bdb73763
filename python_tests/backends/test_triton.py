"""What only Triton's kernels have: their 16-bit attention, their second ways, and compilers for GPUs.

All other tests of operators run on them too, by the fixture `backend`. Without a GPU they are interpreted.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import LAYOUTS, expected_format
from needs_triton import imported
from pairs import assert_same_step, pair
from subprocesses import python
from test_gates import channel_gate_arguments, check, gate, norm, norm_gate_arguments, run, statistics
from test_gcsa_operator import SETTINGS, opcheck, operator_arguments
from torch import Tensor

import gcsa_ext
from gcsa_ext import GCSA, backends

gates = imported("gcsa_ext.backends.triton.gates")
launch = imported("gcsa_ext.backends.triton.launch")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU kernels are compiled: see test_gpu.py"),
]


@pytest.fixture(autouse=True)
def forced() -> Iterator[None]:
    with gcsa_ext.use_backend("triton"):
        yield


def test_the_kernels_are_interpreted() -> None:
    """All tests of this backend would be refused otherwise."""
    assert backends.triton.load_error is None and backends.triton.INTERPRETED


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_attention_in_16_bits(training: bool, dtype: torch.dtype, layout: str) -> None:
    """Inside all maps are channels_last, whatever x is."""
    fused, plain = (m.train(training) for m in pair(dtype, channels=12, kernel_size=5))
    x = LAYOUTS[layout]((4, 12, 9, 7), dtype)
    assert_same_step(fused, plain, x, summands=10.0, buffers=2.0**-6)
    assert fused(x).is_contiguous(memory_format=expected_format(x))


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
    """Tiles in the order of x, of all channels or some; in the last case they are too few for the groups."""
    x = LAYOUTS["channels_last"]((2, channels, 3, 5), torch.bfloat16)
    blocks = gates.backward_blocks(channels, hidden, x.dtype)
    expected = groups if groups < 64 else 0
    assert gates._contiguous_groups(groups, x, torch.channels_last, blocks) == expected
    assert gates._contiguous_groups(groups, x, torch.contiguous_format, blocks) == 0
    check(*gate(groups), channel_gate_arguments(x, hidden))


def test_the_ways_for_few_and_for_many_channels_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = channel_gate_arguments(torch.randn(2, 12, 9, 9), 5)
    grad = torch.randn(2, 12, 9, 9)
    out, found = run(gate(3)[0], arguments, range(5), grad)
    monkeypatch.setattr(gates, "fits_one_block", lambda *_: False)
    for wanted in (range(5), [0], [2]):
        other_out, other = run(gate(3)[0], arguments, wanted, grad)
        torch.testing.assert_close(other_out, out)
        torch.testing.assert_close(other, tuple(found[i] for i in wanted), rtol=1e-5, atol=1e-6)


def test_more_hidden_units_than_a_program_holds() -> None:
    """Then torch computes the channel gate, and Triton the rest of an attention."""
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
            out = torch.ops.gcsa_ext.gcsa(*arguments, *4 * (None,), 1e-2, 1e-2, 2, True, False, True)[0]
            results.append((out, *torch.autograd.grad(out.sin().sum(), arguments)))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_any_number_of_programs(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over positions have as many parts as programs run: here more and fewer than there are blocks."""
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
    """The way of counting that maps of 2^31 positions need, on small ones; test_gpu.py has large ones."""
    monkeypatch.setattr(launch, "_LARGEST_32_BITS", 0)
    for layout in ("contiguous", "channels_last"):
        check(*gate(2), channel_gate_arguments(LAYOUTS[layout]((2, 6, 5, 7), torch.float32), 3))
        check(*norm(), norm_gate_arguments(layout, (2, 6, 5, 7), torch.float32))


def test_statistics_of_values_with_an_outlier_in_front() -> None:
    """Deviations are summed about a channel's first value, which may be the worst one."""
    u = torch.randn(4, 3, 20, 40)
    u[0, :, 0, 0] = 1e4
    _, mean, var = torch.ops.gcsa_ext.norm_gate(u, u, None, None, None, None, 1e-5)
    exact = torch.var_mean(u.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(var.double(), exact[0], rtol=1e-6, atol=0.0)
    assert ((mean - exact[1]).abs() <= 1e-6 * exact[0].sqrt()).all()


def test_two_runs_give_the_same_bits() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        module = GCSA(12, kernel_size=3).to(dtype)
        x = torch.randn(3, 12, 9, 11, dtype=dtype, requires_grad=True)
        results = []
        for _ in range(2):
            out = module(x)
            results.append([out, *torch.autograd.grad(out.sin().sum(), [x, *module.parameters()])])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("batch", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_any_subset_of_gradients(batch: tuple[bool, bool]) -> None:
    """Each is the same, bit by bit, whichever others are wanted."""
    tensors = operator_arguments()
    used = torch.randn(3), torch.rand(3) + 0.3, torch.randn(8), torch.rand(8) + 0.3
    given = [None if batch[i // 2] else value for i, value in enumerate(used)]
    _, u1, u2, *used = torch.ops.gcsa_ext.gcsa(*tensors, *given, *SETTINGS, True)
    grad_out = torch.randn_like(tensors[0])

    def backward(need: list[bool]) -> tuple[Tensor, ...]:
        return torch.ops.gcsa_ext.gcsa_backward(grad_out, u1, u2, *batch, need, *tensors, *used, *SETTINGS)

    every = backward(13 * [True])
    for number, expected in enumerate(every):
        found = backward([i == number for i in range(13)])
        assert torch.equal(found[number], expected), number
        assert all(grad.numel() == 0 for i, grad in enumerate(found) if i != number)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_of_the_attention(dtype: torch.dtype) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        tensors = operator_arguments(dtype)
        tensors[0] = tensors[0].contiguous(memory_format=layout)
        _, *kept = torch.ops.gcsa_ext.gcsa(*tensors, *4 * (None,), *SETTINGS, True)
        arguments = (torch.randn_like(tensors[0]), *kept[:2], True, True, 13 * [True])
        opcheck("gcsa_backward", *arguments, *tensors, *kept[2:], *SETTINGS)
        for tensor in tensors:
            tensor.requires_grad_()
        opcheck("gcsa", *tensors, *4 * (None,), *SETTINGS, True)


def test_another_backend_may_differentiate() -> None:
    """What one keeps in its own layout is of no use to another, which begins again."""
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


def test_what_it_cannot_run_and_why() -> None:
    cpu = torch.device("cpu")
    assert "not torch.float64" in backends.unsupported("triton", "norm_gate", cpu, torch.float64)
    assert backends.unsupported("triton", "frequency_mask", cpu, torch.float64) is None
    meta = torch.device("meta")
    assert "on a GPU, not on meta" in backends.unsupported("triton", "gcsa", meta, torch.float32)
    with gcsa_ext.use_backend("reference"):
        assert "set TRITON_INTERPRET=1" in backends.unsupported("triton", "norm_gate", cpu, torch.float32)
    assert "triton on cpu" in gcsa_ext.format_info()


def test_without_triton() -> None:
    """Nothing fails, and the reason is told."""
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
    """What the interpreter does not see: whether the kernels compile at all, and how well."""
    program = Path(__file__).with_name("gpu_code.py").read_text()
    printed = python(program, timeout=500.0, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    kernels = [json.loads(line) for line in printed.splitlines()]
    assert len(kernels) > 90
    for kernel in kernels:
        assert kernel["stack"] == 0, kernel
        if kernel["kernel"].startswith(("norm,", "mask,")):
            if "sums" not in kernel["kernel"] and "statistics" not in kernel["kernel"]:
                assert max(kernel["stores"]) == 128, kernel
            if "in place" not in kernel["kernel"]:
                assert max(kernel["loads"]) == 128, kernel
