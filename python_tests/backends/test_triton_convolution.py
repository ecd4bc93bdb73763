"""The convolution with norm and gate in one Triton launch, against its definition in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_as_accurate
from devices import every_device, only
from layouts import LAYOUTS, expected_format
from needs_triton import imported
from pairs import pair
from torch import Tensor

convolution = imported("gcsa_ext.backends.triton.convolution")
launch = imported("gcsa_ext.backends.triton.launch")
gates = imported("gcsa_ext.backends.triton.gates")
pytestmark = [pytest.mark.usefixtures("one_thread"), *only("triton")]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAST = torch.channels_last
EPS = 1e-3


def norm_arguments(filters: int, dtype: torch.dtype, missing: str = "") -> dict[str, Tensor | None]:
    """As in a network: scale and shift in float32, the convolution's bias in the dtype of x."""
    found = {
        "weight": torch.randn(filters),
        "bias": torch.randn(filters),
        "mean": torch.randn(filters),
        "var": torch.rand(filters) + 0.3,
        "offset": torch.randn(filters, dtype=dtype),
    }
    return {name: None if name in missing.split() else value for name, value in found.items()}


def defined(x: Tensor, weight: Tensor, z: Tensor | None, vectors: dict[str, Tensor | None]) -> Tensor:
    """The result in plain PyTorch, in the dtype of x; the norm's vectors in that of sums."""
    offset = vectors["offset"]
    u = F.conv2d(x, weight, None if offset is None else offset.to(x.dtype), padding=weight.shape[-1] // 2)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    scale, shift, mean, var = (
        None if vectors[name] is None else vectors[name].to(dtype)
        for name in ("weight", "bias", "mean", "var")
    )
    v = F.batch_norm(u, mean, var, scale, shift, eps=EPS)
    return torch.relu(v) if z is None else z * torch.sigmoid(v)


def check(
    shape: tuple[int, ...],
    filters: int,
    kernel_size: int,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = LAST,
    out_layout: torch.memory_format = LAST,
    gated: bool = True,
    missing: str = "",
) -> Tensor:
    N, C, H, W = shape
    x = torch.randn(shape, dtype=dtype).contiguous(memory_format=layout)
    z = torch.randn(N, filters, H, W, dtype=dtype).contiguous(memory_format=layout) if gated else None
    weight = torch.randn(filters, C, kernel_size, kernel_size, dtype=dtype) / math.sqrt(C * kernel_size**2)
    vectors = norm_arguments(filters, dtype, missing)
    norm = gates.Norm(**vectors, eps=EPS)
    taps = weight.contiguous(memory_format=LAST)
    found = convolution.convolution_norm(x, taps, z, norm, layout, out_layout)
    assert found.is_contiguous(memory_format=out_layout)
    exact = defined(x.double(), weight.double(), None if z is None else z.double(), vectors)
    assert_as_accurate(found, defined(x, weight, z, vectors), exact)
    return found


@every_device
@pytest.mark.parametrize("kernel_size", [3, 5, 7, 9, 11])
def test_every_kernel_size(kernel_size: int) -> None:
    """Some kernels are larger than the map: taps are outside of it on every side."""
    check((2, 5, 7, 9), 3, kernel_size)
    check((1, 3, 4, 2), 6, kernel_size, gated=False)


@every_device
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("out_layout", [torch.contiguous_format, LAST], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=str)
def test_layouts(layout: torch.memory_format, out_layout: torch.memory_format, dtype: torch.dtype) -> None:
    check((3, 6, 5, 7), 4, 5, dtype, layout, out_layout)
    check((3, 4, 5, 7), 6, 3, dtype, layout, out_layout, gated=False)


