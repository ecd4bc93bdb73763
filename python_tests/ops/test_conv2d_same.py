"""conv2d_same against torch's convolution: values, gradients, layouts, tiles, autocast, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from convolution_checks import arguments, check, step
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import DTYPES, LAYOUTS, expected_format
from torch import Tensor

import gcsa_ext
from gcsa_ext import functional, reference
from gcsa_ext.backends import cpu

pytestmark = pytest.mark.usefixtures("one_thread")

KERNELS = (3, 5, 7, 9, 11)
# N, C, O, H, W: one position, lines, odd numbers of channels, maps that are cut into tiles, groups of tiles
SIZES = (
    (2, 3, 17, 1, 1),
    (1, 17, 3, 3, 200),
    (2, 3, 1, 200, 3),
    (2, 1, 33, 9, 14),
    (3, 33, 17, 13, 6),
    (1, 3, 5, 70, 66),
    (40, 4, 3, 12, 9),
)


FORMATS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture(params=["fft", "direct"])
def algorithm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force each of both algorithms."""
    monkeypatch.setattr(cpu, "explain_convolution", lambda x, weight: (request.param, "it is forced"))
    name: str = request.param
    return name


@pytest.fixture
def fft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "explain_convolution", lambda x, weight: ("fft", "it is forced"))


@pytest.mark.usefixtures("fft")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_transforms(shape: tuple[int, int, int, int, int], kernel: int, dtype: torch.dtype) -> None:
    for layout in ("contiguous", "channels_last"):
        inputs = arguments(shape, kernel, dtype, layout)
        out, grad_x, *_ = check(inputs)
        for result in (out, grad_x):
            assert result.is_contiguous(memory_format=expected_format(inputs[0]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str, dtype: torch.dtype, algorithm: str) -> None:
    inputs = arguments((2, 6, 5, 9, 7), 7, dtype, layout)
    out, grad_x, *_ = check(inputs)
    # Of a view with other strides autograd returns the gradient in the layout in which it was computed.
    for result in (out, grad_x):
        assert result.is_contiguous(memory_format=expected_format(inputs[0]))


@pytest.mark.usefixtures("fft")
def test_weights_of_other_strides() -> None:
    x, weight, bias = arguments((2, 8, 5, 9, 7), 5)
    expected = functional.conv2d_same(x, weight, bias)
    for other in (
        weight.contiguous(memory_format=torch.channels_last),
        weight.transpose(0, 1).contiguous().transpose(0, 1),
        weight.flip(3).contiguous().flip(3),
    ):
        assert torch.equal(functional.conv2d_same(x, other, bias), expected)
    assert torch.equal(functional.conv2d_same(x, weight, bias.repeat_interleave(2)[::2]), expected)


@pytest.mark.usefixtures("fft", "keep_threads")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 8, 9, 30, 41),
        (2, 40, 20, 12, 9),
        (7, 5, 33, 20, 8),
        # Inputs that come in two turns, and outputs that come block by block.
        (1, 100, 20, 34, 31),
        (2, 40, 70, 12, 9),
    ],
    ids=str,
)
def test_threads(shape: tuple[int, int, int, int, int], threads: int) -> None:
    torch.set_num_threads(threads)
    inputs = arguments(shape, 7)
    check(inputs)
    first, second = (
        step(functional.conv2d_same, inputs, torch.ones(shape[0], shape[2], *shape[3:])) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("fft")
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.tuples(*(st.integers(1, most) for most in (5, 20, 20, 24, 24))),
    st.sampled_from(KERNELS),
    st.sampled_from((torch.float32, torch.float64)),
    st.sampled_from(("contiguous", "channels_last", "transposed")),
)
def test_any_shape(
    shape: tuple[int, int, int, int, int], kernel: int, dtype: torch.dtype, layout: str
) -> None:
    check(arguments(shape, kernel, dtype, layout))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
def test_some_gradients_only(wanted: tuple[int, ...], algorithm: str) -> None:
    inputs = arguments((2, 6, 5, 9, 7), 5)
    grads = []
    for function in (functional.conv2d_same, reference.conv2d_same):
        leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
        grads.append(torch.autograd.grad(function(*leaves).sin().sum(), [leaves[i] for i in wanted]))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("fft")
@pytest.mark.parametrize("kernel", [3, 7])
def test_first_and_second_derivatives(kernel: int) -> None:
    inputs = [t.requires_grad_() for t in arguments((2, 2, 3, 4, 3), kernel, torch.float64)]
    assert torch.autograd.gradcheck(functional.conv2d_same, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(functional.conv2d_same, inputs, fast_mode=True)


def test_without_bias(algorithm: str) -> None:
    x, weight, _ = arguments((2, 6, 5, 9, 7), 5)
    found = functional.conv2d_same(x, weight)
    torch.testing.assert_close(found, F.conv2d(x, weight, padding=2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 6, 5, 9, 7), (2, 6, 5, 0, 7), (2, 6, 5, 9, 0)], ids=str)
