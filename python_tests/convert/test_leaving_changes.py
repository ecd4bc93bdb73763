"""Fused networks that are quantised, folded, converted, checkpointed, differentiated and cast."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from leaving import (
    FUSED,
    MAKERS,
    operators_called,
    plain_and_fused,
    same_gradients,
    same_steps,
)
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning"),  # by jvp
]
every_network = pytest.mark.parametrize("name", list(MAKERS))
quantisation = pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning",
    "ignore:torch.quantize_per_tensor is deprecated:DeprecationWarning",
    "ignore:Please use quant_min and quant_max:UserWarning",
    "ignore:must run observer before calling calculate_qparams:UserWarning",
)


def images() -> Tensor:
    return torch.randn(2, 3, 11, 9, generator=torch.Generator().manual_seed(3))


@quantisation
@every_network
def test_dynamic_quantisation(name: str) -> None:
    plain, fused = (
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
        for model in plain_and_fused(name)
    )
    kinds = [type(layer) for layer in fused.attention.modules()]
    assert kinds.count(torch.ao.nn.quantized.dynamic.Linear) == 2
    x = images()
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-5, atol=1e-5)
    assert "gcsa_inference" not in operators_called(fused, x), "the quantised layers compute"


class Quantised(nn.Module):
    """A network between the stubs of eager quantisation, which only its stem and head are quantised in."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.enter, self.leave = (torch.ao.quantization.QuantStub() for _ in range(2))
        self.dequantise = torch.ao.quantization.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        x = self.dequantise(self.net.stem(self.enter(x)))
        x = self.net.attention(x).mean((2, 3))
        return self.dequantise(self.net.head(self.leave(x)))


@quantisation
@every_network
def test_eager_quantisation_of_the_layers_around(name: str) -> None:
    """Observers see the same values, and the attention that is left out of it stays on its operator."""
    torch.use_deterministic_algorithms(False)  # which quantised tensors do not have
    x, results = images(), []
    for net in plain_and_fused(name):
        model = Quantised(net)
        model.qconfig = torch.ao.quantization.get_default_qconfig()
        net.attention.qconfig = None
        prepared = torch.ao.quantization.prepare(model)
        prepared(x)
        converted = torch.ao.quantization.convert(prepared)
        assert operators_called(converted, x) == operators_called(net, x)
        results.append(converted(x))
    # A step of the quantised result, where rounding differs.
    torch.testing.assert_close(*results, rtol=0.0, atol=2.0 * converted.net.head.scale)


@quantisation
@every_network
def test_prepare_puts_observers_into_the_attention(name: str) -> None:
    """The layers are called, so that their observers see what the plain ones see."""
    x, statistics = images(), []
    for net in plain_and_fused(name):
        net.qconfig = torch.ao.quantization.get_default_qconfig()
        prepared = torch.ao.quantization.prepare(net)
        prepared(x)
        observers = [m for m in prepared.modules() if isinstance(m, torch.ao.quantization.ObserverBase)]
        assert len(observers) >= 6
        statistics.append([o.calculate_qparams() for o in observers])
    torch.testing.assert_close(*statistics, rtol=1e-3, atol=1e-5)


def fold(attention: nn.Module) -> int:
    """Fold every normalisation into the convolution before it; returns how many."""
    count = 0
    for parent in attention.modules():
        names = list(parent._modules)
        for first, second in itertools.pairwise(names):
            conv, norm = parent._modules[first], parent._modules[second]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, first, fuse_conv_bn_eval(conv, norm))
                setattr(parent, second, nn.Identity())
                count += 1
    return count


@every_network
def test_normalisations_folded_into_their_convolutions(name: str) -> None:
    plain, fused = plain_and_fused(name)
    x = images()
    expected = plain(x)
    assert fold(fused.attention) == 2
    assert operators_called(fused, x) == ["gcsa_inference"]
    torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-5)
    fold(plain.attention)
    for model in (plain, fused):
        model(x).square().sum().backward()
    if name in FUSED:
        same_gradients(plain, fused)


@every_network
def test_synchronised_batch_norm(name: str) -> None:
    plain, fused = plain_and_fused(name)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(fused)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in converted.attention.modules()) == 2
    assert operators_called(converted, images()) == ["gcsa_inference"]
    same_steps(converted, plain, images())


