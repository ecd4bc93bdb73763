"""What GCSA saves for its backward pass: how much, and what hooks and checkpoints may do to it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from devices import every_backend
from gcsa_operands import SETTINGS, operator_arguments
from pairs import pair, step
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

import gcsa_ext
from gcsa_ext import GCSA

pytestmark = pytest.mark.usefixtures("one_thread")
SAVED = 19
"""The differentiable arguments, the outputs of both convolutions, mean and variance of both norms."""


@every_backend
def test_saves_little() -> None:
    """The input, the outputs of both convolutions and nothing more; eager PyTorch saves 6.75 inputs."""
    fused, _ = pair(channels=64)
    x = torch.randn(2, 64, 14, 14, requires_grad=True)
    parameters = {p.data_ptr() for p in fused.parameters()}
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.data_ptr() not in parameters:
            saved[t.data_ptr()] = t.numel() * t.element_size()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        out = fused(x)
    assert 0 < sum(saved.values()) <= 2.5 * x.numel() * x.element_size()
    saved.clear()
    with saved_tensors_hooks(pack, lambda t: t), torch.no_grad():
        fused(x)
    assert not saved
    out.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saved_tensors_are_finite(dtype: torch.dtype) -> None:
    """Hooks may compress them."""
    saved: list[Tensor] = []
    module, x = pair(channels=16)[0], torch.randn(2, 16, 6, 5, dtype=dtype)
    hooks = saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert len(saved) == SAVED and all(t.isfinite().all() for t in saved)
    out.sum().backward()


def strided(t: Tensor) -> Tensor:
    return torch.stack([t, t], -1)[..., 0]


def channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else strided(t)


def changed_step(
    module: nn.Module, x: Tensor, grad: Tensor, change: Callable[[Tensor], Tensor], number: int | None
) -> list[Tensor]:
    """A step in which the saved tensor of this number, or each for None, comes back changed."""
    count = 0

    def pack(t: Tensor) -> tuple[int, Tensor]:
        nonlocal count
        count += 1
        return count - 1, t

    def unpack(packed: tuple[int, Tensor]) -> Tensor:
        return change(packed[1]) if number in (packed[0], None) else packed[1]

    with saved_tensors_hooks(pack, unpack):
        found = step(module, x, grad)
    assert count >= SAVED  # the reference saves more in the backward pass
    return found


@pytest.mark.parametrize("number", [*range(SAVED), None])
@pytest.mark.parametrize("layout", [strided, channels_last], ids=lambda f: f.__name__)
def test_saved_tensors_in_other_layouts(number: int | None, layout: Callable[[Tensor], Tensor]) -> None:
    module, x, grad = pair(channels=20)[0].eval(), *torch.randn(2, 2, 20, 6, 5)
    torch.testing.assert_close(changed_step(module, x, grad, layout, number), step(module, x, grad))


@pytest.mark.parametrize("number", [13, 14])
def test_saved_outputs_of_convolutions_in_another_dtype(number: int) -> None:
    module, x, grad = pair(channels=20)[0].eval(), *torch.randn(2, 2, 20, 6, 5)
    found = changed_step(module, x, grad, Tensor.double, number)
    torch.testing.assert_close(found, step(module, x, grad), rtol=1e-4, atol=1e-5)


@every_backend
def test_saved_maps_in_the_other_layout() -> None:
    """With as many channels as positions a saved map has the same number of elements in each layout."""
    fused, _ = pair(channels=16, reduction=1)
    x = torch.randn(1, 16, 4, 4)
    expected = step(fused.eval(), x, x)

    def unpack(t: Tensor) -> Tensor:
        return t.contiguous(memory_format=torch.channels_last) if t.shape == x.shape else t

    with saved_tensors_hooks(lambda t: t, unpack):
        found = step(fused, x, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_second_derivatives_of_saved_copies() -> None:
    module, x = GCSA(8).double(), torch.randn(2, 8, 5, 5, dtype=torch.float64, requires_grad=True)
    with saved_tensors_hooks(torch.clone, lambda t: t):
        out = module(x)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), x)
    assert second.isfinite().all() and second.abs().max() > 0


def test_saved_tensors_must_not_change() -> None:
    module, x = pair(channels=8)[0], torch.randn(2, 8, 6, 5, requires_grad=True)
    out = module(x)
    with torch.no_grad():
        module.spatial_attention[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_saved_tensors_are_freed_by_the_backward_pass() -> None:
    x = torch.randn(2, 8, 6, 5, requires_grad=True)
    out = pair(channels=8)[0](x).sum()
    (first,) = torch.autograd.grad(out, x, retain_graph=True)
    (second,) = torch.autograd.grad(out, x)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out, x)


def test_checkpoints(calls: list[str]) -> None:
    module, x = pair(channels=8)[0].eval(), torch.randn(2, 8, 6, 5)
    expected = step(copy.deepcopy(module), x, x)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = checkpoint(self.inner, x, use_reentrant=False)
            return out

    calls.clear()
    found = step(Checkpointed(), x, x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert calls == ["gcsa", "gcsa", "gcsa_backward"]


@pytest.mark.parametrize("profiled", ["forward", "backward"])
def test_checkpoints_with_one_pass_profiled(profiled: str) -> None:
    """A profiler must not change what is saved: torch compares both passes of a checkpoint."""
    module, x = pair(channels=8)[0].eval(), torch.randn(2, 8, 6, 5, requires_grad=True)
    (expected,) = torch.autograd.grad(module(x).sum(), x)

    def profiler(name: str) -> Any:
        if name != profiled:
            return contextlib.nullcontext()
        return profile(activities=[ProfilerActivity.CPU], acc_events=True)

    with profiler("forward"):
        out = checkpoint(module, x, use_reentrant=False)
    with profiler("backward"):
        (found,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(found, expected)


def test_a_backward_pass_of_another_backend_than_the_forward_pass() -> None:
    """The reference saves no outputs of convolutions, which the kernels must not take for theirs."""
    arguments = [value.requires_grad_() for value in operator_arguments()]
    with gcsa_ext.use_backend("reference"):
        out = torch.ops.gcsa_ext.gcsa(*arguments, *4 * (None,), *SETTINGS)[0]
        expected = torch.autograd.grad(out.sum(), arguments, retain_graph=True)
    found = torch.autograd.grad(out.sum(), arguments)
    torch.testing.assert_close(found, expected)
