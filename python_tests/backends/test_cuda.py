"""The CUDA kernels, emulated on the CPU: the emulation itself, and cases beyond the tests of operators, which
run on these kernels by the fixture `backend`. See test_cuda_plans.py for the launches."""

from __future__ import annotations

import itertools
from types import ModuleType

import pytest
import torch
from devices import only
from gate_checks import check, norm, norm_gate_arguments, run, statistics
from layouts import LAYOUTS
from pairs import pair
from subprocesses import python
from torch import Tensor

import gcsa_ext
from gcsa_ext import backends, functional, reference

pytestmark = [pytest.mark.usefixtures("one_thread"), *only("cuda")]


# ---- Whole operators


def test_maps_that_are_not_aligned() -> None:
    """A contiguous view may begin at any element: the kernels then access single elements."""
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


@pytest.mark.parametrize(
    "shape",
    [
        *((3, 5, 40, 50), (2, 72, 9, 15), (1, 300, 3, 3)),
        *((70, 2, 7, 7), (66, 3, 14, 14), (300, 2, 1, 3), (2, 9, 1, 1)),  # rows that begin anywhere
    ],
    ids=str,
)
def test_norm_gate_of_maps_that_take_several_blocks(shape: tuple[int, ...]) -> None:
    """More channels than a block has lanes for, more positions than one has rows, and neither a multiple."""
    for layout in ("contiguous", "channels_last"):
        for dtype in (torch.float32, torch.float16):
            for mean_and_var in (statistics(shape[1], dtype), (None, None)):
                check(*norm(*mean_and_var), norm_gate_arguments(layout, shape, dtype))


@pytest.mark.parametrize(
    "shape",
    [
        *((2, 64, 8, 16), (2, 72, 6, 10), (1, 20, 5, 13), (2, 130, 4, 4)),
        *((3, 72, 7, 7), (2, 64, 9, 7), (5, 16, 5, 5), (3, 12, 4, 8)),  # in whole images
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_maps_of_two_layouts(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Inside of an attention u is channels_last while the result and its gradient are contiguous.

    Results have the same bits as with one layout; sums are in another order."""
    module = backends.cuda.gates
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


@pytest.mark.parametrize("shape", [(2, 64, 8, 16), (3, 72, 7, 7), (1, 20, 5, 13)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_gate_is_added_to_a_map(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The sum of gate and map is rounded once, in any layouts."""
    module = backends.cuda.gates
    layouts = (torch.contiguous_format, torch.channels_last)
    C = shape[1]
    vectors = torch.randn(C), torch.randn(C), torch.randn(C), torch.rand(C) + 0.1
    u, z, addend = (torch.randn(shape).to(dtype) for _ in range(3))
    exact = reference.norm_gate(u.double(), z.double(), *(v.double() for v in vectors), 1e-3)
    for layout, z_layout, out_layout in itertools.product(layouts, repeat=3):
        maps = u.contiguous(memory_format=layout), z.contiguous(memory_format=z_layout)
        given = backends.gpu.Norm(*vectors, None, 1e-3)
        found = module.norm_forward(*maps, given, layout, out_layout, z_layout)
        assert found.is_contiguous(memory_format=out_layout)
        rounding = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
        torch.testing.assert_close(found.double(), exact, rtol=rounding, atol=rounding)
        added = addend.clone(memory_format=torch.preserve_format).contiguous(memory_format=out_layout)
        same = module.norm_forward(*maps, given, layout, out_layout, z_layout, added)
        assert same is added
        torch.testing.assert_close(
            added.double(), exact + addend.double(), rtol=2 * rounding, atol=2 * rounding
        )


def results() -> list[Tensor]:
    """Results of every kernel, in several blocks."""
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
    """A race between threads would change the bits."""
    expected = results()
    for seed in (1, 2, 3):
        any_order.shuffle_order(seed)
        for number, (a, b) in enumerate(zip(results(), expected, strict=True)):
            assert torch.equal(a, b), number


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
    results()  # later launches still work


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


def test_unsupported_tensors() -> None:
    cpu, meta = torch.device("cpu"), torch.device("meta")
    assert "not torch.float64" in backends.unsupported("cuda", "norm_gate", cpu, torch.float64)
    for operator in ("spectrogram_mask", "spectrogram_mask_"):
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
