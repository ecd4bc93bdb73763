"""How CUDA kernels are launched, for every class of shapes: grids, threads, shared memory, tails, the width
of accesses, errors. A plan is a function of sizes: nothing is launched, and no GPU is needed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import emulated_cuda as emulation
import pytest
import torch
from emulated_cuda import H200, KB

from gcsa_ext import backends
from gcsa_ext.backends.cuda import gates, launch
from gcsa_ext.backends.cuda.launch import ELEMENTS

FLOAT32, BFLOAT16, FLOAT16 = 0, 2, 3
LARGEST_GRID = (2**31 - 1, 65535, 65535)
A = 4096
"""An aligned address. Planning does not read the memory there."""


@pytest.fixture(scope="module")
def plans() -> ModuleType:
    """The functions of the compiled kernels, or of the emulated ones."""
    extension = backends.native.extension
    if extension is not None and extension.build_info()["cuda"] is not None:
        module: ModuleType = extension.cuda
        return module
    if emulation.compiler() is None:
        pytest.skip("built without CUDA kernels, and there is no C++ compiler for the emulated ones")
    return emulation.load()


# ---- Masks and norms


def product(sizes: tuple[int, ...]) -> int:
    return math.prod(sizes)


def check_plan(plan: dict[str, Any], shared_limit: int = 48 * 1024) -> None:
    """Check the limits of GPUs from compute capability 8.0 on."""
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
def test_launches_of_masks(sizes: tuple[int, int, int], element_size: int, plans: ModuleType) -> None:
    batch, bins, frames = sizes
    for shared in (False, True):
        for bands in (1, 7):
            call = (H200, batch, bins, frames, bands, shared, element_size, A, A, 0)
            for address, width in ((A, 16 // element_size), (A + element_size, 1)):
                plan = plans.plan_frequency_mask(*call, address, 2 * A)
                check_plan(plan)
                tile = 4 * plan["threads"] * width
                assert (plan["grid"][0] - 1) * tile < product(sizes) <= plan["grid"][0] * tile
                assert plan["shared_bytes"] >= min(tile, (tile + frames - 2) // frames + 1)
            plan = plans.plan_frequency_mask(*call, A, A)
            check_plan(plan)
            assert plan["kernel"] == "frequency_mask, in place"
            assert plan["grid"][0] == min(batch * bands, LARGEST_GRID[0])
            # Neither too few blocks for the device nor far more than there is work for.
            assert product(plan["grid"]) >= min(132, batch * bands * bins * frames * element_size // 2**16)
            assert plan["grid"][1] * 2**14 < bins * frames * element_size + 2**14


def test_a_mask_of_more_blocks_than_a_grid_has_is_refused(plans: ModuleType) -> None:
    call = (H200, 2**31, 2**10, 2**11, 1, True, 4, A, A, 0, A + 4, 2 * A)
    with pytest.raises(ValueError, match=r"cannot launch frequency_mask with a grid of 4398046511104x1x1"):
        plans.frequency_mask(*call)


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
def test_launches_of_norms(sizes: tuple[int, int, int], element: int, last: bool, plans: ModuleType) -> None:
    N, C, P = sizes
    elements = 4 if element == FLOAT32 else 8
    for address in (A, A + 2):
        wide = (C if last else P) % elements == 0 and address == A
        found = [
            plans.plan_norm_statistics(element, last, *sizes, address),
            plans.plan_norm_forward(element, 3 * (last,), False, *sizes, address, A),
            plans.plan_norm_backward(element, last, last, *sizes, A, address, 0),
            plans.plan_norm_backward(element, last, last, *sizes, A, address, A),
        ]
        for plan in found:
            check_plan(plan)
            width = plan["width"]
            assert (width, plan["ragged"]) == (
                (elements if wide else 1, False) if last else (elements, not wide)
            )
            lanes, (along_c, along_p, _) = plan["channel_lanes"], plan["grid"]
            assert 32 % lanes == 0 and (last or lanes == 1)
            per_block = lanes * width if last else 1
            assert (along_c - 1) * per_block < C <= along_c * per_block
            # Every block along y has work.
            rows = plan["threads"] // lanes
            of_plane = (P + (0 if wide else width - 1) + width - 1) // width
            accesses = N * P if last else N * of_plane
            assert (along_p - 1) * rows < accesses
        parts = plans.norm_parts(element, last, False, *sizes)
        assert found[0]["grid"][1] == found[3]["grid"][1] == parts <= 1024
        # A multiprocessor's worth for every GPU that there is, where there is work for it.
        assert found[3]["grid"][0] * parts >= min(1024, N * P * C // 2**14)
    if element != FLOAT32 and last:
        for plan in (
            plans.plan_norm_forward(element, (True, True, False), False, *sizes, A, A),
            plans.plan_norm_forward(element, (True, False, True), True, *sizes, A, A),
            plans.plan_norm_backward(element, True, False, *sizes, A, A, 0),
            plans.plan_norm_backward(element, True, False, *sizes, A, A, A),
        ):
            check_plan(plan)
            assert plan["shared_bytes"] == 64 * 64 * 2
            assert plan["channel_lanes"] == (8 if plan["width"] == 8 else 32)
            tile = 64 // P * P if plan["whole_images"] else 64
            assert (plan["grid"][1] - 1) * tile < N * P
            assert not plan["whole_images"] or (P % 8 and C * P % 8 == 0 and 48 <= tile < 64)


@pytest.mark.parametrize(
    ("function", "changed", "expectation"),
    [
        ("plan_norm_statistics", {0: 4}, "the code of a dtype"),
        ("plan_norm_statistics", {0: 1}, "a map of float32, bfloat16 or float16"),
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
def test_bad_arguments(function: str, changed: dict[int, Any], expectation: str, plans: ModuleType) -> None:
    calls: dict[str, list[Any]] = {
        "plan_norm_statistics": [BFLOAT16, True, 2, 8, 16, A],
        "plan_norm_forward": [BFLOAT16, (True, True, True), False, 2, 8, 16, A, A],
        "plan_frequency_mask": [H200, 2, 8, 16, 1, True, 4, A, A, 0, A, A],
    }
    call = calls[function]
    getattr(plans, function)(*call)
    for number, value in changed.items():
        call[number] = value
    with pytest.raises(ValueError, match=rf"gcsa_ext\._C\.cuda: expected {expectation}"):
        getattr(plans, function)(*call)


# ---- The channel gate


GATES = [
    *itertools.product(((1, 1, 1), (256, 64, 3136), (256, 128, 784), (3, 17, 60), (2**31, 1, 1)), (1, 16)),
    *itertools.product(((256, 256, 196), (8, 512, 49), (1, 300, 46400**2), (70000, 24, 1024)), (32, 64)),
    *itertools.product(((256, 512, 49), (3, 1024, 81)), (128, 256)),
]


@pytest.fixture
def planned(plans: ModuleType) -> Iterator[None]:
    """Let the backend plan its launches by the functions of `plans`."""
    launch.emulate(plans)
    yield
    launch.emulate(None)


def taken_on_a_gpu(
    shared_bytes: int, monkeypatch: pytest.MonkeyPatch, channels: int, hidden: int, dtype: torch.dtype
) -> bool:
    """Whether the backend has a channel gate of this size on a GPU with this shared memory."""
    monkeypatch.setattr(launch, "EMULATED_TARGET", (0, 0, 132, shared_bytes))
    return bool(gates.takes_channel_gate(channels, hidden, dtype))


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize(("sizes", "hidden"), GATES, ids=str)
@pytest.mark.parametrize("element", [FLOAT32, BFLOAT16, FLOAT16])
@pytest.mark.parametrize("shared", [99, 163, 227])
def test_launches_of_the_gate(
    shared: int,
    element: int,
    sizes: tuple[int, int, int],
    hidden: int,
    plans: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    N, C, P = sizes
    limit = shared * KB
    refused = False
    for last, other_last, tf32 in itertools.product((False, True), (False, True), (False, True)):
        call = ((0, 0, 132, limit), element, sizes, (hidden, 1, True, tf32), last, other_last)
        try:
            plan = plans.plan_channel_gate(*call)
            plans.plan_channel_gate_backward(*call, True, (A, A, A))
        except ValueError as error:
            assert "do not fit in the shared memory of a block" in str(error)
            # Twice 16 positions of all channels in the backward pass; torch computes it.
            assert 32 * C * (4 if element == FLOAT32 else 2) > limit / 2
            refused = True
            continue
        check_plan(plan, limit)
        # A warp has 16 positions; a loop over tiles makes every grid enough, one block each is too many. At
        # least three quarters of a tile are positions.
        tiles = -(-N * P // (plan["threads"] // 2))
        assert min(tiles, 132) <= plan["grid"][0] <= -(-4 * tiles // 3) and product(plan["grid"]) <= 4 * 132
        for weights in (True, False):
            kernels = plans.plan_channel_gate_backward(*call, weights, (A, A, A))
            rows, units = plans.channel_gate_backward_workspace(*call, weights, (A, A, A))
            for plan in kernels:
                check_plan(plan, limit)
            names = [plan["kernel"] for plan in kernels]
            if not weights:
                assert names == ["channel_gate_backward"] and rows == units == 0
                continue
            # Enough rows for all multiprocessors, and not so many that they are most of the traffic.
            assert rows <= max(1536, 256) and rows <= max(N * P // 48, 1)
            if units:
                assert names == ["channel_gate_backward", "channel_gate_sums", "sum_rows"]
                assert units % 64 == 0 and units - 64 < hidden <= units
                assert kernels[1]["grid"] == (rows, -(-C // 64), units // 64)
            else:
                assert names == ["channel_gate_backward", "sum_rows"] and kernels[0]["grid"][0] <= rows
                assert hidden <= 32
            assert kernels[-1]["grid"][0] == -(-(2 * C * hidden + C + hidden) // 32)
    dtype = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}[element]
    assert not (refused and taken_on_a_gpu(limit, monkeypatch, C, hidden, dtype))


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize("shared", [64, 99, 163, 227])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sizes_that_are_taken_fit_in_every_shape(
    dtype: torch.dtype, shared: int, plans: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With any number of positions and any alignment: else the backward pass would fail."""
    taken = 0
    for C, hidden in itertools.product((64, 256, 512, 1024, 1536, 2048, 3000), (4, 16, 32, 64, 128, 256)):
        if not taken_on_a_gpu(shared * KB, monkeypatch, C, hidden, dtype):
            continue
        taken += 1
        for P, last, other_last, x, grad in itertools.product(
            (1, 9, 16, 49, 196, 784), (False, True), (False, True), (A, A + 4), (A, A + 4)
        ):
            call = ((0, 0, 132, shared * KB), ELEMENTS[dtype], (3, C, P), (hidden, 1, True, False))
            plans.plan_channel_gate(*call, last, other_last)
            plans.plan_channel_gate_backward(*call, last, other_last, True, (x, grad, A))
    assert 0 < taken < 42


