"""The masks of frequency bins and frames against their definition, bit by bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from devices import every_backend, every_device
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gcsa_ext import functional, reference

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


Mask = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
KINDS = ("frequency", "time", "both")


def bands(*shape: int, size: int) -> tuple[Tensor, Tensor]:
    """Random bands. Some are empty; some begin before the first position or end behind the last."""
    return torch.randint(-3, size + 3, shape), torch.randint(-2, size, shape)


def time_bands(kind: str, start: Tensor) -> int:
    """How many of the bands are bands of frames: none, all, or half of them."""
    count = start.shape[-1]
    return {"frequency": 0, "time": count, "both": (count + 1) // 2}[kind]


def masks(kind: str) -> tuple[Mask, Mask, Mask]:
    """Masking out of place and in place, and the definition."""

    def operator(spectrogram: Tensor, start: Tensor, width: Tensor, value: float = 0.0) -> Tensor:
        count = time_bands(kind, start)
        out: Tensor = torch.ops.gcsa_ext.spectrogram_mask(spectrogram, start, width, value, count, None)
        return out

    def in_place(spectrogram: Tensor, start: Tensor, width: Tensor, value: float = 0.0) -> Tensor:
        count = time_bands(kind, start)
        torch.ops.gcsa_ext.spectrogram_mask_(spectrogram, start, width, value, count, None)
        return spectrogram

    def definition(spectrogram: Tensor, start: Tensor, width: Tensor, value: float = 0.0) -> Tensor:
        return reference.spectrogram_mask(spectrogram, start, width, value, time_bands(kind, start))

    if kind == "both":
        return operator, in_place, definition
    return getattr(functional, f"{kind}_mask"), getattr(functional, f"{kind}_mask_"), definition


def test_definition() -> None:
    """Element by element."""
    spectrogram = torch.randn(2, 5, 7)
    start, width = torch.tensor([[1, -2, 4, 3], [6, 2, 0, 9]]), torch.tensor([[2, 3, 1, 0], [5, 1, -1, 2]])
    for count in range(5):
        found = reference.spectrogram_mask(spectrogram, start, width, 9.0, count)
        for sample in range(2):
            ranges = [range(s, s + w) for s, w in zip(start[sample], width[sample], strict=True)]
            for bin_ in range(5):
                for frame in range(7):
                    masked = any(frame in r for r in ranges[:count]) or any(bin_ in r for r in ranges[count:])
                    expected = 9.0 if masked else spectrogram[sample, bin_, frame]
                    assert found[sample, bin_, frame] == expected


def layouts(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    *batch, freq, time = shape
    found = {
        "contiguous": torch.randn(shape, dtype=dtype),
        "transposed": torch.randn(*batch, time, freq, dtype=dtype).transpose(-1, -2),
        "sliced": torch.randn(*batch, freq + 2, 2 * time, dtype=dtype)[..., 1:-1, ::2],
        "expanded": torch.randn(freq, 1, dtype=dtype).expand(shape),
        "negative": torch._neg_view(torch.randn(shape, dtype=dtype)),
    }
    if len(shape) == 4:
        found["channels_last"] = torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return found


@every_device
@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(9, 13), (1, 1), (3, 17, 20), (2, 3, 40, 7), (2, 1, 2, 5, 3)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_out_of_place_and_in_place(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    mask, mask_in_place, definition = masks(kind)
    *batch, freq, time = shape
    size = {"frequency": freq, "time": time, "both": max(freq, time)}[kind]
    for start, width in (
        bands(1, size=size),
        bands(4, size=size),
        bands(*batch, 2, size=size),
        bands(*(1 for _ in batch), 3, size=size),
        bands(*batch[1:], 2, size=size),
    ):
        for name, spectrogram in layouts(shape, dtype).items():
            expected = definition(spectrogram, start, width, -1.5)
            before = spectrogram.clone()
            found = mask(spectrogram, start, width, -1.5)
            assert found.is_contiguous() and found.dtype == dtype
            assert torch.equal(found, expected), name
            assert torch.equal(spectrogram, before), name
            if name == "expanded" and spectrogram.numel() > freq:
                with pytest.raises(ValueError, match="whose elements do not share memory"):
                    mask_in_place(spectrogram, start, width, -1.5)
                continue
            address = spectrogram.data_ptr()
            assert mask_in_place(spectrogram, start, width, -1.5) is spectrogram
            assert torch.equal(spectrogram, expected) and spectrogram.data_ptr() == address, name


@every_device
@every_backend
def test_in_place_writes_nothing_around_a_slice() -> None:
    around = torch.randn(3, 9, 11)
    before = around.clone()
    functional.frequency_mask_(around[:, 2:7, 1:-1], torch.tensor([1]), torch.tensor([2]), 5.0)
    before[:, 3:5, 1:-1] = 5.0
    assert torch.equal(around, before)
    functional.time_mask_(around[1:2, 2:7].squeeze(0), torch.tensor([-3]), torch.tensor([5]), 7.0)
    before[1, 2:7, :2] = 7.0
    assert torch.equal(around, before)


@every_device
@every_backend
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_integer_dtype_of_bands(kind: str, dtype: torch.dtype) -> None:
    mask, mask_in_place, definition = masks(kind)
    x = torch.randn(2, 30, 34)
    start, width = torch.tensor([[3, 9], [20, 7]], dtype=dtype), torch.tensor([[5, 1], [9, 0]], dtype=dtype)
    expected = definition(x, start.long(), width.long(), 0.0)
    assert torch.equal(mask(x, start, width, 0.0), expected)
    assert torch.equal(mask_in_place(x, start, width, 0.0), expected)


@every_device
@every_backend
@pytest.mark.parametrize("kind", ["frequency", "time"])
def test_bands_at_the_ends_of_64_bits(kind: str) -> None:
    """Where start + width overflows, the result is still right."""
    mask, mask_in_place, _ = masks(kind)
    x = torch.randn(9, 9)
    largest = 2**63 - 1
    start, width = torch.tensor([largest, -largest, 4]), torch.tensor([largest, 3, largest])
    expected = x.clone()
    (expected if kind == "frequency" else expected.t())[4:] = 0.0
    assert torch.equal(mask(x, start, width, 0.0), expected)
    assert torch.equal(mask_in_place(x, start, width, 0.0), expected)


@every_device
@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [0.0, -0.0, math.inf, -math.inf, math.nan, 0.1, -23.0], ids=str)
def test_every_value_keeps_its_bits(value: float, dtype: torch.dtype) -> None:
    x = torch.randn(5, 6, dtype=dtype)
    start, width = torch.tensor([1]), torch.tensor([3])
    for zero in (0.0, -0.0):  # neither may be taken for the other
        functional.frequency_mask(x, start, width, zero)
    expected = x.masked_fill(reference.frequency_bands(x, start, width), value)
    found = functional.frequency_mask(x, start, width, value)
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
    fill = torch.tensor(value, dtype=dtype)
    for found in (
        functional.frequency_mask(x, start, width, fill),
        functional.frequency_mask_(x.clone(), start, width, value),
        functional.frequency_mask_(x.clone(), start, width, fill),
    ):
        assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
    expected = x.masked_fill(reference.spectrogram_bands(x, start, width, 1), value)
    for found in (functional.time_mask(x, start, width, fill), functional.time_mask_(x, start, width, fill)):
        assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


@every_device
@every_backend
@pytest.mark.parametrize("inplace", [False, True])
def test_gradient_of_a_value_is_the_sum_over_masked_elements(inplace: bool) -> None:
    x = torch.randn(2, 8, 5, requires_grad=True)
    value = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    start, width = torch.tensor([[1], [3]]), torch.tensor([[2], [1]])
    grad = torch.randn(2, 8, 5)
    for needed in ((x, value), (value,)):
        spectrogram = x * 1 if x in set(needed) else x.detach().clone()
        out = (functional.time_mask_ if inplace else functional.time_mask)(spectrogram, start, width, value)
        found = torch.autograd.grad(out, needed, grad)
        masked = reference.spectrogram_bands(x, start, width, 1).expand(2, 8, 5)
        torch.testing.assert_close(found[-1], grad[masked].sum().double())
        if len(needed) == 2:
            assert torch.equal(found[0], grad.masked_fill(masked, 0.0))


def test_values_that_do_not_fit() -> None:
    x, one = torch.randn(4, 5), torch.tensor([1])
    assert torch.equal(
        functional.time_mask(x, one, one, torch.ones(1, 1)), functional.time_mask(x, one, one, 1)
    )
    with pytest.raises(ValueError, match=r"a value of one element, got a tensor \(2,\)"):
        functional.time_mask(x, one, one, torch.ones(2))
    operator = torch.ops.gcsa_ext.spectrogram_mask
    with pytest.raises(ValueError, match=r"spectrogram_mask: expected a value of shape \(\), got \(1,\)"):
        operator(x, one, one, 0.0, 1, torch.ones(1))
    with pytest.raises(TypeError, match=r"a value in torch\.float32 on cpu, .* got torch\.float64, cpu"):
        operator(x, one, one, 0.0, 1, torch.tensor(1.0).double())
    with pytest.raises(ValueError, match=r"spectrogram_mask: expected time_bands of at least 0, got -1"):
        operator(x, one, one, 0.0, -1, None)


@every_device
@every_backend
def test_not_finite_values_are_copied_and_masked() -> None:
    x = torch.tensor([[math.nan, 1.0], [math.inf, 2.0], [-math.inf, math.nan]])
    found = functional.frequency_mask(x, torch.tensor([1]), torch.tensor([1]), 7.0)
    expected = torch.tensor([[math.nan, 1.0], [7.0, 7.0], [-math.inf, math.nan]])
    assert torch.equal(found.nan_to_num(9.0), expected.nan_to_num(9.0))


@every_device
@every_backend
@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 0, 4), (3, 5, 0)], ids=str)
def test_empty_spectrograms(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    start, width = torch.randint(5, (shape[0], 2)), torch.randint(5, (shape[0], 2))
    for kind in KINDS:
        mask, mask_in_place, _ = masks(kind)
        out = mask(x, start, width, 0.0)
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert out.shape == grad.shape == shape
        assert mask_in_place(x.detach(), start, width, 0.0).shape == shape


@every_device
@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_masked_elements_is_zero(kind: str, dtype: torch.dtype) -> None:
    mask, _, definition = masks(kind)
    x = torch.randn(3, 8, 9, dtype=dtype, requires_grad=True)
    start, width = bands(3, 2, size=8)
    grad = torch.randn(9, 8, 3, dtype=dtype).permute(2, 1, 0)
    (found,) = torch.autograd.grad(mask(x, start, width, 9.0), x, grad)
    assert torch.equal(found, definition(grad, start, width, 0.0))
    if kind != "both":
        leaf = x.detach().clone().requires_grad_()
        masks(kind)[1](leaf * 1, start, width, 9.0).backward(grad)
        assert torch.equal(leaf.grad, found)


@pytest.mark.parametrize("kind", ["frequency", "time"])
def test_in_place_refuses_a_leaf_that_requires_a_gradient(kind: str) -> None:
    x = torch.randn(4, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        masks(kind)[1](x, torch.tensor([0]), torch.tensor([2]), 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_notices_that_a_saved_tensor_was_masked(kind: str) -> None:
    weight, spectrogram = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)
    out = weight * spectrogram
    masks(kind)[1](spectrogram, torch.tensor([0]), torch.tensor([2]), 0.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_inference_mode(kind: str) -> None:
    mask, mask_in_place, definition = masks(kind)
    start, width = torch.tensor([0]), torch.tensor([2])
    with torch.inference_mode():
        x = torch.randn(4, 5)
        expected = definition(x, start, width, 1.0)
        assert torch.equal(mask(x, start, width, 1.0), expected)
        assert torch.equal(mask_in_place(x, start, width, 1.0), expected)


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", ["frequency", "time"])
def test_modes_and_profilers_record_the_operator(kind: str, inplace: bool) -> None:
    name = "spectrogram_mask_" if inplace else "spectrogram_mask"
    mask = masks(kind)[inplace]
    x, start, width = torch.randn(4, 5), torch.tensor([0]), torch.tensor([2])
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    class FunctionMode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    operator = getattr(torch.ops.gcsa_ext, name)
    for mode, expected in ((Mode(), operator.default), (FunctionMode(), operator)):
        seen.clear()
        with mode:
            mask(x, start, width, 0.0)
        assert expected in seen

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        mask(x, start, width, 0.0)
    assert f"gcsa_ext::{name}" in {event.name for event in profile.events()}


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
@pytest.mark.parametrize("kind", ["frequency", "time"])
def test_traces_and_exports_have_standard_operators_alone(kind: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor, start: Tensor, width: Tensor, value: Tensor) -> Tensor:
            return masks(kind)[0](x, start, width, value)

    x, start, width = torch.randn(3, 6, 5), torch.tensor([[0], [1], [2]]), torch.tensor([[2], [1], [3]])
    inputs = (x, start, width, torch.tensor(0.5))
    batch, freq, time = (torch.export.Dim(name) for name in ("batch", "freq", "time"))
    shapes = ({0: batch, 1: freq, 2: time}, {0: batch}, {0: batch}, {})
    exported = torch.export.export(Module(), inputs, dynamic_shapes=shapes)
    traced = torch.jit.trace(Module(), inputs)
    assert "gcsa_ext." not in str(exported.graph) and "gcsa_ext::" not in str(traced.graph)
    inputs = (torch.randn(2, 9, 8), start[:2], width[:2], torch.tensor(0.25))
    expected = Module()(*inputs)
    assert torch.equal(exported.module()(*inputs), expected) and torch.equal(traced(*inputs), expected)


def test_meta_tensors() -> None:
    x, one = (
        torch.empty(2, 5, 4, device="meta").transpose(1, 2),
        torch.ones(1, dtype=torch.int64, device="meta"),
    )
    for kind in KINDS:
        out = masks(kind)[0](x, one, one, 0.0)
        assert out.shape == (2, 4, 5) and out.is_contiguous() and out.device.type == "meta"


def test_subclasses_are_kept() -> None:
    class Spectrogram(Tensor):
        pass

    x = torch.randn(4, 5).as_subclass(Spectrogram)
    for kind in KINDS:
        assert type(masks(kind)[0](x, torch.tensor([0]), torch.tensor([2]), 0.0)) is Spectrogram


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_threads(kind: str, count: int) -> None:
    mask, mask_in_place, definition = masks(kind)
    torch.set_num_threads(count)
    x = torch.randn(3, 5, 123, 131)  # large enough for every one of them
    start, width = bands(3, 5, 3, size=123)
    expected = definition(x, start, width, 2.0)
    assert torch.equal(mask(x, start, width, 2.0), expected)
    assert torch.equal(mask_in_place(x, start, width, 2.0), expected)


@pytest.mark.parametrize(
    ("shape", "start", "width", "error", "message"),
    [
        ((5,), (1,), (1,), ValueError, r"expected a spectrogram \(..., freq, time\), got \(5,\)"),
        ((5, 4), (1,), (2,), ValueError, r"one shape .* got \(1,\) and \(2,\)"),
        ((5, 4), (), (), ValueError, r"at least one band, got \(\) and \(\)"),
        ((3, 5, 4), (3, 0), (3, 0), ValueError, r"at least one band, got \(3, 0\) and \(3, 0\)"),
        ((3, 5, 4), (2, 1), (2, 1), ValueError, r"broadcastable to \(3,\), got \(2, 1\) .* \(3, 5, 4\)"),
        ((5, 4), (3, 1), (3, 1), ValueError, r"broadcastable to \(\), got \(3, 1\)"),
    ],
)
def test_shapes_that_do_not_fit(
    shape: tuple[int, ...],
    start: tuple[int, ...],
    width: tuple[int, ...],
    error: type[Exception],
    message: str,
) -> None:
    ones = torch.ones(start, dtype=torch.int64), torch.ones(width, dtype=torch.int64)
    for kind in ("frequency", "time"):
        for function in masks(kind)[:2]:
            with pytest.raises(error, match=f"{kind}_mask: .*{message}"):
                function(torch.randn(shape), *ones, 0.0)


def test_dtypes_and_devices_that_do_not_fit() -> None:
    one = torch.tensor([1])
    for function in (mask for kind in KINDS for mask in masks(kind)[:2]):
        with pytest.raises(TypeError, match=r"floating dtype, got torch\.int64"):
            function(torch.ones(5, 4, dtype=torch.int64), one, one, 0.0)
        with pytest.raises(TypeError, match=r"expected width of an integer dtype on cpu, got torch\.float32"):
            function(torch.randn(5, 4), one, one.float(), 0.0)
        with pytest.raises(
            TypeError, match=r"expected start of an integer dtype on cpu, got torch\.int64, meta"
        ):
            function(torch.randn(5, 4), one.to("meta"), one, 0.0)


def test_a_result_of_many_megabytes_keeps_its_memory() -> None:
    """From 32 MiB on, a later result takes the memory of a deleted one, and only of a deleted one."""
    spectrogram = torch.randn(4, 1024, 2050)
    start, width = torch.tensor([3]), torch.tensor([100])
    first = functional.frequency_mask(spectrogram, start, width)
    kept = first.clone()
    for value in (1.0, 2.0):
        other = functional.frequency_mask(spectrogram, start, width, value)
        assert other.data_ptr() != first.data_ptr()
    assert torch.equal(first, kept)
    assert torch.equal(first, reference.frequency_mask(spectrogram, start, width, 0.0))