def test_empty_maps(shape: tuple[int, int, int, int, int]) -> None:
    N, C, outputs, H, W = shape
    x, weight, bias = (
        torch.randn(s, requires_grad=True) for s in ((N, C, H, W), (outputs, C, 7, 7), (outputs,))
    )
    out = functional.conv2d_same(x, weight, bias)
    out.sum().backward()
    assert out.shape == (N, outputs, H, W) and x.grad is not None and x.grad.shape == x.shape
    for parameter in (weight, bias):
        assert parameter.grad is not None and torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_torch_computes_kernels_without_a_tile() -> None:
    for kernel in (1, 13):
        x, weight, bias = arguments((2, 6, 5, 9, 7), kernel)
        expected = F.conv2d(x, weight, bias, padding=kernel // 2)
        assert torch.equal(functional.conv2d_same(x, weight, bias), expected)


@pytest.mark.usefixtures("fft", "keep_threads")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("N", [3, 40])
def test_samples_are_independent(N: int, threads: int, layout: str) -> None:
    torch.set_num_threads(threads)
    x, weight, bias = arguments((N, 8, 5, 11, 6), 7, layout=layout)
    grad = torch.randn(N, 5, 11, 6)
    clean = step(functional.conv2d_same, [x, weight, bias], grad)
    spoilt = x.clone(memory_format=torch.preserve_format)
    spoilt[1] = math.nan
    others = torch.arange(N) != 1
    out, grad_x, *_ = step(functional.conv2d_same, [spoilt, weight, bias], grad)
    assert out[1].isnan().all()
    assert torch.equal(out[others], clean[0][others]) and torch.equal(grad_x, clean[1])
    spoilt_grad = grad.clone()
    spoilt_grad[1] = math.inf
    grad_x = step(functional.conv2d_same, [x, weight, bias], spoilt_grad)[1]
    assert not grad_x[1].isfinite().any()
    assert torch.equal(grad_x[others], clean[1][others])


def test_explanations() -> None:
    def words(C: int, outputs: int, kernel: int, N: int, H: int, W: int) -> str:
        return functional.explain_convolution(
            torch.empty(N, C, H, W), torch.empty(outputs, C, kernel, kernel)
        )

    assert words(64, 16, 7, 2, 14, 14) == (
        "Fourier transforms of tiles: 7x7 taps cost more than the transforms of 392 positions"
    )
    assert words(64, 16, 3, 2, 14, 14).startswith("Fourier transforms of tiles")
    assert words(64, 16, 3, 1, 14, 14) == (
        "torch's convolution: a 3x3 kernel has too few taps for 64x16 channels at 196 positions"
    )
    assert words(64, 16, 13, 2, 14, 14) == "torch's convolution: no tile for a 13x13 kernel"
    assert words(4, 4, 5, 8, 28, 28) == "torch's convolution: 4 and 4 channels leave most of a vector empty"
    assert words(256, 64, 5, 1, 7, 7) == (
        "torch's convolution: 256x64 weights are transformed for 49 positions only"
    )
    x, weight = torch.randn(2, 8, 9, 7), torch.randn(8, 8, 7, 7)
    assert "not torch.float16" in functional.explain_convolution(x.half(), weight.half())
    assert "not on meta" in functional.explain_convolution(x.to("meta"), weight.to("meta"))
    with gcsa_ext.use_backend("reference"):
        assert functional.explain_convolution(x, weight) == (
            "torch's convolution: backend 'reference' is forced"
        )


@pytest.mark.parametrize("kernel", [3, 7])
def test_explanations_are_true(kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = arguments((2, 16, 12, 9, 7), kernel)
    called: list[str] = []
    direct = reference.conv2d_same

    def record(*a: Any) -> Tensor:
        called.append("direct")
        return direct(*a)

    monkeypatch.setattr(reference, "conv2d_same", record)
    functional.conv2d_same(*inputs)
    words = functional.explain_convolution(*inputs[:2])
    assert words.startswith("torch's convolution" if called else "Fourier transforms")
    assert bool(called) == (kernel == 3)


def test_explanations_with_matrix_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any processor: nothing is computed."""
    monkeypatch.setattr(cpu, "HAS_AMX", True)

    def words(C: int, outputs: int, kernel: int, *sizes: int, dtype: torch.dtype = torch.bfloat16) -> str:
        x = torch.empty(sizes[0], C, *sizes[1:], dtype=dtype)
        weight = torch.empty(outputs, C, kernel, kernel, dtype=dtype)
        found = [functional.explain_convolution(x.contiguous(memory_format=f), weight) for f in FORMATS]
        return " | ".join(f.split(":")[0] for f in found)

    registers, torchs = "the processor's matrix registers (AMX)", "torch's convolution"
    for shape in ((64, 16, 7, 2, 14, 14), (4, 4, 5, 8, 14, 14), (16, 16, 3, 8, 7, 7)):
        assert words(*shape) == f"{registers} | {torchs}", shape
    for shape in (
        (64, 64, 3, 8, 28, 28),
        (4, 4, 7, 8, 28, 28),
        (512, 128, 7, 1, 7, 7),
        (32, 32, 7, 1, 40, 3),
    ):
        assert words(*shape) == f"{torchs} | {torchs}", shape
    assert words(32, 32, 13, 1, 40, 30) == f"{torchs} | {torchs}"
    assert words(64, 16, 7, 2, 14, 14, dtype=torch.float32).startswith("Fourier transforms")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_autocast_casts_as_torchs_convolution(dtype: torch.dtype, algorithm: str) -> None:
    x, weight, bias = arguments((2, 6, 5, 9, 7), 5)
    x = x.to(dtype)
    if dtype == torch.float64:  # torch does not cast it
        weight, bias = weight.double(), bias.double()
    leaf = weight.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.conv2d(x, weight, bias, padding=2)
        found = functional.conv2d_same(x, leaf, bias)
        with torch.autocast("cpu", enabled=False):
            if dtype != torch.bfloat16:
                assert functional.conv2d_same(x, weight, bias).dtype == dtype
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=2.0**-6, atol=2.0**-6)
    found.double().sum().backward()
    assert leaf.grad is not None and leaf.grad.dtype == leaf.dtype


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dynamic", [True, False])
def test_compiles_into_one_graph(dynamic: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(functional.conv2d_same, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    sizes = [(2, 9, 8, 10, 13), (3, 9, 8, 6, 12)] if dynamic else [(2, 9, 8, 10, 13)]
    for i, size in enumerate(sizes):
        inputs, grad = arguments(size, 7), torch.randn(size[0], size[2], *size[3:])
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            found = step(compiled, inputs, grad)
        expected = step(functional.conv2d_same, inputs, grad)
        torch.testing.assert_close(found, expected)
    torch.compiler.reset()


def test_meta_tensors() -> None:
    x = torch.empty(2, 6, 9, 7, device="meta").to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.empty(5, 6, 7, 7, device="meta", requires_grad=True)
    out = functional.conv2d_same(x, weight)
    assert out.shape == (2, 5, 9, 7) and out.is_contiguous(memory_format=torch.channels_last)
    out.sum().backward()
    assert x.grad is not None and weight.grad is not None and weight.grad.shape == weight.shape


def test_reference_backend_computes_the_same() -> None:
    inputs, grad = arguments((2, 9, 8, 9, 7), 7, torch.float64), torch.randn(2, 8, 9, 7)
    with gcsa_ext.use_backend("reference"):
        expected = step(functional.conv2d_same, inputs, grad)
    torch.testing.assert_close(step(functional.conv2d_same, inputs, grad), expected)


X, WEIGHT, BIAS = torch.ones(2, 6, 9, 7), torch.ones(5, 6, 7, 7), torch.ones(5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": X[0]}, ValueError, r"x of shape \(N, C, H, W\), got \(6, 9, 7\)"),
        ({"x": X.int()}, TypeError, r"x of a floating dtype, got torch\.int32"),
        ({"x": X[:, :4]}, ValueError, r".* C = 4 as in x \(2, 4, 9, 7\), got \(5, 6, 7, 7\)"),
        ({"weight": WEIGHT[0]}, ValueError, r"weight of shape \(O, C, k, k\).* got \(6, 7, 7\)"),
        ({"weight": WEIGHT[..., 1:, 1:]}, ValueError, r".* odd k .* got \(5, 6, 6, 6\)"),
        ({"weight": WEIGHT[..., 2:]}, ValueError, r".* got \(5, 6, 7, 5\)"),
        ({"bias": BIAS[1:]}, ValueError, r"bias of shape \(5,\), got \(4,\)"),
        ({"bias": BIAS[:, None]}, ValueError, r"bias of shape \(5,\), got \(5, 1\)"),
        (
            {"weight": WEIGHT.double()},
            TypeError,
            r"weight of .*torch\.float32.* got torch\.float64",
        ),
        ({"bias": BIAS.bfloat16()}, TypeError, r"bias of .*torch\.float32.* got torch\.bfloat16"),
        ({"weight": WEIGHT.to("meta")}, TypeError, r"weight of .*cpu.* got torch\.float32, meta"),
    ],
)
def test_bad_input(changes: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="conv2d_same: expected " + message):
        functional.conv2d_same(**{"x": X, "weight": WEIGHT, "bias": BIAS, **changes})
