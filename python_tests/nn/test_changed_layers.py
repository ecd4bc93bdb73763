"""GCSA notices every change of its layers, hooks and settings, and keeps nothing of them in memory."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairs import pair
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from gcsa_ext import GCSA


class Doubled(nn.Linear):
    """Another kind of layer with the same state."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def fresh(name: str) -> nn.Sequential:
    torch.manual_seed(5)
    branch: nn.Sequential = getattr(pair(channels=16)[1].eval(), name)
    return branch


def reorder(branch: nn.Sequential, order: str) -> None:
    for name in order:
        branch._modules[name] = branch._modules.pop(name)


def exchange_weight(layer: nn.Module) -> None:
    shape = layer.weight.shape
    del layer.weight
    layer.weight = torch.linspace(-0.1, 0.1, shape.numel()).reshape(shape)


def set_all(target: nn.Module, **values: Any) -> None:
    for name, value in values.items():
        setattr(target, name, value)


def replace_state(layer: nn.Module, **values: Any) -> None:
    layer.__dict__ = {**layer.__dict__, **values}


def replace_statistics(norm: nn.Module) -> None:
    mean = norm.running_mean
    del norm.running_mean
    norm.running_mean = mean + 3


def normalise_weight(layer: nn.Module) -> None:
    parametrizations.weight_norm(layer).parametrizations.weight.original0.data.mul_(3)


def double_class(layer: nn.Module) -> None:
    layer.__class__ = Doubled


def replace(branch: nn.Sequential, layers: dict[int, nn.Module]) -> None:
    for number, layer in layers.items():
        branch[number] = layer


def remove_hidden_units(gate: nn.Sequential) -> None:
    for name in ("weight", "bias"):
        setattr(gate[0], name, nn.Parameter(getattr(gate[0], name)[:2].detach()))
    gate[2].weight = nn.Parameter(gate[2].weight[:, :2].detach())


