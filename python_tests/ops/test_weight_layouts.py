"""Weights and gradients of GCSA in other memory layouts than the contiguous one."""

from __future__ import annotations

import copy

import pytest
import torch
from pairs import pair, step

from gcsa_ext import GCSA
from gcsa_ext.functional import conv2d_same

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("channels", [20, 32, 68])
@pytest.mark.parametrize("kernel_size", [5, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_weights_in_channels_last(
    dtype: torch.dtype, kernel_size: int, channels: int, calls: list[str]
) -> None:
    """The gradient of a weight has the weight's strides."""
    module = GCSA(channels, kernel_size=kernel_size).to(memory_format=torch.channels_last)
    if dtype == torch.float64:
        module.double()
    other = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    x, grad = (torch.randn(4, channels, 9, 7, dtype=dtype) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16):
        found, expected = step(module, x, grad), step(other, x, grad)
    assert calls == 2 * ["gcsa", "gcsa_backward"]
    for a, b, p in zip(found, expected, (x, x, *module.parameters()), strict=True):
        assert torch.equal(a, b) and a.isfinite().all()
        assert a.stride() == p.stride()


@pytest.mark.parametrize("channels", [1, 4])
def test_weights_with_one_input(channels: int, calls: list[str]) -> None:
    """Such a weight is contiguous in both layouts, and so is its gradient: only strides along axes of one
    element may differ."""
    module = GCSA(channels, reduction=channels, groups=1).to(memory_format=torch.channels_last)
    x = torch.randn(2, channels, 6, 5)
    weights = [module.spatial_attention[i].weight for i in (0, 3)]
    module(x).sum().backward()
    assert calls == ["gcsa", "gcsa_backward"]
    for weight in weights:
        assert weight.grad is not None
        for layout in (torch.contiguous_format, torch.channels_last):
            assert weight.grad.is_contiguous(memory_format=layout) == weight.is_contiguous(
                memory_format=layout
            )
        strides = zip(weight.shape, weight.grad.stride(), weight.stride(), strict=True)
        assert all(a == b for length, a, b in strides if length > 1)


@pytest.mark.parametrize("of", ["expanded", "another layout", "a slice"])
def test_gradients_of_the_result_in_other_layouts(of: str, calls: list[str]) -> None:
    module, x = pair(channels=8)[0], torch.randn(2, 8, 6, 5)
    grad = {
        "expanded": torch.tensor(0.3).expand(2, 8, 6, 5),
        "another layout": torch.randn(2, 8, 6, 5).to(memory_format=torch.channels_last),
        "a slice": torch.randn(4, 8, 6, 10)[::2, :, :, ::2],
    }[of]
    expected = step(copy.deepcopy(module), x, grad.clone(memory_format=torch.contiguous_format))
    calls.clear()
    for a, b in zip(step(module, x, grad), expected, strict=True):
        assert torch.equal(a, b)
    assert calls == ["gcsa", "gcsa_backward"]


def test_weights_that_data_exchanges(calls: list[str]) -> None:
    """`weight.data = other` changes shape and strides without autograd's notice."""
    module, x = pair(channels=8)[0].eval(), torch.randn(2, 8, 6, 5)
    expected = module(x)
    weight = module.spatial_attention[0].weight
    data = weight.data
    weight.data = data[:, :, :6, :6].contiguous()
    with pytest.raises((ValueError, RuntimeError)):
        module(x)
    weight.data = data.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(module(x), expected)
    assert calls == ["gcsa", "gcsa"]


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_a_convolution_keeps_the_layout_of_the_map(kernel_size: int) -> None:
    x = torch.randn(2, 4, 6, 5)
    weight = torch.randn(3, 4, kernel_size, kernel_size).contiguous(memory_format=torch.channels_last)
    out = conv2d_same(x, weight)
    assert out.stride() == torch.empty(2, 3, 6, 5).stride()
    torch.library.opcheck(torch.ops.gcsa_ext.conv2d_same, (x, weight, None))
