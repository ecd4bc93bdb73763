"""The CUDA kernels of the channel gate and of the whole attention on small maps, emulated on the CPU: cases
beyond the tests of operators, which run on these kernels by the fixture `backend`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from accuracy import assert_as_accurate
from devices import only
from emulated_cuda import H200, KB
from layouts import LAYOUTS
from pairs import pair
from torch import Tensor

import gcsa_ext
from gcsa_ext import reference
from gcsa_ext.backends.cuda import gates, launch
from gcsa_ext.backends.cuda import small_gcsa as small_gcsa_module
from gcsa_ext.backends.gpu import ChannelGate
from gcsa_ext.backends.operands import Arguments

pytestmark = [pytest.mark.usefixtures("one_thread"), *only("cuda")]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


@pytest.fixture
def tf32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(small_gcsa_module, "convolution_tf32", lambda x: x.dtype == torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = False


def on_a_gpu_of(monkeypatch: pytest.MonkeyPatch, multiprocessors: int, shared_bytes: int = 227 * KB) -> None:
    monkeypatch.setattr(launch, "EMULATED_TARGET", (0, 0, multiprocessors, shared_bytes))


def gate_weights(channels: int, hidden: int, dtype: torch.dtype) -> list[Tensor]:
    shapes = (hidden, channels), (hidden,), (channels, hidden), (channels,)
    return [(torch.randn(shape) / math.sqrt(shape[-1])).to(dtype) for shape in shapes]


def moved(t: Tensor) -> Tensor:
    """A copy that begins one element behind the beginning of its memory."""
    storage = torch.empty(t.numel() + 1, dtype=t.dtype)
    return storage.as_strided(t.shape, t.stride(), 1).copy_(t)


# ---- The channel gate


@pytest.mark.parametrize("layout", [CONTIGUOUS, CHANNELS_LAST], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_value_that_is_not_finite_stays_at_its_position(
    dtype: torch.dtype, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channels are padded, and a block computes many tiles in the same shared memory."""
    on_a_gpu_of(monkeypatch, multiprocessors=1)
    x = torch.randn(2, 9, 40, 41).to(dtype).contiguous(memory_format=layout)
    x[0, 4, 0, 0] = math.nan
    out = gates.channel_gate(x, ChannelGate(gate_weights(9, 2, dtype), 3, True), layout, layout)
    assert out[0, :, 0, 0].isnan().all() and out.isnan().sum() == 9


def check_gate(
    shape: tuple[int, ...],
    hidden: int,
    groups: int,
    dtype: torch.dtype,
    layouts: Sequence[torch.memory_format],
    sigmoid: bool = True,
) -> None:
    """Forward and backward against float64; the layouts of x and of the result."""
    layout, other = layouts
    x = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
    weights = gate_weights(shape[1], hidden, dtype)
    grad = torch.randn(shape).to(dtype).contiguous(memory_format=other)

    gate = ChannelGate(weights, groups, sigmoid)
    out = gates.channel_gate(x, gate, layout, other)
    assert out.is_contiguous(memory_format=other)
    grad_x, grad_weights = gates.channel_gate_backward(grad, x, gate, layout, other, True, True)
    assert grad_x is not None and grad_x.is_contiguous(memory_format=layout)

    def definition(dtype: torch.dtype) -> tuple[Tensor, ...]:
        inputs = [t.to(dtype).requires_grad_() for t in (x, *weights)]
        result = reference.channel_gate(*inputs, groups, sigmoid)  # type: ignore[misc]
        return result, *torch.autograd.grad(result, inputs, grad.to(dtype))

    names = "result", "grad_x", "grad_w1", "grad_b1", "grad_w2", "grad_b2"
    exact = definition(torch.float64)
    largest = max(g.abs().max().item() for g in exact[1:])
    for name, found, plain, right in zip(
        names, (out, grad_x, *grad_weights), definition(dtype), exact, strict=True
    ):
        assert found is not None
        assert_as_accurate(found, plain, right, name, least_scale=0.0 if name == "result" else 2 * largest)


