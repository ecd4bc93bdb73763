"""frequency_mask and frequency_mask_ against their definition, bit by bit."""

from __future__ import annotations

import math
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


def bands(*shape: int, freq: int) -> tuple[Tensor, Tensor]:
    """Random bands. Some are empty; some begin before the first bin or end behind the last."""
    return torch.randint(-3, freq + 3, shape), torch.randint(-2, freq, shape)


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
def test_out_of_place_and_in_place(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    *batch, freq, _ = shape
    for start, width in (
        bands(1, freq=freq),
        bands(4, freq=freq),
        bands(*batch, 2, freq=freq),
        bands(*(1 for _ in batch), 3, freq=freq),
        bands(*batch[1:], 2, freq=freq),
    ):
        for name, spectrogram in layouts(shape, dtype).items():
            expected = reference.frequency_mask(spectrogram, start, width, -1.5)
            before = spectrogram.clone()
            found = functional.frequency_mask(spectrogram, start, width, -1.5)
            assert found.is_contiguous() and found.dtype == dtype
            assert torch.equal(found, expected), name
            assert torch.equal(spectrogram, before), name
            if name == "expanded" and spectrogram.numel() > freq:
                with pytest.raises(ValueError, match="whose elements do not share memory"):
                    functional.frequency_mask_(spectrogram, start, width, -1.5)
                continue
            address = spectrogram.data_ptr()
            assert functional.frequency_mask_(spectrogram, start, width, -1.5) is spectrogram
            assert torch.equal(spectrogram, expected) and spectrogram.data_ptr() == address, name


@every_device
@every_backend
def test_in_place_writes_nothing_around_a_slice() -> None:
    around = torch.randn(3, 9, 11)
    before = around.clone()
    functional.frequency_mask_(around[:, 2:7, 1:-1], torch.tensor([1]), torch.tensor([2]), 5.0)
    before[:, 3:5, 1:-1] = 5.0
    assert torch.equal(around, before)


@every_device
@every_backend
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_every_integer_dtype_of_bands(dtype: torch.dtype) -> None:
    x = torch.randn(2, 30, 4)
    start, width = torch.tensor([[3], [20]], dtype=dtype), torch.tensor([[5], [9]], dtype=dtype)
    assert torch.equal(
        functional.frequency_mask(x, start, width),
        reference.frequency_mask(x, start.long(), width.long(), 0.0),
    )


@every_device
@every_backend
def test_bands_at_the_ends_of_64_bits() -> None:
    """Where start + width overflows, the result is still right."""
    x = torch.randn(9, 4)
    largest = 2**63 - 1
    start, width = torch.tensor([largest, -largest, 4]), torch.tensor([largest, 3, largest])
    expected = x.clone()
    expected[4:] = 0.0
    assert torch.equal(functional.frequency_mask(x, start, width), expected)


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
    assert torch.equal(
        functional.frequency_mask_(x, start, width, value).view(torch.uint8), found.view(torch.uint8)
    )


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
    out = functional.frequency_mask(x, start, width)
    out.sum().backward()
    assert out.shape == x.grad.shape == shape
    assert functional.frequency_mask_(x.detach(), start, width).shape == shape


@every_device
@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_of_masked_bins_is_zero(dtype: torch.dtype) -> None:
    x = torch.randn(3, 8, 5, dtype=dtype, requires_grad=True)
    start, width = bands(3, 2, freq=8)
    grad = torch.randn(5, 8, 3, dtype=dtype).permute(2, 1, 0)
    (found,) = torch.autograd.grad(functional.frequency_mask(x, start, width, 9.0), x, grad)
    assert torch.equal(found, grad.masked_fill(reference.frequency_bands(x, start, width), 0.0))
    leaf = x.detach().clone().requires_grad_()
    functional.frequency_mask_(leaf * 1, start, width, 9.0).backward(grad)
    assert torch.equal(leaf.grad, found)


def test_in_place_refuses_a_leaf_that_requires_a_gradient() -> None:
    x = torch.randn(4, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        functional.frequency_mask_(x, torch.tensor([0]), torch.tensor([2]))


def test_autograd_notices_that_a_saved_tensor_was_masked() -> None:
    weight, spectrogram = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)
    out = weight * spectrogram
    functional.frequency_mask_(spectrogram, torch.tensor([0]), torch.tensor([2]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_inference_mode() -> None:
    start, width = torch.tensor([0]), torch.tensor([2])
    with torch.inference_mode():
        x = torch.randn(4, 5)
        expected = reference.frequency_mask(x, start, width, 1.0)
        assert torch.equal(functional.frequency_mask(x, start, width, 1.0), expected)
        assert torch.equal(functional.frequency_mask_(x, start, width, 1.0), expected)


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events", "ignore:.*torch.jit.trace")
@pytest.mark.parametrize("inplace", [False, True])
def test_modes_profilers_and_traces_record_the_operator(inplace: bool) -> None:
    name = "frequency_mask_" if inplace else "frequency_mask"
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
            getattr(functional, name)(x, start, width)
        assert expected in seen

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        getattr(functional, name)(x, start, width)
    assert f"gcsa_ext::{name}" in {event.name for event in profile.events()}

    if not inplace:
        traced = torch.jit.trace(lambda x: functional.frequency_mask(x, start, width) * 1, (x,))
        assert "gcsa_ext::frequency_mask" in str(traced.graph)


def test_subclasses_are_kept() -> None:
    class Spectrogram(Tensor):
        pass

    x = torch.randn(4, 5).as_subclass(Spectrogram)
    assert type(functional.frequency_mask(x, torch.tensor([0]), torch.tensor([2]))) is Spectrogram


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_threads(count: int) -> None:
    torch.set_num_threads(count)
    x = torch.randn(3, 5, 123, 131)  # large enough for every one of them
    start, width = bands(3, 5, 3, freq=123)
    assert torch.equal(
        functional.frequency_mask(x, start, width, 2.0), reference.frequency_mask(x, start, width, 2.0)
    )


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
    for function in (functional.frequency_mask, functional.frequency_mask_):
        with pytest.raises(error, match=message):
            function(torch.randn(shape), *ones)


def test_dtypes_and_devices_that_do_not_fit() -> None:
    one = torch.tensor([1])
    for function in (functional.frequency_mask, functional.frequency_mask_):
        with pytest.raises(TypeError, match=r"floating dtype, got torch\.int64"):
            function(torch.ones(5, 4, dtype=torch.int64), one, one)
        with pytest.raises(TypeError, match=r"expected width of an integer dtype on cpu, got torch\.float32"):
            function(torch.randn(5, 4), one, one.float())
        with pytest.raises(
            TypeError, match=r"expected start of an integer dtype on cpu, got torch\.int64, meta"
        ):
            function(torch.randn(5, 4), one.to("meta"), one)


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
