"""What the backends for GPUs have in common: attention in 16 bits, statistics in parts, subsets of gradients.

Their kernels run on the CPU, interpreted or emulated."""

from __future__ import annotations

import pytest
import torch
from devices import every_backend
from gcsa_operands import SETTINGS, operator_arguments
from layouts import LAYOUTS, expected_format
from opchecks import opcheck
from pairs import assert_same_step, pair
from torch import Tensor

from gcsa_ext import GCSA

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    *(every_backend, pytest.mark.parametrize("backend", ["triton", "cuda"], indirect=True)),
]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_attention_in_16_bits(training: bool, dtype: torch.dtype, layout: str) -> None:
    """Inside of the attention all maps are channels_last, in any layout of x."""
    fused, plain = (m.train(training) for m in pair(dtype, channels=12, kernel_size=5))
    x = LAYOUTS[layout]((4, 12, 9, 7), dtype)
    assert_same_step(fused, plain, x, summands=10.0, buffers=2.0**-6)
    assert fused(x).is_contiguous(memory_format=expected_format(x))


def test_statistics_of_values_with_an_outlier_in_front() -> None:
    """Kernels sum deviations from a channel's first value, which may be an outlier."""
    u = torch.randn(4, 3, 20, 40)
    u[0, :, 0, 0] = 1e4
    _, mean, var = torch.ops.gcsa_ext.norm_gate(u, u, None, None, None, None, 1e-5)
    exact = torch.var_mean(u.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(var.double(), exact[0], rtol=1e-6, atol=0.0)
    assert ((mean - exact[1]).abs() <= 1e-6 * exact[0].sqrt()).all()


def test_two_runs_give_the_same_bits() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        module = GCSA(12, kernel_size=3).to(dtype)
        x = torch.randn(3, 12, 9, 11, dtype=dtype, requires_grad=True)
        results = []
        for _ in range(2):
            out = module(x)
            results.append([out, *torch.autograd.grad(out.sin().sum(), [x, *module.parameters()])])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("batch", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_any_subset_of_gradients(batch: tuple[bool, bool]) -> None:
    """The bits of a gradient do not depend on which others are computed."""
    tensors = operator_arguments()
    used = torch.randn(3), torch.rand(3) + 0.3, torch.randn(8), torch.rand(8) + 0.3
    given = [None if batch[i // 2] else value for i, value in enumerate(used)]
    _, u1, u2, *used = torch.ops.gcsa_ext.gcsa(*tensors, *given, *SETTINGS)
    grad_out = torch.randn_like(tensors[0])

    def backward(need: list[bool]) -> tuple[Tensor, ...]:
        return torch.ops.gcsa_ext.gcsa_backward(grad_out, u1, u2, *batch, need, *tensors, *used, *SETTINGS)

    every = backward(13 * [True])
    for number, expected in enumerate(every):
        found = backward([i == number for i in range(13)])
        assert torch.equal(found[number], expected), number
        assert all(grad.numel() == 0 for i, grad in enumerate(found) if i != number)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_of_the_attention(dtype: torch.dtype) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        tensors = operator_arguments(dtype)
        tensors[0] = tensors[0].contiguous(memory_format=layout)
        _, *kept = torch.ops.gcsa_ext.gcsa(*tensors, *4 * (None,), *SETTINGS)
        arguments = (torch.randn_like(tensors[0]), *kept[:2], True, True, 13 * [True])
        opcheck("gcsa_backward", *arguments, *tensors, *kept[2:], *SETTINGS)
        for tensor in tensors:
            tensor.requires_grad_()
        opcheck("gcsa", *tensors, *4 * (None,), *SETTINGS)