@pytest.mark.parametrize("layouts", list(itertools.product((CONTIGUOUS, CHANNELS_LAST), repeat=2)), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_layouts_on_either_side(dtype: torch.dtype, layouts: Sequence[torch.memory_format]) -> None:
    """Aligned maps, accesses of 8 bytes, of one element, of whole images, and an image in two tiles; sums
    over positions within a kernel and in a separate one."""
    check_gate((2, 16, 8, 8), 4, 4, dtype, layouts)
    check_gate((1, 20, 14, 14), 5, 2, dtype, layouts)
    check_gate((3, 15, 7, 7), 3, 5, dtype, layouts, sigmoid=False)
    check_gate((5, 24, 7, 7), 6, 4, dtype, layouts)
    check_gate((3, 72, 5, 5), 36, 3, dtype, layouts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", [1, 16, 17, 32, 33, 64, 65, 128, 200, 256])
def test_any_number_of_hidden_units(hidden: int, dtype: torch.dtype) -> None:
    """Below, at and above the numbers from which another kernel is launched."""
    check_gate((1, 72, 5, 7), hidden, 3, dtype, (CHANNELS_LAST, CONTIGUOUS))
    check_gate((1, 130, 3, 11), hidden, 2, dtype, (CONTIGUOUS, CHANNELS_LAST))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shared", [227, 163, 99, 64])
def test_any_shared_memory(shared: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that stay in shared memory, and weights that are loaded for every tile; one to eight warps per
    block; one to four blocks per multiprocessor."""
    for multiprocessors in (1, 5):
        on_a_gpu_of(monkeypatch, multiprocessors, shared * KB)
        for channels, hidden in ((64, 16), (100, 64), (256, 64 if dtype == torch.float32 else 100)):
            if shared > 64 or channels < 256:
                check_gate((1, channels, 9, 15), hidden, 4, dtype, (CONTIGUOUS, CHANNELS_LAST))


@pytest.mark.parametrize(
    ("channels", "hidden", "batch", "moved_grad"),
    [(256, 4, 1, True), (256, 4, 5, False), (512, 40, 40, False)],
)
def test_sums_over_maps_that_are_not_aligned(
    channels: int, hidden: int, batch: int, moved_grad: bool
) -> None:
    """Alignment decides the tiles, the number of partial sums, the kernels and their workspace."""
    x, grad = (torch.randn(batch, channels, 7, 7).bfloat16() for _ in range(2))
    gate = ChannelGate(gate_weights(channels, hidden, torch.bfloat16), 4, True)
    settings = gate, CONTIGUOUS, CONTIGUOUS, True, True
    grad_x, grads = gates.channel_gate_backward(grad, x, *settings)
    found_x, found = gates.channel_gate_backward(moved(grad) if moved_grad else grad, moved(x), *settings)
    assert grad_x is not None and found_x is not None and torch.equal(found_x, grad_x)
    for a, b in zip(found, grads, strict=True):
        assert a is not None and b is not None
        assert (a.float() - b.float()).norm() < 0.01 * b.float().norm()  # other sums, rounded to 8 bits


@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (3, 24, 7, 7)], ids=str)
@pytest.mark.parametrize("layout", [CONTIGUOUS, CHANNELS_LAST], ids=str)
def test_maps_and_weights_that_are_not_aligned(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    """A contiguous view may begin at any element. The results have the same bits."""
    x, grad = (torch.randn(shape).bfloat16().contiguous(memory_format=layout) for _ in range(2))
    weights = gate_weights(shape[1], 6, torch.bfloat16)
    views, moved_weights = [moved(t) for t in (x, grad)], [moved(w) for w in weights]
    assert all(t.data_ptr() % 16 for t in (*views, *moved_weights))
    gate, moved_gate = (ChannelGate(w, 4, True) for w in (weights, moved_weights))
    found = gates.channel_gate(views[0], moved_gate, layout, layout)
    assert torch.equal(found, gates.channel_gate(x, gate, layout, layout))
    grad_x, _ = gates.channel_gate_backward(views[1], views[0], moved_gate, layout, layout, True, True)
    expected, _ = gates.channel_gate_backward(grad, x, gate, layout, layout, True, True)
    assert grad_x is not None and expected is not None and torch.equal(grad_x, expected)


def test_tf32_where_torch_multiplies_so(tf32: None) -> None:
    x, weights = torch.randn(2, 24, 6, 6), gate_weights(24, 20, torch.float32)
    gate = ChannelGate(weights, 4, True)
    found = gates.channel_gate(x, gate, CONTIGUOUS, CONTIGUOUS)
    exact = reference.channel_gate(x.double(), *(w.double() for w in weights), 4)  # type: ignore[misc]
    assert 1e-5 < (found - exact).abs().max() < 2e-3  # 10 bits of a product's operands
    grads = gates.channel_gate_backward(torch.ones_like(x), x, gate, CONTIGUOUS, CONTIGUOUS, True, True)
    inputs = [t.double().requires_grad_() for t in (x, *weights)]
    out = reference.channel_gate(*inputs, 4)  # type: ignore[misc]
    for grad, right in zip((grads[0], *grads[1]), torch.autograd.grad(out.sum(), inputs), strict=True):
        assert grad is not None
        assert (grad - right).abs().max() < 4e-3 * right.abs().max()


def test_weights_of_another_dtype() -> None:
    """As under autocast: weights are rounded to the dtype of x, and gradients have the dtype of weights."""
    x, grad = (torch.randn(2, 12, 5, 5).bfloat16() for _ in range(2))
    weights = gate_weights(12, 3, torch.float32)
    gate, rounded = (ChannelGate(w, 2, True) for w in (weights, [w.bfloat16() for w in weights]))
    layouts = CONTIGUOUS, CONTIGUOUS
    assert torch.equal(gates.channel_gate(x, gate, *layouts), gates.channel_gate(x, rounded, *layouts))
    _, grads = gates.channel_gate_backward(grad, x, gate, *layouts, False, True)
    _, others = gates.channel_gate_backward(grad, x, rounded, *layouts, False, True)
    for a, b in zip(grads, others, strict=True):
        assert a is not None and b is not None
        assert a.dtype == torch.float32 and torch.equal(a.bfloat16(), b)


def test_torch_computes_too_many_channels(emulated_cuda: ModuleType) -> None:
    assert gates.takes_channel_gate(1024, 128, torch.bfloat16)
    assert not gates.takes_channel_gate(8192, 16, torch.bfloat16)
    with pytest.raises(ValueError, match="16 positions of 8192 channels do not fit in the shared memory"):
        emulated_cuda.plan_channel_gate(
            H200, launch.ELEMENTS[torch.bfloat16], (1, 8192, 1), (16, 1, True, False), False, False
        )
    x = torch.randn(1, 8192, 1, 2, requires_grad=True)
    w1, b1, w2, b2 = gate_weights(8192, 2, torch.float32)
    out = gcsa_ext.functional.channel_gate(x, w1, b1, w2, b2, 4)
    torch.testing.assert_close(out, reference.channel_gate(x, w1, b1, w2, b2, 4))
    torch.autograd.grad(out.sum(), x)


# ---- The whole attention at once


def small_arguments(
    shape: tuple[int, ...],
    hidden: int,
    kernel_size: int,
    dtype: torch.dtype,
    layout: str = "contiguous",
    groups: int = 4,
    sigmoid: bool = True,
) -> Arguments:
    C, k = shape[1], kernel_size
    convolutions = [
        (torch.randn(s) / math.sqrt(math.prod(s[1:]) / 4)).to(dtype)
        for s in ((hidden, C, k, k), (hidden,), (C, hidden, k, k), (C,))
    ]
    norms = (f(n) for n in (hidden, C) for f in (lambda n: torch.rand(n) + 0.5, torch.randn))
    statistics = (f(n) for n in (hidden, C) for f in (torch.randn, lambda n: torch.rand(n) + 0.3))
    tensors = (LAYOUTS[layout](shape, dtype), *gate_weights(C, hidden, dtype), *convolutions)
    return Arguments(*tensors, *norms, *statistics, 1e-5, 1e-3, groups, sigmoid, False)


def definition(a: Arguments, dtype: torch.dtype) -> Tensor:
    if dtype == torch.float64:
        a = Arguments(*(value.double() if isinstance(value, Tensor) else value for value in a))
    return reference.gcsa(*a[:-1])[0]


def check_small(a: Arguments) -> None:
    assert small_gcsa_module.takes(a)
    out = small_gcsa_module.small_gcsa(a)
    exact, plain = (definition(a, dtype) for dtype in (torch.float64, a.x.dtype))
    assert_as_accurate(out, plain, exact)
    assert out.stride() == torch.empty_like(a.x, memory_format=gcsa_ext.layout.memory_format(a.x)).stride()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_maps(dtype: torch.dtype, layout: str) -> None:
    """With 7x7 kernels and others, odd sizes, channels and hidden units that fill no block of 16, groups, and
    more positions than one block takes."""
    check_small(small_arguments((2, 16, 7, 7), 4, 7, dtype, layout))
    check_small(small_arguments((1, 36, 5, 9), 9, 5, dtype, layout, groups=3))
    check_small(small_arguments((1, 25, 14, 14), 6, 3, dtype, layout, groups=5, sigmoid=False))
    check_small(small_arguments((3, 40, 3, 1), 20, 7, dtype, layout, groups=1))
    check_small(small_arguments((4, 8, 12, 13), 3, 3, dtype, layout, groups=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_small_maps_on_any_gpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In channels split over blocks, several pieces of work to a block, operands in one buffer and in two."""
    arguments = small_arguments((1, 72, 7, 7), 18, 5, dtype)
    for multiprocessors, shared in ((1, 227), (4, 99), (13, 163), (24, 227)):
        on_a_gpu_of(monkeypatch, multiprocessors, shared * KB)
        check_small(arguments)
    on_a_gpu_of(monkeypatch, 2, 99 * KB)
    if dtype == torch.bfloat16:
        check_small(small_arguments((2, 24, 9, 10), 8, 9, dtype))


def test_small_maps_without_what_is_optional() -> None:
    """No bias of a convolution, no affine normalisation; statistics and vectors of other dtypes than x."""
    norms = ("norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias")
    a = small_arguments((2, 16, 5, 5), 4, 3, torch.bfloat16, groups=2)
    check_small(a._replace(**dict.fromkeys(("conv1_bias", "conv2_bias", *norms))))
    a = small_arguments((2, 16, 5, 5), 4, 3, torch.float16, groups=2)
    others = {name: getattr(a, name).double() for name in norms}
    others |= {name: getattr(a, name).half() for name in ("mean1", "var1", "mean2", "var2")}
    check_small(a._replace(**others))


def test_small_maps_with_weights_of_another_dtype() -> None:
    """As under autocast."""
    a = small_arguments((1, 16, 6, 6), 4, 3, torch.bfloat16)
    rounded, *_ = small_gcsa_module.small_gcsa(a)
    names = ("w1", "b1", "w2", "b2", "conv1_weight", "conv1_bias", "conv2_weight", "conv2_bias")
    out, *_ = small_gcsa_module.small_gcsa(a._replace(**{name: getattr(a, name).float() for name in names}))
    assert torch.equal(out, rounded)


def test_small_maps_in_tf32(tf32: None) -> None:
    a = small_arguments((1, 24, 7, 7), 6, 7, torch.float32)
    exact = definition(a, torch.float64)
    for both in (True, False):
        torch.backends.cuda.matmul.allow_tf32 = both
        out, *_ = small_gcsa_module.small_gcsa(a)
        assert 1e-6 < (out - exact).abs().max() < 4e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_attention_in_eval_takes_one_launch(
    dtype: torch.dtype, emulated_cuda: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = []

    def record(*arguments: Any) -> None:
        launches.append(arguments)
        launch_small_gcsa(*arguments)

    launch_small_gcsa = emulated_cuda.small_gcsa
    monkeypatch.setattr(emulated_cuda, "small_gcsa", record)
    fused, plain = (m.eval() for m in pair(dtype, channels=16, kernel_size=7))
    x = torch.randn(2, 16, 7, 7, dtype=dtype)
    with torch.no_grad():
        found, expected = fused(x), plain(x)
    assert len(launches) == 1
    torch.testing.assert_close(found, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-2)
    x.requires_grad_()  # then maps are saved for the backward pass
    torch.testing.assert_close(fused(x), found, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-2)
    fused.train()(x.detach())
    assert len(launches) == 1


def test_maps_that_one_launch_does_not_take() -> None:
    def takes(
        shape: tuple[int, ...],
        hidden: int,
        kernel_size: int,
        dtype: torch.dtype = torch.bfloat16,
        groups: int = 4,
        **changes: None,
    ) -> bool:
        with torch.device("meta"):
            a = small_arguments(shape, hidden, kernel_size, dtype, groups=groups)
        a = a._replace(x=torch.empty(shape, dtype=dtype), **changes)
        return bool(small_gcsa_module.takes(a))

    assert takes((8, 512, 7, 7), 128, 7)
    assert takes((1, 256, 14, 14), 64, 7)
    assert not takes((8, 512, 7, 7), 128, 7, torch.float32)  # so many products in float32 take long
    assert not takes((8, 64, 56, 56), 16, 7)
    assert not takes((1, 2, 1, 20000), 1, 11, groups=1)


def test_the_order_of_threads_and_blocks_changes_nothing(any_order: ModuleType) -> None:
    def results() -> list[Tensor]:
        torch.manual_seed(1)
        found = []
        for dtype, hidden in ((torch.float32, 20), (torch.bfloat16, 70), (torch.float16, 5)):
            x = torch.randn(2, 20, 5, 7).to(dtype)
            gate = ChannelGate(gate_weights(20, hidden, dtype), 4, True)
            found.append(gates.channel_gate(x, gate, CONTIGUOUS, CHANNELS_LAST))
            grad_x, grads = gates.channel_gate_backward(x.cos(), x, gate, CONTIGUOUS, CONTIGUOUS, True, True)
            found += [g for g in (grad_x, *grads) if g is not None]
            found += small_gcsa_module.small_gcsa(small_arguments((2, 20, 5, 5), 5, 3, dtype))
        return found

    expected = results()
    for seed in (1, 2, 3):
        any_order.shuffle_order(seed)
        for number, (a, b) in enumerate(zip(results(), expected, strict=True)):
            assert torch.equal(a, b), number
