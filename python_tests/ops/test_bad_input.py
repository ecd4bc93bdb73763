"""Input that an operator cannot take: one clear exception that names what it got and what was expected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gcsa_ext import GCSA, functional


def gate(**changes: Any) -> Tensor:
    arguments: dict[str, Any] = {
        "x": torch.randn(2, 8, 3, 5),
        "w1": torch.randn(3, 8),
        "b1": torch.randn(3),
        "w2": torch.randn(8, 3),
        "b2": torch.randn(8),
        "groups": 4,
    }
    return functional.channel_gate(**{**arguments, **changes})


def norm(**changes: Any) -> Tensor:
    arguments: dict[str, Any] = {
        "u": torch.randn(2, 8, 3, 5),
        "z": torch.randn(2, 8, 3, 5),
        "weight": torch.randn(8),
        "bias": torch.randn(8),
        "running_mean": torch.randn(8),
        "running_var": torch.rand(8),
    }
    return functional.norm_gate(**{**arguments, **changes})


def on(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, device=device, dtype=dtype)


CHANNEL_GATE = [
    ({"x": on("cpu", 8, 3, 5)}, ValueError, r"x of shape \(N, C, H, W\), got \(8, 3, 5\)"),
    ({"x": on("cpu", 1, 2, 8, 3, 5)}, ValueError, r"got \(1, 2, 8, 3, 5\)"),
    ({"x": on("cpu", 2, 8, 3, 5, dtype=torch.int32)}, TypeError, r"floating dtype, got torch\.int32"),
    ({"x": on("cpu", 2, 8, 3, 5, dtype=torch.complex64)}, TypeError, r"floating dtype, got torch\.complex64"),
    (
        {"x": on("cpu", 2, 6, 3, 5)},
        ValueError,
        r"w1 of shape \(h, C\) with C = 6 .*\(2, 6, 3, 5\).* got \(3, 8\)",
    ),
    ({"w1": on("cpu", 8)}, ValueError, r"w1 of shape \(h, C\).* got \(8,\)"),
    ({"w1": on("cpu", 0, 8)}, ValueError, r"h >= 1, got \(0, 8\)"),
    ({"b1": on("cpu", 4)}, ValueError, r"b1 of shape \(3,\), got \(4,\)"),
    ({"w2": on("cpu", 3, 8)}, ValueError, r"w2 of shape \(8, 3\), got \(3, 8\)"),
    ({"b2": on("cpu", 8, 1)}, ValueError, r"b2 of shape \(8,\), got \(8, 1\)"),
    ({"groups": 3}, ValueError, r"groups that divide C = 8, got groups = 3"),
    ({"groups": 0}, ValueError, r"got groups = 0"),
    ({"groups": -4}, ValueError, r"got groups = -4"),
    ({"w2": on("cpu", 8, 3, dtype=torch.float64)}, TypeError, r"w2 .*torch\.float32.* got torch\.float64"),
    (
        {"x": on("cpu", 2, 8, 3, 5, dtype=torch.bfloat16)},
        TypeError,
        r"w1 .*torch\.bfloat16.* got torch\.float32",
    ),
    (
        {"w1": on("meta", 3, 8)},
        TypeError,
        r"w1 of the dtype and device of x .*cpu.* got torch\.float32, meta",
    ),
    ({"x": on("meta", 2, 8, 3, 5)}, TypeError, r"w1 .*meta.* got torch\.float32, cpu"),
]
NORM_GATE = [
    ({"u": on("cpu", 8, 3, 5)}, ValueError, r"one shape \(N, C, H, W\), got \(8, 3, 5\) and \(2, 8, 3, 5\)"),
    ({"u": on("cpu", 8, 5), "z": on("cpu", 8, 5)}, ValueError, r"got \(8, 5\) and \(8, 5\)"),
    ({"z": on("cpu", 2, 8, 5, 3)}, ValueError, r"got \(2, 8, 3, 5\) and \(2, 8, 5, 3\)"),
    ({"z": on("cpu", 2, 1, 3, 5)}, ValueError, r"got \(2, 8, 3, 5\) and \(2, 1, 3, 5\)"),
    (
        {"u": on("cpu", 2, 8, 3, 5, dtype=torch.int64), "z": on("cpu", 2, 8, 3, 5, dtype=torch.int64)},
        TypeError,
        r"floating dtype and device, got torch\.int64",
    ),
    ({"z": on("meta", 2, 8, 3, 5)}, TypeError, r"cpu and torch\.float32, meta"),
    ({"weight": on("cpu", 7)}, ValueError, r"weight of shape \(8,\) for u \(2, 8, 3, 5\), got \(7,\)"),
    ({"bias": on("cpu", 8, 1)}, ValueError, r"bias of shape \(8,\).* got \(8, 1\)"),
    ({"running_mean": on("cpu", 1)}, ValueError, r"mean of shape \(8,\).* got \(1,\)"),
    ({"running_var": on("cpu", 9)}, ValueError, r"var of shape \(8,\).* got \(9,\)"),
    (
        {"bias": on("cpu", 8, dtype=torch.int64)},
        TypeError,
        r"bias of a floating dtype on cpu, got torch\.int64",
    ),
    ({"weight": on("meta", 8)}, TypeError, r"weight of a floating dtype on cpu, got torch\.float32, meta"),
    ({"running_mean": None}, ValueError, r"expected running_mean and running_var unless training"),
    ({"running_var": None}, ValueError, r"expected running_mean and running_var unless training"),
    (
        {"u": on("cpu", 1, 8, 1, 1), "z": on("cpu", 1, 8, 1, 1), "training": True},
        ValueError,
        r"more than one value per channel in training, got u \(1, 8, 1, 1\)",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), CHANNEL_GATE)
def test_channel_gate(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="channel_gate: expected .*" + message):
        gate(**changes)


@pytest.mark.parametrize(("changes", "error", "message"), NORM_GATE)
def test_norm_gate(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="norm_gate: expected .*|" + message) as caught:
        norm(**changes)
    caught.match(message)


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_norm_gate_in_training_checks_the_running_statistics_too(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} of shape \(C,\) for u \(2, 8, 3, 5\), got \(7,\)"):
        norm(**{name: torch.ones(7), "training": True})


def test_a_refused_call_changes_no_running_statistics() -> None:
    mean = torch.zeros(8)
    with pytest.raises(ValueError, match="var"):
        norm(running_mean=mean, running_var=torch.ones(7), training=True)
    assert torch.equal(mean, torch.zeros(8))


def _attention() -> tuple[list[Tensor], Tensor]:
    module = GCSA(8).eval()
    x = torch.randn(2, 8, 6, 5, requires_grad=True)
    module(x)
    tensors = [x, module.spatial_attention[3].weight, module.spatial_attention[3].bias]
    return tensors, module(x)


def _operator(name: str, *shapes: tuple[int, ...], **options: Any) -> tuple[list[Tensor], Tensor]:
    tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
    return tensors, getattr(functional, name)(*tensors, **options)


FORWARDS = {
    "gcsa": _attention,
    "conv2d_same": lambda: _operator("conv2d_same", (2, 16, 9, 8), (16, 16, 7, 7), (16,)),
    "channel_gate": lambda: _operator("channel_gate", (2, 8, 6, 5), (4, 8), (4,), (8, 4), (8,)),
    "norm_gate": lambda: _operator("norm_gate", (2, 8, 6, 5), (2, 8, 6, 5), (8,), (8,), training=True),
}


@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("number", [0, 1, -1])
def test_a_tensor_exchanged_between_the_passes(name: str, number: int) -> None:
    """Autograd does not notice that `.data` was set."""
    tensors, out = FORWARDS[name]()
    given = tensors[number]
    given.data = given.data[tuple(slice(0, length - 2) for length in given.shape)].contiguous()
    if name == "conv2d_same" and number == -1:  # a bias has no part in the backward pass
        assert torch.autograd.grad(out.sum(), tensors[0])[0].isfinite().all()
        return
    with pytest.raises(ValueError, match=f"{name}: expected "):
        torch.autograd.grad(out.sum(), tensors)


@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("sizes", [(4, 1, 1), (1, 2, 1), (1, 1, 2)], ids=str)
def test_maps_exchanged_between_the_passes(name: str, sizes: tuple[int, int, int]) -> None:
    """Maps of other sizes fit the weights, but not the gradient."""
    tensors, out = FORWARDS[name]()
    for given in tensors[: 2 if name == "norm_gate" else 1]:
        given.data = given.data.repeat(sizes[0], 1, *sizes[1:])
    with pytest.raises(ValueError, match=f"{name}: expected the gradient of a result "):
        torch.autograd.grad(out.sum(), tensors)
