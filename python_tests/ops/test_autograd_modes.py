"""GCSA under autograd's modes, profilers and compiled autograd, and tensors of other kinds."""

from __future__ import annotations

import pytest
import torch
from pairs import pair
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from gcsa_ext import functional

pytestmark = pytest.mark.usefixtures("one_thread")


def test_inference_mode(calls: list[str]) -> None:
    module, x = pair(channels=8)[0].eval(), torch.randn(2, 8, 6, 5)
    expected = module(x).detach()
    calls.clear()
    with torch.inference_mode():
        for argument in (x, x.clone()):
            found = module(argument)
            assert found.is_inference() and torch.equal(found, expected)
    assert calls == ["gcsa", "gcsa"]
    module(x.requires_grad_()).sum().backward()


def test_grad_mode_without_autograd(calls: list[str]) -> None:
    """Grad mode may be on where no graph can be built."""
    module, x = pair(channels=8)[0].eval(), torch.randn(2, 8, 6, 5)
    expected = module(x).detach()
    calls.clear()
    with torch.inference_mode(), torch.enable_grad():
        in_inference_mode = module(x)
    with torch._C._AutoDispatchBelowAutograd():
        below_autograd = module(x)
    assert calls == ["gcsa", "gcsa"]
    for found in (in_inference_mode, below_autograd):
        assert torch.equal(found, expected) and not found.requires_grad


def test_batched_gradients() -> None:
    module, x = pair(torch.float64, channels=8)[0].eval(), torch.randn(2, 8, 6, 5).double().requires_grad_()
    out, grads = module(x), torch.randn(3, 2, 8, 6, 5).double()
    wanted = [x, *module.parameters()]
    found = torch.autograd.grad(out, wanted, grads, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(out, wanted, grad, retain_graph=True) for grad in grads]
    torch.testing.assert_close(list(found), [torch.stack(g) for g in zip(*each, strict=True)])


def test_compiled_autograd() -> None:
    module, x = pair(channels=8)[0].eval(), torch.randn(2, 8, 6, 5, requires_grad=True)
    (expected,) = torch.autograd.grad(module(x).sin().sum(), x)
    out = module(x).sin().sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        out.backward()
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("training", [True, False])
def test_a_profiler_lists_the_operators(training: bool) -> None:
    module, x = pair(channels=8)[0].train(training), torch.randn(2, 8, 6, 5, requires_grad=True)
    out = module(x)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        module(x)
        out.sum().backward()
    names = [event.name for event in profiler.events()]
    assert "gcsa_ext::gcsa" in names and "gcsa_ext::gcsa_backward" in names


def test_tensors_of_other_kinds() -> None:
    """A subclass, other strides, and a tensor of inference mode."""

    class Subclass(Tensor):
        pass

    module, x = pair(channels=8)[0].eval(), torch.randn(2, 8, 6, 6)
    expected = module(x).detach()
    with torch.inference_mode():
        of_inference_mode = x.clone()
    for argument in (x.as_subclass(Subclass), x.mT.contiguous().mT, of_inference_mode):
        with torch.no_grad():
            found = module(argument)
        torch.testing.assert_close(found.as_subclass(Tensor), expected)
    with pytest.raises(TypeError, match="dtype"):
        module(x.double())
    with pytest.raises(ValueError, match="expected"):
        module(x[0])


def free(tensor: Tensor) -> None:
    tensor.untyped_storage().resize_(0)


@pytest.mark.parametrize(
    "name",
    ["channel_attention.0.bias", "spatial_attention.0.weight", "spatial_attention.1.weight", "running_mean"],
)
def test_tensors_without_memory(name: str) -> None:
    """Kernels do not read a storage that was resized to nothing."""
    module, x = pair(channels=8)[0].eval(), torch.randn(2, 8, 6, 5)
    out = module(x)
    if name == "running_mean":
        free(module.spatial_attention[1].running_mean)
        free(module.spatial_attention[1].running_var)
    else:
        free(module.get_parameter(name).data)
    with pytest.raises(ValueError, match=r"gcsa_ext\._C: expected no null address"):
        module(x)
    if name != "running_mean":  # of which the graph has a copy
        with pytest.raises(ValueError, match=r"gcsa_ext\._C: expected no null address"):
            out.sum().backward()
    free(x)
    with pytest.raises(ValueError, match=r"gcsa_ext\._C: expected no null address"):
        functional.random_frequency_mask(x, 3)


def test_statistics_have_no_gradient() -> None:
    module, x = pair(channels=8)[0].eval(), torch.randn(2, 8, 6, 5)
    module.spatial_attention[1].running_mean.requires_grad_()
    out = module(x)
    with pytest.raises(RuntimeError, match="mean and var are constants"):
        out.sum().backward()


def test_running_statistics_have_new_versions(calls: list[str]) -> None:
    """Autograd notices by the version counter that a tensor was changed in place."""
    module = pair(channels=8)[0]
    norm = module.spatial_attention[1]
    for momentum in (0.1, torch.tensor(0.25)):
        norm.momentum = momentum
        before = [(t.clone(), t._version) for t in norm.buffers()]
        with torch.no_grad():
            module(torch.randn(2, 8, 6, 5))
        for tensor, (value, version) in zip(norm.buffers(), before, strict=True):
            assert tensor._version > version and not torch.equal(tensor, value)
    assert calls == ["gcsa", "gcsa"]
