"""The compiled module: errors instead of crashes on bad operands, and the memory of results."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gcsa_ext import backends
from gcsa_ext.functional import channel_gate, release_workspace
from gcsa_ext.ops.gcsa import Arguments

_C = backends.native.extension


def maps(*shape: int) -> Tensor:
    return torch.randn(shape)


def gcsa_operands() -> dict[str, Any]:
    weights = [maps(2, 4), maps(2), maps(4, 2), maps(4)]
    weights += [maps(2, 4, 5, 5), maps(2), maps(4, 2, 5, 5), maps(4), maps(2), maps(2), maps(4), maps(4)]
    statistics = [maps(2), torch.ones(2), maps(4), torch.ones(4)]
    values = (maps(1, 4, 3, 5), *weights, *statistics, 1e-5, 1e-5, 2, True, False, 1, True, False)
    return dict(zip(Arguments._fields, values, strict=True))


def gate_operands() -> dict[str, Any]:
    weights = {"w1": maps(2, 4), "b1": maps(2), "w2": maps(4, 2), "b2": maps(4)}
    return {"x": maps(1, 4, 3, 5), **weights, "groups": 2, "sigmoid": True}


def norm_operands() -> dict[str, Any]:
    vectors = {"weight": maps(4), "bias": maps(4), "mean": maps(4), "var": torch.ones(4)}
    return {"u": maps(1, 4, 3, 5), "z": maps(1, 4, 3, 5), **vectors, "eps": 1e-5}


def convolution_operands() -> dict[str, Any]:
    return {"x": maps(1, 4, 9, 8), "weight": maps(2, 4, 5, 5), "bias": maps(2)}


def mask_operands() -> dict[str, Any]:
    bands = {"start": torch.tensor([1]), "width": torch.tensor([2])}
    return {"out": maps(2, 4, 3), "spectrogram": maps(2, 4, 3), **bands, "time_bands": 1, "bits": 0}


FUNCTIONS: dict[str, tuple[Callable[[], dict[str, Any]], Callable[..., Any]]] = {
    "gcsa": (gcsa_operands, lambda *values: _C.gcsa(Arguments(*values))),
    "gcsa_inference": (gcsa_operands, lambda *values: _C.gcsa_inference(Arguments(*values))),
    "channel_gate": (gate_operands, lambda *values: _C.channel_gate(*values)),
    "norm_gate": (norm_operands, lambda *values: _C.norm_gate(*values)),
    "convolution": (convolution_operands, lambda *values: _C.convolution(*values)),
    "mask_into": (mask_operands, lambda *values: _C.mask_into(*values)),
}
OPTIONAL = {"conv1_bias", "conv2_bias", "weight", "bias", "mean", "var", "mean1", "var1", "mean2", "var2"}
OPTIONAL |= {f"norm{i}_{name}" for i in (1, 2) for name in ("weight", "bias")}


def without_memory(tensor: Tensor) -> Tensor:
    taken = tensor.clone()
    taken.untyped_storage().resize_(0)
    return taken


BAD: dict[str, Callable[[Tensor], object]] = {
    "another rank": lambda tensor: tensor[None],
    "a number": lambda tensor: 3,
    "no memory": without_memory,
    "on no device": lambda tensor: tensor.to("meta"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_bad_operand_raises(function: str, bad: str) -> None:
    operands, call = FUNCTIONS[function]
    call(*operands().values())
    for name, value in operands().items():
        if isinstance(value, Tensor):
            with pytest.raises((ValueError, TypeError, AttributeError, RuntimeError)):
                call(*{**operands(), name: BAD[bad](value)}.values())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_map_of_another_dtype_raises(function: str, dtype: torch.dtype) -> None:
    operands, call = FUNCTIONS[function]
    name = "spectrogram" if function == "mask_into" else next(iter(operands()))
    with pytest.raises(ValueError, match=r"gcsa_ext\._C: expected "):
        call(*{**operands(), name: operands()[name].to(dtype)}.values())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_missing_operand_raises(function: str) -> None:
    operands, call = FUNCTIONS[function]
    statistics = {"mean1", "var1", "mean2", "var2"} if function == "gcsa_inference" else set()
    optional = {"bias"} if function == "convolution" else OPTIONAL - statistics
    optional |= {"b1", "b2"} if function.startswith("gcsa") else set()
    for name, value in operands().items():
        if name not in optional and not isinstance(value, bool):
            with pytest.raises((ValueError, TypeError, AttributeError, RuntimeError)):
                call(*{**operands(), name: None}.values())


@pytest.mark.parametrize("groups", [0, -2, 3])
@pytest.mark.parametrize("function", ["gcsa", "channel_gate"])
def test_groups_that_do_not_divide_the_channels_raise(function: str, groups: int) -> None:
    operands, call = FUNCTIONS[function]
    with pytest.raises(ValueError, match=r"gcsa_ext\._C: expected "):
        call(*{**operands(), "groups": groups}.values())


@pytest.mark.parametrize("name", ["out", "spectrogram", "start", "width"])
def test_masking_checks_dtypes_and_layouts(name: str) -> None:
    operands = mask_operands()
    other = operands[name].to(torch.int32 if name in ("start", "width") else torch.float64)
    strided = torch.stack([operands[name], operands[name]], -1)[..., 0]
    for changed in (other, strided) if operands[name].numel() > 1 else (other,):
        with pytest.raises(ValueError, match=r"gcsa_ext\._C: expected "):
            _C.mask_into(*{**operands, name: changed}.values())


@pytest.mark.parametrize("time_bands", [-1, 2])
def test_more_time_bands_than_bands_raise(time_bands: int) -> None:
    with pytest.raises(ValueError, match=r"gcsa_ext\._C: expected at most as many time bands as bands"):
        _C.mask_into(*{**mask_operands(), "time_bands": time_bands}.values())


def test_a_plain_tuple_of_other_things_raises() -> None:
    for operands in ((), (1, 2, 3), tuple(range(len(Arguments._fields)))):
        with pytest.raises((ValueError, TypeError, AttributeError)):
            _C.gcsa(operands)
        with pytest.raises((ValueError, TypeError, AttributeError)):
            _C.gcsa_inference(operands)


def large_result() -> Tensor:
    """A result of 3.1 MB, which lies in memory of the extension."""
    x = torch.randn(8, 128, 28, 28)
    return channel_gate(x, maps(2, 128), maps(2), maps(128, 2), maps(128))


def test_a_large_result_is_hardly_larger_than_asked_for() -> None:
    """A result begins with large pages and ends with small ones: a map of 3.1 MB does not take 4."""
    release_workspace()
    result = large_result()
    release_workspace()
    assert result.data_ptr() % mmap.PAGESIZE == 0 and result.is_contiguous()
    size, part = result.nbytes, result[1:2, ::3]
    del result
    assert release_workspace() == 0 and part.isfinite().all()
    del part
    assert size <= release_workspace() < size + mmap.PAGESIZE


def test_memory_of_a_result_that_torch_refuses_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(capsule: object) -> None:
        raise BufferError("no")

    names = backends.native.torch_names()
    release_workspace()
    _C.use_torch({**names, "from_dlpack": refuse})
    try:
        with pytest.raises(BufferError, match="no"):
            large_result()
    finally:
        _C.use_torch(names)
    assert release_workspace() >= 8 * 128 * 28 * 28 * 4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (3, 96, 70, 41)], ids=str)
def test_results_have_the_layout_of_the_map(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    x = torch.randn(shape).contiguous(memory_format=layout)
    C = shape[1]
    out = channel_gate(x, maps(2, C), maps(2), maps(C, 2), maps(C))
    assert out.shape == shape and out.stride() == x.stride() and not out.requires_grad


def test_a_cache_line_takes_a_time_from_core_to_core() -> None:
    taken = _C.core_round_trip(0.01)
    assert taken > 1e-9  # infinite where there is one thread
    with pytest.raises(ValueError, match=r"gcsa_ext\._C: expected "):
        _C.core_round_trip(0.0)