@pytest.mark.parametrize("sizes", [(256, 64, 3136), (256, 512, 49), (8, 256, 196), (3, 17, 60)], ids=str)
@pytest.mark.parametrize("element", [FLOAT32, BFLOAT16])
def test_sums_are_split_by_the_shape_alone(
    element: int, sizes: tuple[int, int, int], plans: ModuleType
) -> None:
    """Whatever the number of multiprocessors: two kinds of GPU give the same bits."""
    for hidden in (16, 128):
        gate = (hidden, 1, True, False)
        found = {
            plans.channel_gate_backward_workspace(
                (0, 0, multiprocessors, 227 * KB), element, sizes, gate, False, False, True, (A, A, A)
            )
            for multiprocessors in (1, 16, 84, 108, 132, 148, 1000)
        }
        assert len(found) == 1
    found = {
        plans.plan_small_gcsa(
            (0, 0, multiprocessors, 227 * KB),
            *(element, (2, 64, 7, 7), (16, 1, 7, True), (False, False), False),
        )[:3]
        for multiprocessors in (1, 16, 84, 108, 132, 148, 1000)
    }
    assert len(found) == 1


@pytest.mark.parametrize(("C", "P"), [(64, 3136), (128, 784), (256, 196), (512, 49)])
@pytest.mark.parametrize("element", [FLOAT32, BFLOAT16])
def test_the_width_of_accesses_to_maps_of_the_usual_sizes(
    element: int, C: int, P: int, plans: ModuleType
) -> None:
    """64 x 56 x 56 to 512 x 7 x 7: 16 bytes everywhere, but for the channel gate's of contiguous maps of
    14 x 14 values of 16 bits, whose rows are multiples of 8."""
    sizes = (256, C, P)
    narrow = 8 if element == BFLOAT16 and P == 196 else 16
    elements = 16 // (4 if element == FLOAT32 else 2)
    for last in (False, True):
        for plan in (
            plans.plan_norm_statistics(element, last, *sizes, A),
            plans.plan_norm_forward(element, 3 * (last,), False, *sizes, A, A),
            plans.plan_norm_backward(element, last, last, *sizes, A, A, A),
        ):
            assert plan["width"] == elements
        for other_last in (False, True):
            gate = (C // 4, 4, True, False)
            call = (H200, element, sizes, gate, last, other_last)
            plan = plans.plan_channel_gate(*call)
            assert plan["x_bytes"] == (16 if last else narrow)
            assert plan["out_bytes"] == (16 if other_last else narrow)
            plan = plans.plan_channel_gate_backward(*call, True, (A, A, A))[0]
            # An image of float32 of both maps does not fit in the shared memory of a block.
            rows = 4 if element == FLOAT32 and P == 49 else narrow
            assert plan["x_bytes"] == plan["grad_x_bytes"] == (16 if last else rows)
            assert plan["grad_bytes"] == (16 if other_last else rows)
    if element == BFLOAT16:
        plan = plans.plan_norm_forward(element, (True, True, False), False, *sizes, A, A)
        assert plan["width"] == 8 and plan["whole_images"] == (P == 49)


def test_blocks_to_a_multiprocessor_at_the_usual_sizes(plans: ModuleType) -> None:
    """With 227 KB: how many there are, their warps, and kernels in the backward pass. Of 7 x 7 positions a
    block of 8 warps takes two images."""
    for sizes, hidden, blocks, warps, kernels in (
        ((256, 64, 3136), 16, 4, 4, 2),
        ((256, 128, 784), 32, 3, 4, 2),
        ((256, 256, 196), 64, 2, 8, 3),
        ((256, 512, 49), 128, 1, 8, 3),
    ):
        call = (H200, BFLOAT16, sizes, (hidden, 4, True, False), False, True)
        plan = plans.plan_channel_gate(*call)
        assert plan["grid"][0] == min(blocks * 132, 256 * sizes[2] // 98) and plan["threads"] == 32 * warps
        assert (plan["shared_bytes"] + KB) * blocks <= 228 * KB
        assert len(plans.plan_channel_gate_backward(*call, True, (A, A, A))) == kernels


@pytest.mark.parametrize(
    ("gate", "sizes", "found"),
    [
        ((257, 1, True, False), (1, 8, 4), "no more hidden units than largest_gate_hidden"),
        ((0, 1, True, False), (1, 8, 4), "no more hidden units than largest_gate_hidden"),
        ((2, 3, True, False), (1, 8, 4), "groups that divide the channels"),
        ((2, 1, True, False), (0, 8, 4), "a batch, channels and positions of at least 1"),
    ],
)
def test_bad_sizes_of_the_gate(
    gate: tuple[Any, ...], sizes: tuple[int, ...], found: str, plans: ModuleType
) -> None:
    with pytest.raises(ValueError, match=found):
        plans.plan_channel_gate(H200, BFLOAT16, sizes, gate, False, False)
    with pytest.raises(ValueError, match="no null address"):
        plans.channel_gate(
            H200, BFLOAT16, (1, 8, 4), (2, 1, True, False), False, False, 0, (16, 16, 16, 16), 16
        )


# ---- The whole attention at once


SMALL = [
    (8, 512, 7, 7, 128, 7),
    (1, 256, 14, 14, 64, 7),
    (1, 1, 1, 1, 1, 3),
    (3, 100, 9, 5, 25, 11),
    (2, 64, 28, 28, 16, 7),
]


@pytest.mark.parametrize("sizes", SMALL, ids=str)
@pytest.mark.parametrize("element", [FLOAT32, BFLOAT16, FLOAT16])
@pytest.mark.parametrize(
    ("multiprocessors", "shared"), [(108, 163), (84, 99), (132, 227), (148, 227), (1, 227)]
)
def test_launches_of_small_maps(
    multiprocessors: int, shared: int, element: int, sizes: tuple[int, ...], plans: ModuleType
) -> None:
    N, C, H, W, hidden, kernel_size = sizes
    limits = (0, 0, multiprocessors, shared * KB)
    call = (limits, element, (N, C, H, W), (hidden, 1, kernel_size, True), (False, False), False)
    try:
        z, between, partial, plan = plans.plan_small_gcsa(*call)
    except ValueError as error:
        assert "do not fit in the shared memory of a block" in str(error)
        assert shared == 99 and (element == FLOAT32 or kernel_size > 7)
        return
    check_plan(plan, shared * KB)
    assert plan["cooperative"] and product(plan["grid"]) <= multiprocessors  # all live at the same time
    along_c, along_h = -(-C // 16), -(-hidden // 16)
    assert (z, between) == (along_c * 16 * N * H * W, along_h * 16 * N * H * W)
    splits = partial / (16 * N * H * W)
    assert splits >= max(along_c, along_h) and splits <= max(128, along_c, along_h)
    if multiprocessors == 132 and sizes in SMALL[:2]:
        assert plan["grid"][0] >= 120  # nearly all multiprocessors have a part
