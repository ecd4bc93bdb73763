"""The CUDA kernels, emulated on the CPU: their launches, the emulation itself, and what the tests of
operators, which run on them by the fixture `backend`, do not ask."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from layouts import LAYOUTS
from pairs import pair
from subprocesses import python
from test_gates import check, norm, norm_gate_arguments, run, statistics
from test_triton import (  # noqa: F401
    test_any_subset_of_gradients,
    test_attention_in_16_bits,
    test_opcheck_of_the_attention,
    test_statistics_of_values_with_an_outlier_in_front,
    test_two_runs_give_the_same_bits,
)
from torch import Tensor

import gcsa_ext
from gcsa_ext import backends, functional, reference

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU kernels are compiled: see test_gpu.py"),
]
FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
H200 = (0, 0, 132, 227 * 1024)
LARGEST_GRID = (2**31 - 1, 65535, 65535)
A = 4096
"""An address that is aligned; planning looks at nothing behind it."""


@pytest.fixture(autouse=True)
def forced(emulated_cuda: ModuleType) -> Iterator[None]:
    with gcsa_ext.use_backend("cuda"):
        yield


@pytest.fixture
def any_order(emulated_cuda: ModuleType) -> Iterator[ModuleType]:
    yield emulated_cuda
    emulated_cuda.shuffle_order(0)


# ---- Whole operators


def test_maps_that_are_not_aligned() -> None:
    """Views that begin anywhere are contiguous too, and accessed value by value."""
    for dtype in (torch.float32, torch.bfloat16):
        for layout in ("contiguous", "channels_last"):
            shape = (2, 8, 4, 4)
            u, z, *vectors = norm_gate_arguments(layout, shape, dtype)
            moved = []
            for t in (u, z):
                storage = torch.randn(t.numel() + 1, dtype=dtype)
                moved.append(storage[1:].as_strided(t.shape, t.stride(), 1))
                assert moved[-1].data_ptr() % 16 and not u.data_ptr() % 16
            for mean_and_var in (statistics(8, dtype), (None, None)):
                check(*norm(*mean_and_var), [*moved, *vectors])
        spectrogram = torch.randn(2 * 7 * 12 + 1, dtype=dtype)[1:].view(2, 7, 12)
        start, width = torch.tensor([1, 5]), torch.tensor([2, 1])
        expected = reference.frequency_mask(spectrogram, start, width, 1.0)
        assert torch.equal(functional.frequency_mask(spectrogram, start, width, 1.0), expected)
        functional.frequency_mask_(spectrogram, start, width, 1.0)
        assert torch.equal(spectrogram, expected)


@pytest.mark.parametrize("shape", [(3, 5, 40, 50), (2, 72, 9, 15), (1, 300, 3, 3), (70, 2, 7, 7)], ids=str)
def test_norm_gate_of_maps_that_take_several_blocks(shape: tuple[int, ...]) -> None:
    """More channels than a block has lanes for, more positions than one has rows, and neither a multiple."""
    for layout in ("contiguous", "channels_last"):
        for dtype in (torch.float32, torch.float16):
            for mean_and_var in (statistics(shape[1], dtype), (None, None)):
                check(*norm(*mean_and_var), norm_gate_arguments(layout, shape, dtype))


@pytest.mark.parametrize("shape", [(2, 64, 8, 16), (3, 72, 9, 7), (1, 20, 5, 13), (2, 130, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_maps_of_two_layouts(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Inside of an attention u is channels_last while the result and its gradient are contiguous: the same
    bits as with one layout, but for the order of sums."""
    module = backends.cuda.operators.gates
    last, contiguous = torch.channels_last, torch.contiguous_format
    u, z, grad = (LAYOUTS["channels_last"](shape, dtype) for _ in range(3))
    C = shape[1]
    vectors = torch.randn(C, dtype=dtype), torch.randn(C), torch.randn(C), torch.rand(C) + 0.1, torch.randn(C)
    given = backends.gpu.Norm(*vectors, 1e-3)
    for gated in (z, None):
        for batch in (True, False):
            found, expected = (
                (
                    module.norm_forward(u, gated, given, last, layout),
                    *module.norm_backward(
                        grad.contiguous(memory_format=layout),
                        *(u, gated, given, batch, (True, gated is not None, True, True)),
                        *(last, layout, True),
                    ),
                )
                for layout in (contiguous, last)
            )
            assert found[0].is_contiguous() and torch.equal(found[0], expected[0])
            if gated is not None:
                assert torch.equal(found[2], expected[2])
            tolerance = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}[dtype]
            for a, b in zip(found[1:5], expected[1:5], strict=True):
                if a is not None:
                    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(found[5], expected[5], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 64, 8, 16), (3, 72, 9, 7), (1, 20, 5, 13)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_gate_is_added_to_what_is_there(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """In any layouts: rounded once, from the sum."""
    module = backends.cuda.operators.gates
    layouts = (torch.contiguous_format, torch.channels_last)
    C = shape[1]
    vectors = torch.randn(C), torch.randn(C), torch.randn(C), torch.rand(C) + 0.1
    u, z, there = (torch.randn(shape).to(dtype) for _ in range(3))
    exact = reference.norm_gate(u.double(), z.double(), *(v.double() for v in vectors), 1e-3)
    for layout, z_layout, out_layout in itertools.product(layouts, repeat=3):
        maps = u.contiguous(memory_format=layout), z.contiguous(memory_format=z_layout)
        given = backends.gpu.Norm(*vectors, None, 1e-3)
        found = module.norm_forward(*maps, given, layout, out_layout, z_layout)
        assert found.is_contiguous(memory_format=out_layout)
        rounding = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
        torch.testing.assert_close(found.double(), exact, rtol=rounding, atol=rounding)
        added = there.clone(memory_format=torch.preserve_format).contiguous(memory_format=out_layout)
        same = module.norm_forward(*maps, given, layout, out_layout, z_layout, added)
        assert same is added
        torch.testing.assert_close(
            added.double(), exact + there.double(), rtol=2 * rounding, atol=2 * rounding
        )


def results() -> list[Tensor]:
    """Of every kernel, in several blocks."""
    torch.manual_seed(5)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for layout in ("contiguous", "channels_last"):
            grad = torch.randn(3, 24, 9, 8)
            arguments = norm_gate_arguments(layout, (3, 24, 9, 8), dtype)
            out, grads = run(norm()[0], arguments, range(4), grad)
            found += [out, *grads]
        spectrogram = torch.randn(3, 40, 50, dtype=dtype)
        start, width = torch.randint(40, (3, 3)), torch.randint(20, (3, 3))
        found.append(functional.frequency_mask(spectrogram, start, width, 2.0))
        functional.frequency_mask_(spectrogram, start, width, 2.0)
        found.append(spectrogram)
        module, _ = pair(dtype, channels=16, kernel_size=3)
        x = torch.randn(2, 16, 6, 8, dtype=dtype, requires_grad=True)
        out = module(x)
        found += [out.detach(), *torch.autograd.grad(out.sin().sum(), [x, *module.parameters()])]
        found.append(module.eval()(x).detach())
    return found


def test_the_order_of_threads_and_blocks_changes_nothing(any_order: ModuleType) -> None:
    """Two threads that raced would give other bits in another order."""
    expected = results()
    for seed in (1, 2, 3):
        any_order.shuffle_order(seed)
        for number, (a, b) in enumerate(zip(results(), expected, strict=True)):
            assert torch.equal(a, b), number


# ---- Launches


def product(sizes: tuple[int, ...]) -> int:
    return math.prod(sizes)


def check_plan(plan: dict[str, Any], shared_limit: int = 48 * 1024) -> None:
    """What every GPU from compute capability 8.0 on takes."""
    for blocks, most in zip(plan["grid"], LARGEST_GRID, strict=True):
        assert 1 <= blocks <= most, plan
    assert 32 <= plan["threads"] <= 1024 and plan["threads"] % 32 == 0, plan
    assert 0 <= plan["shared_bytes"] <= shared_limit, plan


MASKS = [
    (1, 1, 1),
    (1, 80, 400),
    (64, 80, 401),
    (2048, 128, 1024),
    (3, 5, 2**33),
    (2**31, 3, 1),
    (7, 2**32, 1),
]


@pytest.mark.parametrize("sizes", MASKS, ids=str)
@pytest.mark.parametrize("element_size", [2, 4, 8])
def test_launches_of_masks(sizes: tuple[int, int, int], element_size: int, emulated_cuda: ModuleType) -> None:
    batch, bins, frames = sizes
    for shared in (False, True):
        for bands in (1, 7):
            call = (H200, batch, bins, frames, bands, shared, element_size, A, A, 0)
            for address, width in ((A, 16 // element_size), (A + element_size, 1)):
                plan = emulated_cuda.plan_frequency_mask(*call, address, 2 * A)
                check_plan(plan)
                tile = 4 * plan["threads"] * width
                assert (plan["grid"][0] - 1) * tile < product(sizes) <= plan["grid"][0] * tile
                assert plan["shared_bytes"] >= min(tile, (tile + frames - 2) // frames + 1)
            plan = emulated_cuda.plan_frequency_mask(*call, A, A)
            check_plan(plan)
            assert plan["kernel"] == "frequency_mask, in place"
            assert plan["grid"][0] == min(batch * bands, LARGEST_GRID[0])
            # Neither too few blocks for the device nor far more than there is work for.
            assert product(plan["grid"]) >= min(132, batch * bands * bins * frames * element_size // 2**16)
            assert plan["grid"][1] * 2**14 < bins * frames * element_size + 2**14


def test_a_mask_of_more_blocks_than_a_grid_has_is_refused(emulated_cuda: ModuleType) -> None:
    call = (H200, 2**31, 2**10, 2**11, 1, True, 4, A, A, 0, A + 4, 2 * A)
    with pytest.raises(ValueError, match=r"cannot launch frequency_mask with a grid of 4398046511104x1x1"):
        emulated_cuda.frequency_mask(*call)


MAPS = [
    *(
        (1, 1, 1),
        (1, 64, 49),
        (256, 64, 3136),
        (8, 512, 49),
        (8, 256, 196),
        (3, 17, 60),
        (1, 3, 33),
        (2, 4096, 4),
    ),
    *(
        (1, 1, 46400**2),
        (11, 64, 1800 * 1720),
        (2**31, 1, 1),
        (1, 2**20, 16),
        (1, 100_001, 9),
        (70000, 24, 1024),
    ),
]


@pytest.mark.parametrize("sizes", MAPS, ids=str)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("element", [FLOAT32, BFLOAT16, FLOAT16])
def test_launches_of_norms(
    sizes: tuple[int, int, int], element: int, last: bool, emulated_cuda: ModuleType
) -> None:
    N, C, P = sizes
    elements = 4 if element == FLOAT32 else 8
    for address in (A, A + 2):
        width = elements if (C if last else P) % elements == 0 and address == A else 1
        plans = [
            emulated_cuda.plan_norm_statistics(element, last, *sizes, address),
            emulated_cuda.plan_norm_forward(element, 3 * (last,), False, *sizes, address, A),
            emulated_cuda.plan_norm_backward(element, last, last, *sizes, A, address, 0),
            emulated_cuda.plan_norm_backward(element, last, last, *sizes, A, address, A),
        ]
        for plan in plans:
            check_plan(plan)
            assert plan["width"] == width
            lanes, (along_c, along_p, _) = plan["channel_lanes"], plan["grid"]
            assert 32 % lanes == 0 and (last or lanes == 1)
            per_block = lanes * width if last else 1
            assert (along_c - 1) * per_block < C <= along_c * per_block
            # No block along y is without anything to do.
            rows = plan["threads"] // lanes
            accesses = N * P if last else N * (P // width)
            assert (along_p - 1) * rows < accesses
        parts = emulated_cuda.norm_parts(element, last, False, *sizes)
        assert plans[0]["grid"][1] == plans[3]["grid"][1] == parts <= 1024
        # A multiprocessor's worth for every GPU that there is, where there is work for it.
        assert plans[3]["grid"][0] * parts >= min(1024, N * P * C // 2**14)
    if element != FLOAT32 and last:
        for plan in (
            emulated_cuda.plan_norm_forward(element, (True, True, False), False, *sizes, A, A),
            emulated_cuda.plan_norm_forward(element, (True, False, True), True, *sizes, A, A),
            emulated_cuda.plan_norm_backward(element, True, False, *sizes, A, A, 0),
            emulated_cuda.plan_norm_backward(element, True, False, *sizes, A, A, A),
        ):
            check_plan(plan)
            assert plan["shared_bytes"] == 64 * 64 * 2
            assert plan["channel_lanes"] == (8 if plan["width"] == 8 else 32)
            assert (plan["grid"][1] - 1) * 64 < N * P


@pytest.mark.parametrize(
    ("function", "changed", "expectation"),
    [
        ("plan_norm_statistics", {0: 3}, "an element code"),
        ("plan_norm_statistics", {2: 0}, "a batch, channels and positions"),
        ("plan_norm_statistics", {5: 0}, "no null address"),
        ("plan_norm_forward", {1: (False, True, False)}, "u that is channels_last"),
        ("plan_norm_forward", {1: (True, False, False)}, "z or out in the layout of u"),
        ("plan_norm_forward", {0: 0, 1: (True, True, False)}, "one layout of all maps of float32"),
        ("plan_norm_forward", {1: (True, True, False), 2: True}, "out in the layout of u"),
        ("plan_frequency_mask", {6: 3}, "elements of 2, 4 or 8 bytes"),
        ("plan_frequency_mask", {4: 0}, "a batch, bins, frames and bands"),
        ("plan_frequency_mask", {10: 0}, "no null address"),
    ],
)
def test_nonsense_raises(
    function: str, changed: dict[int, Any], expectation: str, emulated_cuda: ModuleType
) -> None:
    calls: dict[str, list[Any]] = {
        "plan_norm_statistics": [BFLOAT16, True, 2, 8, 16, A],
        "plan_norm_forward": [BFLOAT16, (True, True, True), False, 2, 8, 16, A, A],
        "plan_frequency_mask": [H200, 2, 8, 16, 1, True, 4, A, A, 0, A, A],
    }
    call = calls[function]
    getattr(emulated_cuda, function)(*call)
    for number, value in changed.items():
        call[number] = value
    with pytest.raises(ValueError, match=rf"gcsa_ext\._C\.cuda: expected {expectation}"):
        getattr(emulated_cuda, function)(*call)


# ---- The emulation


@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        ("skips_a_barrier", "deadlock; 40 threads at __syncthreads; 24 threads at .finished."),
        ("waits_at_two_places", "lanes of a warp wait at __shfl_xor_sync and at __syncwarp"),
        ("leaves_a_lane_out", "thread 16: __shfl_xor_sync with a mask that leaves out the calling lane"),
        ("writes_behind_its_memory", "a block wrote outside of its shared memory"),
        ("writes_in_front_of_its_memory", "a block wrote outside of its shared memory"),
        ("is_not_aligned", "thread 1: an access of 16 bytes is not aligned"),
        ("never_waits_for_a_copy", "ends before its asynchronous copies have arrived"),
    ],
)
def test_mistakes_are_found(mistake: str, found: str, emulated_cuda: ModuleType) -> None:
    out = torch.zeros(128)
    with pytest.raises(RuntimeError, match=f"{mistake}.*{found}"):
        emulated_cuda.run_fault(mistake, out.data_ptr())
    results()  # the next launches are none the worse


def test_races_show(any_order: ModuleType) -> None:
    found = []
    for seed in (0, 1, 2):
        any_order.shuffle_order(seed)
        found.append(torch.zeros(64))
        any_order.run_fault("races", found[-1].data_ptr())
    assert not torch.equal(found[0].nan_to_num(-1.0), found[1].nan_to_num(-1.0))
    assert not torch.equal(found[1].nan_to_num(-1.0), found[2].nan_to_num(-1.0))
    out = torch.zeros(64)
    any_order.run_fault("reads_too_early", out.data_ptr())
    assert out.isnan().all()


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_conversions(name: str, emulated_cuda: ModuleType) -> None:
    """Every number of 16 bits, and rounding between, below and beyond them."""
    dtype = getattr(torch, name)
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    wide = numbers.view(dtype).float()
    to_float, from_float = (getattr(emulated_cuda, n) for n in (f"{name}_to_float", f"float_to_{name}"))
    found = torch.tensor([to_float(i) for i in (numbers.int() & 0xFFFF).tolist()])
    assert torch.equal(found.isnan(), wide.isnan()) and torch.equal(found.nan_to_num(), wide.nan_to_num())
    between = wide[wide.isfinite()]
    between = torch.cat([between, (between + between.roll(1)) / 2, between * 1.3, torch.randn(999) * 1e-7])
    rounded = torch.tensor([from_float(x) for x in between.tolist()], dtype=torch.int32).to(torch.int16)
    assert torch.equal(rounded, between.to(dtype).view(torch.int16))


# ---- The backend


def test_what_it_cannot_run_and_why() -> None:
    cpu, meta = torch.device("cpu"), torch.device("meta")
    assert "not torch.float64" in backends.unsupported("cuda", "norm_gate", cpu, torch.float64)
    for operator in ("frequency_mask", "frequency_mask_"):
        assert backends.unsupported("cuda", operator, cpu, torch.float64) is None
    assert "on a GPU, not on meta" in backends.unsupported("cuda", "gcsa", meta, torch.float32)
    with gcsa_ext.use_backend("cpu"):
        assert "on a GPU, not on cpu" in backends.unsupported("cuda", "norm_gate", cpu, torch.float32)


def test_without_emulation_it_does_not_run_on_the_cpu() -> None:
    printed = python(
        """
        import torch, gcsa_ext
        print(gcsa_ext.format_info())
        try:
            with gcsa_ext.use_backend("cuda"):
                gcsa_ext.functional.norm_gate(*2 * [torch.randn(2, 3, 4, 5)], training=True)
        except RuntimeError as error:
            print(error)
        """
    )
    assert (
        "norm_gate: backend 'cuda' is forced but cannot run: the cuda backend takes tensors on a GPU"
        in printed
    )
    build = gcsa_ext.info()["build"]
    assert (build["cuda"] or f"none: {build['cuda_missing']}") in printed