CHANGES: dict[str, Callable[[nn.Sequential, nn.Sequential], object]] = {
    "new layer": lambda gate, spatial: spatial.__setitem__(0, fresh("spatial_attention")[0]),
    "layer of another kind": lambda gate, spatial: gate.__setitem__(1, nn.GELU()),
    "Linear for ReLU": lambda gate, spatial: replace(gate, {1: nn.Linear(4, 4)}),
    "linear layers without bias": lambda gate, spatial: replace(
        gate, {0: nn.Linear(16, 4, bias=False), 2: nn.Linear(4, 16, bias=False)}
    ),
    "fewer hidden units": lambda gate, spatial: remove_hidden_units(gate),
    "pruning": lambda gate, spatial: prune.l1_unstructured(gate[0], "weight", 0.5),
    "spectral norm": lambda gate, spatial: parametrizations.spectral_norm(gate[0]),
    "parametrization of the gate": lambda gate, spatial: normalise_weight(gate[2]),
    "group norms": lambda gate, spatial: replace(spatial, {1: nn.GroupNorm(1, 4), 4: nn.GroupNorm(4, 16)}),
    "instance norm": lambda gate, spatial: replace(spatial, {4: nn.InstanceNorm2d(16, affine=True)}),
    "identity norms": lambda gate, spatial: replace(spatial, {1: nn.Identity(), 4: nn.Identity()}),
    "groups of a convolution": lambda gate, spatial: replace(
        spatial, {0: nn.Conv2d(16, 4, 3, padding=1, groups=4, padding_mode="reflect")}
    ),
    "one more layer": lambda gate, spatial: spatial.append(nn.Tanh()),
    "one more layer in each branch": lambda gate, spatial: (
        gate.append(nn.Tanh()),
        spatial.append(nn.Hardtanh()),
    ),
    "one layer less in each branch": lambda gate, spatial: (gate.pop(1), spatial.pop(1)),
    "layers in another order": lambda gate, spatial: reorder(spatial, "02134"),
    "class of a layer": lambda gate, spatial: double_class(gate[2]),
    "state of a layer": lambda gate, spatial: replace_state(spatial[1], eps=0.7),
    "parametrization": lambda gate, spatial: normalise_weight(spatial[0]),
    "no bias": lambda gate, spatial: set_all(spatial[3], bias=None),
    "no bias of the gate": lambda gate, spatial: set_all(gate[2], bias=None),
    "plain tensor for a parameter": lambda gate, spatial: exchange_weight(spatial[0]),
    "new statistics": lambda gate, spatial: set_all(spatial[1], running_mean=torch.linspace(-1, 1, 4)),
    "no statistics": lambda gate, spatial: set_all(spatial[4], running_mean=None, running_var=None),
    "statistics that are attributes": lambda gate, spatial: replace_statistics(spatial[1]),
    "a norm in training": lambda gate, spatial: spatial[1].train(),
    "eps": lambda gate, spatial: set_all(spatial[1], eps=0.5),
    "dilation": lambda gate, spatial: set_all(spatial[0], dilation=(2, 2), padding=(6, 6)),
    "padding": lambda gate, spatial: set_all(
        spatial[0], padding_mode="circular", _reversed_padding_repeated_twice=[3, 3, 3, 3]
    ),
    "forward of both last layers": lambda gate, spatial: (
        set_all(gate[2], forward=lambda x: x.repeat_interleave(4, -1)),
        set_all(spatial[4], forward=lambda x: x - 0.5),
    ),
    "forward of a layer": lambda gate, spatial: set_all(spatial[0], forward=lambda x: x[:, :4]),
    "forward of a branch": lambda gate, spatial: set_all(spatial, forward=lambda x: x.flip(1)),
    "hook of a layer": lambda gate, spatial: spatial[1].register_forward_hook(lambda *args: args[2] + 1),
    "hook of a branch": lambda gate, spatial: gate.register_forward_pre_hook(lambda _, x: (2 * x[0],)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_of_the_layers(change: Callable[[nn.Sequential, nn.Sequential], object]) -> None:
    fused, plain = (m.eval() for m in pair(channels=16))
    x, grad = torch.randn(2, 2, 16, 9, 8)
    with torch.no_grad():
        before = fused(x)
        for module in (fused, plain):
            torch.manual_seed(4)
            change(module.channel_attention, module.spatial_attention)
        after = fused(x)
        torch.testing.assert_close(after, plain(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, after, rtol=1e-4, atol=1e-5)
    results = []
    for module in (fused, plain):
        leaf = x.clone().requires_grad_()
        out = module.train()(leaf)
        out.backward(grad)
        results.append([out, leaf.grad, *(p.grad for p in module.parameters() if p.grad is not None)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["channel_attention", "spatial_attention"])
def test_a_new_branch(name: str) -> None:
    fused, plain = (m.eval() for m in pair(channels=16))
    x = torch.randn(2, 16, 9, 8)
    before = fused(x)
    for module in (fused, plain):
        setattr(module, name, fresh(name))
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, fused(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("setting", [{"groups": 2}, {"channel_sigmoid": False}], ids=str)
def test_changes_of_the_settings(setting: dict[str, Any]) -> None:
    fused = pair(channels=16)[0].eval()
    x = torch.randn(2, 16, 9, 8)
    before = fused(x)
    set_all(fused, **setting)
    other = GCSA(16, **setting).eval()
    other.load_state_dict(fused.state_dict())
    assert torch.equal(fused(x), other(x))
    assert not torch.allclose(before, fused(x), rtol=1e-4, atol=1e-5)


def test_hooks_of_all_modules() -> None:
    fused, plain = (m.eval() for m in pair(channels=16))
    x = torch.randn(2, 16, 9, 8)
    before = fused(x)
    handle = nn.modules.module.register_module_forward_hook(
        lambda layer, _, out: out + 1 if isinstance(layer, nn.Conv2d) else None
    )
    try:
        hooked = fused(x)
        torch.testing.assert_close(hooked, plain(x), rtol=1e-4, atol=1e-5)
    finally:
        handle.remove()
    assert not torch.allclose(before, hooked, rtol=1e-4, atol=1e-5)
    assert torch.equal(fused(x), before)


COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "data parallel": GCSA._replicate_for_data_parallel}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_changes_of_a_copy(copied: Callable[[GCSA], GCSA]) -> None:
    fused = pair(channels=16)[0].eval()
    x = torch.randn(2, 16, 6, 5)
    expected = fused(x)
    other = copied(fused)
    other._modules = dict(other._modules)
    other.spatial_attention = copy.deepcopy(other.spatial_attention)
    other.spatial_attention[4].eps = 0.3
    assert torch.equal(fused(x), expected)
    assert not torch.allclose(other(x), expected, rtol=1e-4, atol=1e-5)


def test_weights_of_a_functional_call_are_freed() -> None:
    """Computed weights would keep alive the tensors that they were computed from."""
    fused = pair(channels=16)[0].eval()
    x = torch.randn(2, 16, 6, 5)
    expected = fused(x)
    weights = {name: 2 * p for name, p in fused.named_parameters()}
    other = copy.deepcopy(fused)
    other.load_state_dict({**fused.state_dict(), **weights})
    torch.testing.assert_close(torch.func.functional_call(fused, weights, x), other(x))
    computed = weakref.ref(weights["spatial_attention.0.weight"])
    del weights
    assert computed() is None
    assert torch.equal(fused(x), expected)


def test_a_deleted_module_is_freed() -> None:
    """By its reference count, without the garbage collector."""
    fused = pair(channels=16)[0].eval()
    fused(torch.randn(2, 16, 6, 5))
    module, weight = weakref.ref(fused), weakref.ref(fused.spatial_attention[0].weight)
    gc.disable()
    try:
        del fused
        assert module() is None and weight() is None
    finally:
        gc.enable()