@every_device
@pytest.mark.parametrize(
    ("shape", "filters"),
    [
        ((1, 70, 3, 5), 9),  # more channels than a block has
        ((1, 4, 3, 5), 150),  # more filters
        ((2, 3, 13, 11), 5),  # more positions
        ((3, 1, 1, 1), 1),
        ((1, 2, 1, 40), 3),
        ((1, 2, 40, 1), 3),
        ((2, 33, 6, 3), 17),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sizes(shape: tuple[int, ...], filters: int, dtype: torch.dtype) -> None:
    layout = LAST if dtype == torch.bfloat16 else torch.contiguous_format
    check(shape, filters, 5, dtype, layout, torch.contiguous_format)


@every_device
@pytest.mark.parametrize("missing", ["weight bias", "offset", "weight bias offset"])
def test_without_scale_or_bias(missing: str) -> None:
    check((2, 5, 4, 6), 3, 3, missing=missing)


@every_device
@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=str)
@pytest.mark.parametrize("programs", [7, 1000])
def test_split_sums(programs: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small maps on a large device: programs share the sum over taps and channels."""
    monkeypatch.setattr(convolution, "programs", lambda *_: programs)
    calls: list[int] = []
    split = convolution.count_splits
    monkeypatch.setattr(convolution, "count_splits", lambda *a: calls.append(split(*a)) or calls[-1])
    for gated in (True, False):
        check((1, 40, 3, 5), 20, 5, torch.float32, layout, LAST, gated)
    assert min(calls) > 1


def test_a_split_has_every_step_once() -> None:
    """As `convolution_norm` divides any number of steps."""
    for steps in range(1, 200):
        for wanted in range(1, 65):
            per_split = -(-steps // wanted)
            splits = -(-steps // per_split)
            assert (splits - 1) * per_split < steps <= splits * per_split and splits <= wanted


@every_device
def test_positions_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "LARGEST_32_BITS", 0)
    for layout in (torch.contiguous_format, LAST):
        check((2, 5, 4, 6), 3, 3, layout=layout)


@every_device
def test_images_are_independent() -> None:
    x = torch.randn(3, 4, 5, 6)
    x[1] = math.nan
    weight = torch.randn(2, 4, 7, 7)
    norm = gates.Norm(**norm_arguments(2, torch.float32), eps=EPS)
    taps = weight.contiguous(memory_format=LAST)
    out = convolution.convolution_norm(x, taps, None, norm, torch.contiguous_format, LAST)
    assert out[1].isnan().all() and out[::2].isfinite().all()


def attention(
    forced: bool | None, monkeypatch: pytest.MonkeyPatch, module: Any, x: Tensor
) -> tuple[Tensor, int]:
    """The result, and how many convolutions these kernels have computed."""
    calls: list[None] = []
    kernel = convolution.convolution_norm
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(convolution, "convolution_norm", lambda *a: calls.append(None) or kernel(*a))
        patch.setattr(convolution, "forced", forced)
        return module(x), len(calls)


@every_device
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_attention_in_evaluation(dtype: torch.dtype, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fused, plain = (m.eval() for m in pair(dtype, channels=12, kernel_size=7))
    x = LAYOUTS[layout]((2, 12, 5, 9), dtype)
    found, calls = attention(True, monkeypatch, fused, x)
    assert calls == 2 and found.is_contiguous(memory_format=expected_format(x))
    with torch.no_grad():
        assert_as_accurate(found, plain(x), plain.double()(x.double()))
    other, calls = attention(False, monkeypatch, fused, x)
    assert calls == 0
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.004}[dtype]
    torch.testing.assert_close(found, other, rtol=tolerance, atol=tolerance)


def test_two_runs_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "programs", lambda *_: 20)
    for dtype in (torch.float32, torch.bfloat16):
        module, x = pair(dtype, channels=12, kernel_size=5)[0].eval(), torch.randn(2, 12, 5, 9, dtype=dtype)
        first, second = (attention(True, monkeypatch, module, x)[0] for _ in range(2))
        assert torch.equal(first, second)


def test_when_the_kernel_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """In evaluation, for shapes for which it was measured to be faster."""
    x, weight = torch.randn(2, 12, 5, 9), torch.randn(3, 12, 7, 7)
    assert "has not been measured to be faster for ShapeClass(dtype=torch.float32, kernel_size=7, " in (
        convolution.unsupported(x, weight)
    )
    shape_class = convolution.ShapeClass.of(x, weight)
    assert shape_class == (torch.float32, 7, 12, 3, 128)
    monkeypatch.setattr(convolution, "FASTER", frozenset({shape_class}))
    assert convolution.unsupported(x, weight) is None
    assert convolution.unsupported(x[:1], weight) is not None
    module = pair(channels=12)[0].eval()
    assert attention(None, monkeypatch, module, x)[1] == 1  # the other convolution is of another class
    assert attention(True, monkeypatch, module.train(), x)[1] == 0
    monkeypatch.setattr(convolution, "forced", False)
    assert convolution.unsupported(x, weight) == "it is forced"
    monkeypatch.setattr(convolution, "forced", True)
    assert "kernel sizes (3, 5, 7, 9, 11), not 13" in convolution.unsupported(x, torch.randn(3, 12, 13, 13))


def test_training_saves_the_output_of_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass needs it: the one launch, which does not store it, is not used."""
    monkeypatch.setattr(convolution, "forced", True)
    monkeypatch.setattr(convolution, "convolution_norm", lambda *_: pytest.fail("nothing was saved"))
    module = pair(channels=12, kernel_size=5)[0].eval()
    module(torch.randn(2, 12, 5, 4)).sum().backward()


def test_tf32_only_where_torch_convolves_so() -> None:
    x = torch.ones(1)
    torch.backends.cudnn.allow_tf32 = False
    try:
        assert launch.convolution_precision(x) == "ieee"
    finally:
        torch.backends.cudnn.allow_tf32 = True
    assert launch.convolution_precision(x) == "tf32"
    assert launch.convolution_precision(x.bfloat16()) == "ieee"
