"""The backends for GPUs on every kind of layers that the operator gcsa takes beyond the plain ones.

Their kernels run on the CPU, interpreted or emulated, and compiled where there is a GPU."""

from __future__ import annotations

import pytest
import torch
from attention_variants import VARIANTS, check_variant, variant_arguments, with_gradients
from devices import every_backend, every_device
from opchecks import opcheck
from torch import Tensor

from gcsa_ext import backends
from gcsa_ext.backends.cuda import gates, small_gcsa
from gcsa_ext.backends.gpu import Norm

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    *(every_backend, pytest.mark.parametrize("backend", ["triton", "cuda"], indirect=True)),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def kernel_calls(backend: str, name: str) -> list[str]:
    """The calls of kernels in one step; CUDA has no kernels of the gate without sigmoid."""
    refused = backend == "cuda" and not VARIANTS[name].get("gate_sigmoid", True)
    return [] if refused else ["gcsa", "gcsa_backward"]


@every_device
@pytest.mark.parametrize(
    ("dtype", "training"),
    [(torch.float32, True), (torch.float32, False), (torch.bfloat16, True), (torch.float16, False)],
    ids=str,
)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant(name: str, dtype: torch.dtype, training: bool, backend: str, calls: list[str]) -> None:
    a = variant_arguments(name, dtype, training)
    assert not a.plain
    check_variant(a)
    expected = kernel_calls(backend, name)
    assert calls == (expected if training or not expected else [*expected, "gcsa"])


@every_device
@pytest.mark.parametrize("layout", ["channels_last", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["public GAM", "shuffled gate", "everything, the gate without sigmoid"])
def test_layouts(name: str, dtype: torch.dtype, layout: str) -> None:
    for training in (True, False):
        check_variant(variant_arguments(name, dtype, training, layout))


@every_device
@pytest.mark.parametrize("shape", [(2, 12, 1, 1), (1, 12, 1, 9), (1, 12, 3, 2)], ids=str)
@pytest.mark.parametrize("name", ["replicate", "public GAM", "everything"])
def test_maps_smaller_than_the_padding(name: str, shape: tuple[int, int, int, int]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check_variant(variant_arguments(name, dtype, training=False, shape=shape))


@every_device
@pytest.mark.parametrize("name", ["public GAM", "everything"])
def test_two_runs_give_the_same_bits(name: str) -> None:
    a, results = variant_arguments(name), []
    grad = torch.randn(a.x.shape)
    for _ in range(2):
        out, statistics, grads = with_gradients(torch.ops.gcsa_ext.gcsa, a, grad)
        results.append([out, *statistics, *grads.values()])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


@pytest.mark.parametrize("batch", [(True, True), (True, False), (False, False)], ids=str)
@pytest.mark.parametrize("name", ["public GAM", "everything"])
def test_any_subset_of_gradients(name: str, batch: tuple[bool, bool]) -> None:
    """The bits of a gradient do not depend on which others are computed; a missing argument has none."""
    a = variant_arguments(name, training=False)
    if batch[0]:
        a = a._replace(mean1=None, var1=None)
    if batch[1]:
        a = a._replace(mean2=None, var2=None)
    _, u1, u2, *used = torch.ops.gcsa_ext.gcsa(*a)
    a = a._replace(**dict(zip(("mean1", "var1", "mean2", "var2"), used, strict=True)))
    grad_out = torch.randn_like(a.x)

    def backward(need: list[bool]) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = torch.ops.gcsa_ext.gcsa_backward(grad_out, u1, u2, *batch, need, *a)
        return found

    every = backward(13 * [True])
    for number, (expected, argument) in enumerate(zip(every, a.differentiable, strict=True)):
        found = backward([i == number for i in range(13)])
        assert torch.equal(found[number], expected), number
        assert expected.shape == (torch.Size([0]) if argument is None else argument.shape)
        assert all(grad.numel() == 0 for i, grad in enumerate(found) if i != number)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["public GAM", "everything"])
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    for layout in ("contiguous", "channels_last"):
        a = variant_arguments(name, dtype, False, layout)
        opcheck("gcsa_inference", *a)
        _, u1, u2, *used = torch.ops.gcsa_ext.gcsa(*a._replace(mean1=None, var1=None, mean2=None, var2=None))
        b = a._replace(**dict(zip(("mean1", "var1", "mean2", "var2"), used, strict=True)))
        opcheck("gcsa_backward", torch.randn_like(a.x), u1, u2, True, True, 13 * [True], *b)
        for tensor in a.differentiable:
            if tensor is not None:
                tensor.requires_grad_()
        opcheck("gcsa", *a._replace(mean1=None, var1=None, mean2=None, var2=None))


def test_weights_of_another_dtype(backend: str) -> None:
    """As under autocast: gradients have the dtype of the weights."""
    a = variant_arguments("public GAM", torch.bfloat16)
    wide = a._replace(
        **{name: getattr(a, name).float() for name in a._fields[1:13] if getattr(a, name) is not None}
    )
    grad = torch.randn(a.x.shape)
    out, _, grads = with_gradients(torch.ops.gcsa_ext.gcsa, a, grad)
    same, _, wide_grads = with_gradients(torch.ops.gcsa_ext.gcsa, wide, grad)
    assert torch.equal(out, same)
    for name, value in wide_grads.items():
        assert value.dtype == (torch.bfloat16 if name == "x" else torch.float32)
        torch.testing.assert_close(value.bfloat16(), grads[name], rtol=2.0**-7, atol=2.0**-7)


def test_what_cuda_lacks_it_refuses(backend: str) -> None:
    for name in VARIANTS:
        a = variant_arguments(name)
        assert backends.cuda.takes(a) == a.gate_sigmoid
        assert backends.triton.takes(a) and not small_gcsa.takes(a)
        refused = backends.reference.gcsa == backends.select_gcsa("gcsa", a)
        assert refused == (backend == "cuda" and not a.gate_sigmoid)
    if backend == "cuda":
        u, vector = torch.randn(2, 3, 4, 5), torch.ones(3)
        norm = Norm(None, None, vector, vector, None, 1e-5, sigmoid=False)
        with pytest.raises(NotImplementedError, match="the spatial gate with its sigmoid only"):
            gates.norm_forward(u, u, norm, torch.contiguous_format, torch.contiguous_format)
