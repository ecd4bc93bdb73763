"""Memory of a training step by Triton's kernels, in maps. On the CPU they allocate the same as on a GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from needs_triton import imported
from public_attention import PlainAttention
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import gcsa_ext
from gcsa_ext import GCSA
from gcsa_ext.layout import memory_format

interpreter = imported("triton.runtime.interpreter")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="benchmarks/gpu.py measures it on a GPU"),
]


def peak_bytes(step: Callable[[], object]) -> int:
    """The largest memory at one time during a step, less that before it."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak


def training_step(module: nn.Module, x: Tensor) -> None:
    """The result is alive until the end, as where the next layer has saved it."""
    out = module(x)
    torch.autograd.grad(out, [x, *module.parameters()], torch.ones_like(out))


def allocate_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace convolutions and kernels by functions that only allocate.

    oneDNN's convolutions copy maps into other layouts, unlike cuDNN's, and Triton's interpreter keeps the
    arguments of kernels in reference cycles.
    """

    def convolve(x: Tensor, weight: Tensor, bias: None, padding: int, groups: int) -> Tensor:
        return x.new_empty((len(x), len(weight), *x.shape[2:])).contiguous(memory_format=memory_format(x))

    def differentiate(grad: Tensor, x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor | None, ...]:
        need_x, need_weight, _ = others[-1]
        return (
            torch.empty_like(x) if need_x else None,
            torch.empty_like(weight) if need_weight else None,
            None,
        )

    monkeypatch.setattr(torch.nn.functional, "conv2d", convolve)
    monkeypatch.setattr(torch.ops.aten, "convolution_backward", differentiate)
    monkeypatch.setattr(interpreter.InterpretedFunction, "run", lambda *_, **__: None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_training_step_takes_half_of_the_memory(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the peak 5.25 maps: the result, its gradient, the saved outputs of both convolutions (1.25) and two.

    Eager PyTorch has 10.75. The gradients of weights and their parts, which do not grow with the map, are
    added.
    """
    x = torch.randn(4, 16, 24, 33, dtype=dtype, requires_grad=True)
    plain, fused = PlainAttention(16, kernel_size=5).to(dtype), GCSA(16, kernel_size=5).to(dtype)
    eager = peak_bytes(lambda: training_step(plain, x)) / x.nbytes
    allocate_as_on_a_gpu(monkeypatch)
    # What the replaced kernels save is taken for the reference's where that has run in this process.
    monkeypatch.setattr("gcsa_ext.ops.gcsa._reference_has_run", set())
    with gcsa_ext.use_backend("triton"):
        ours = peak_bytes(lambda: training_step(fused, x)) / x.nbytes
    assert 10.75 <= eager < 11.0
    assert 5.25 <= ours < 5.6