def reentrant(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return checkpoint(function, x, use_reentrant=True)


def not_reentrant(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return checkpoint(function, x, use_reentrant=False)


class Checkpointed(nn.Module):
    """A module whose forward pass is computed again in its backward pass."""

    def __init__(self, inner: nn.Module, how: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.how = inner, how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.inner, x)


@pytest.mark.parametrize("how", [reentrant, not_reentrant])
@every_network
def test_checkpointing_around_the_attention(
    name: str, how: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
) -> None:
    """A checkpoint computes the same gradients by the operator.

    The statistics are not compared: torch's own layers count the batch of a checkpoint once or twice, as the
    second computation stops before them or behind.
    """
    plain, fused = plain_and_fused(name)
    calls = []
    for model in (plain, fused):
        model.train()
        calls.append(step_of_checkpoint(model, how))
    same_gradients(plain, fused)
    assert calls[1] == ["gcsa", "gcsa", "gcsa_backward"]
    assert name not in FUSED or calls[0] == []


def step_of_checkpoint(
    model: nn.Module, how: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
) -> list[str]:
    """A training step with a checkpoint around the attention; the operators of the attention."""
    torch.manual_seed(1)  # of the masking
    model.attention = Checkpointed(model.attention, how)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        model(images()).square().mean().backward()
    names = [event.name for event in profiler.events()]
    return [n.removeprefix("gcsa_ext::") for n in names if n in ("gcsa_ext::gcsa", "gcsa_ext::gcsa_backward")]


@every_network
def test_functional_call(name: str) -> None:
    """The operator computes with the parameters that are given."""
    plain, fused = plain_and_fused(name)
    x, parameters = images(), {name: 0.5 * p.detach() for name, p in plain.named_parameters()}
    results = [torch.func.functional_call(model, parameters, (x,)) for model in (plain, fused)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert operators_called(torch.func.functional_call, fused, parameters, (x,)) == ["gcsa_inference"]


def of_parameters(
    model: nn.Module,
) -> tuple[Callable[[dict[str, Tensor], Tensor], Tensor], dict[str, Tensor]]:
    """A scalar function of a model's parameters and input, and the parameters."""

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(model, parameters, (x,))
        return result.square().sum()

    return loss, {name: p.detach() for name, p in model.named_parameters()}


def gradient(model: nn.Module, x: Tensor) -> Any:
    loss, parameters = of_parameters(model)
    return torch.func.grad(loss)(parameters, x)


def gradient_per_sample(model: nn.Module, x: Tensor) -> Any:
    loss, parameters = of_parameters(model)
    return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x.unsqueeze(1))


def forward_derivative(model: nn.Module, x: Tensor) -> Any:
    return torch.func.jvp(model, (x,), (x.cos(),))


def hessian_product(model: nn.Module, x: Tensor) -> Any:
    loss, parameters = of_parameters(model)
    return torch.func.jvp(lambda y: torch.func.grad(loss, argnums=1)(parameters, y), (x,), (x.cos(),))


@pytest.mark.parametrize("transform", [gradient, gradient_per_sample, forward_derivative, hessian_product])
@every_network
def test_transforms(name: str, transform: Callable[[nn.Module, Tensor], Any]) -> None:
    plain, fused = plain_and_fused(name)
    expected = transform(copy.deepcopy(plain).double(), images().double())
    found = torch.utils._pytree.tree_map(lambda t: t.double(), transform(fused, images()))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@every_network
def test_an_ensemble(name: str) -> None:
    """vmap over the stacked parameters of several models."""
    pairs = [plain_and_fused(name) for _ in range(3)]
    x = images()
    parameters, buffers = torch.func.stack_module_state([fused for _, fused in pairs])
    base = copy.deepcopy(pairs[0][1]).to("meta")
    found = torch.func.vmap(
        lambda p, b: torch.func.functional_call(base, (p, b), (x,)), randomness="different"
    )(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([plain(x) for plain, _ in pairs]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@every_network
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    plain, fused = plain_and_fused(name)
    exact = copy.deepcopy(plain).double()(images().double())
    for model in (plain, fused):
        with warnings.catch_warnings():
            if dtype == torch.float16:  # no kernel of the CPU computes it, which a GCSA says
                warnings.filterwarnings("ignore", "gcsa_ext: plain PyTorch computes", RuntimeWarning)
            result = model.to(dtype)(images().to(dtype))
        assert result.dtype == dtype
        tolerance = 64 * torch.finfo(dtype).eps
        torch.testing.assert_close(result.double(), exact, rtol=tolerance, atol=tolerance)


@every_network
def test_autocast(name: str) -> None:
    plain, fused = plain_and_fused(name)
    exact = copy.deepcopy(plain).double()(images().double())
    for model in (plain, fused):
        with torch.autocast("cpu", torch.bfloat16):
            result = model(images())
        assert result.dtype == torch.bfloat16
        torch.testing.assert_close(result.double(), exact, rtol=0.1, atol=0.1)
