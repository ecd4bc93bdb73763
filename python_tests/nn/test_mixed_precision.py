"""GCSA under bfloat16 autocast and in bfloat16: as exact as plain PyTorch with the same rounding.

Processors with matrix registers (AMX) have separate kernels for these calls. The shapes take all of their
branches: bundles of narrow maps, pairs of taps for few channels, maps wider than one row of sums, weights
that are rounded in several passes, one image per thread.
"""

from __future__ import annotations

import copy

import pytest
import torch
from pairs import pair, step
from torch import Tensor, nn

SHAPES = (
    # N, C, H, W, kernel
    (1, 16, 9, 7, 3),
    (2, 20, 33, 6, 5),
    (3, 68, 5, 40, 7),
    (9, 64, 7, 7, 7),
    (2, 8, 3, 150, 9),
    (7, 132, 4, 9, 11),
    (2, 16, 66, 50, 5),
    (1, 36, 1, 23, 7),
    (11, 12, 13, 1, 3),
    (1, 16, 20, 3, 7),
)


def without_kinks(module: nn.Module) -> nn.Module:
    """Shift the input of the relu of the spatial gate away from 0, where rounding would move values across
    the kink and change gradients by more than a rounding error."""
    norm = module.get_submodule("spatial_attention.1")
    with torch.no_grad():
        norm.bias.fill_(8.0)[::4] = -8.0
    return module


def check(fused: nn.Module, plain: nn.Module, x: Tensor, autocast: bool) -> None:
    """Root mean square errors of the result and all gradients against float64, beside plain PyTorch's.

    Vectors count as one: of a few sums that cancel, either's may be exact by chance.
    """
    grad = torch.randn(x.shape)
    exact = step(copy.deepcopy(plain).double(), x.double(), grad)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, rounded = step(fused, x, grad), step(plain, x, grad)
    names = ["result", "gradient of x", *(name for name, _ in plain.named_parameters())]
    errors: dict[str, list[Tensor]] = {}
    for name, *tensors in zip(names, found, rounded, exact, strict=True):
        assert tensors[0].dtype == tensors[1].dtype and tensors[0].shape == tensors[1].shape, name
        # Batch normalisation takes the bias before it out again.
        if fused.training and name in ("spatial_attention.0.bias", "spatial_attention.3.bias"):
            continue
        ours, theirs, size = (t.double().flatten() for t in tensors)
        # On a Zen 4 torch 2.11 leaves NaN for taps that never meet the map: counted as exact.
        found_errors = torch.stack([ours - size, (theirs - size).nan_to_num(0, 0, 0), size])
        errors.setdefault(name if tensors[0].dim() > 1 else "vectors", []).append(found_errors)
    for name, parts in errors.items():
        ours, theirs, size = torch.cat(parts, 1).square().mean(1).sqrt()
        assert ours <= 1.5 * theirs + 1e-6 * size, f"{name}: {ours:.3g} is more than 1.5 times {theirs:.3g}"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_exact_as_plain_pytorch(shape: tuple[int, int, int, int, int], training: bool) -> None:
    N, C, H, W, kernel = shape
    for layout in (torch.contiguous_format, torch.channels_last):
        fused, plain = (without_kinks(m.train(training)) for m in pair(channels=C, kernel_size=kernel))
        x = torch.randn(N, C, H, W).contiguous(memory_format=layout)
        check(fused, plain, x, autocast=True)
        check(fused.bfloat16(), plain.bfloat16(), x.bfloat16(), autocast=False)


@pytest.mark.usefixtures("keep_threads")
@pytest.mark.parametrize("shape", [(4, 16, 50, 41, 5), (2, 48, 12, 9, 7), (1, 20, 30, 30, 3)], ids=str)
def test_threads(shape: tuple[int, int, int, int, int]) -> None:
    """More threads than blocks of outputs, and an image for each thread."""
    N, C, H, W, kernel = shape
    module = without_kinks(pair(channels=C, kernel_size=kernel)[0].train())
    x, grad = torch.randn(N, C, H, W), torch.randn(N, C, H, W)
    steps = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        with torch.autocast("cpu", torch.bfloat16):
            steps.append(step(module, x, grad))
    for other in steps[1:]:
        for a, b in zip(steps[0], other, strict=True):
            # Sums in another order: what is rounded to bfloat16 afterwards may go either way.
            torch.testing.assert_close(a, b, rtol=2.0**-7, atol=2.0**-7 * a.abs().max().item())


def test_images_are_independent() -> None:
    """The kernels interleave the rows of narrow images."""
    module = pair(channels=24, kernel_size=5)[0].eval()
    x = torch.randn(7, 24, 6, 7)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        together = module(x)
        spoilt = x.clone()
        spoilt[3] = torch.nan
        found = module(spoilt)
        alone = torch.cat([module(image) for image in x.split(1)])
    others = torch.arange(7) != 3
    assert found[3].isnan().all()
    assert torch.equal(found[others], together[others])
    torch.testing.assert_close(alone, together, rtol=1e-2, atol=1e-2)


def test_autocast_off_means_float32() -> None:
    fused, plain = (m.eval() for m in pair(channels=24))
    x = torch.randn(2, 24, 9, 11)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-5)


def test_backward_pass_inside_of_autocast() -> None:
    module = without_kinks(pair(channels=24)[0].train())
    x, grad = torch.randn(2, 24, 9, 11, requires_grad=True), torch.randn(2, 24, 9, 11)
    gradients = []
    for inside in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            out = module(x)
            if inside:
                gradients.append(torch.autograd.grad(out, x, grad)[0])
        if not inside:
            gradients.append(torch.autograd.grad(out, x, grad)[0])
    assert torch.equal(*gradients)
