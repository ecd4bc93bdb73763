"""Whether a module has the layers of GCSA and computes what GCSA computes, tested on random numbers."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from gcsa_ext import reference
from gcsa_ext.nn import layers

BRANCHES: dict[str, tuple[tuple[type[nn.Module], ...], ...]] = {
    "channel_attention": layers.CHANNEL_ATTENTION,
    "spatial_attention": layers.SPATIAL_ATTENTION,
}

# The attributes of a module that hold its hooks, and the flag for the kind of its backward hooks.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


def branch(module: nn.Module, name: str) -> nn.Sequential:
    """The Sequential called `name` of the module, or an empty one if there is none."""
    layers_of_branch = getattr(module, name, None)
    return layers_of_branch if isinstance(layers_of_branch, nn.Sequential) else nn.Sequential()


def _perceptron(module: nn.Module) -> tuple[nn.Linear, nn.ReLU, nn.Linear]:
    return cast("tuple[nn.Linear, nn.ReLU, nn.Linear]", tuple(branch(module, "channel_attention")))


def structural_difference(module: nn.Module) -> str | None:
    """How the module's layers differ from those of GCSA, in words, or None if they do not."""
    for name, expected in BRANCHES.items():
        actual = branch(module, name)
        if len(actual) != len(expected) or not all(
            isinstance(layer, kinds) for layer, kinds in zip(actual, expected, strict=True)
        ):
            names = ", ".join(type(layer).__name__ for layer in actual)
            return f"it has {f'a {name} of {names}' if names else f'no Sequential named {name}'}"
    first, _, second = _perceptron(module)
    if any(getattr(layer, "bias", None) is None for layer in (first, second)):
        return "its channel_attention has a layer without bias"
    in_branches = {id(parameter) for name in BRANCHES for parameter in branch(module, name).parameters()}
    if any(id(parameter) not in in_branches for parameter in module.parameters()):
        return "it has parameters besides channel_attention and spatial_attention"
    second_conv = cast("nn.Conv2d", branch(module, "spatial_attention")[3])
    if not first.in_features == second.out_features == second_conv.out_channels:
        return "its output has another number of channels than its input"
    return None


def _randomised_copy(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """A float64 copy on the CPU, with random weights and without hooks."""
    copied = copy.deepcopy(module).cpu().double()
    for layer in copied.modules():
        for hooks in (getattr(layer, name) for name in HOOKS):
            if isinstance(hooks, dict):
                hooks.clear()
    with torch.no_grad():
        for parameter in copied.parameters():
            scale = parameter[0].numel() ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return copied


def _gcsa_equals(module: nn.Module, x: Tensor, expected: Tensor, groups: int, channel_sigmoid: bool) -> bool:
    """Whether GCSA with the module's layers and these settings computes `expected` from x."""
    first, _, second = _perceptron(module)
    weights = (first.weight, first.bias, second.weight, second.bias)
    z = reference.channel_gate(x, *weights, groups, channel_sigmoid)
    out = z * torch.sigmoid(branch(module, "spatial_attention")(z))
    return out.shape == expected.shape and torch.allclose(out, expected, rtol=1e-9, atol=1e-12)


def probe(module: nn.Module) -> tuple[int, bool]:
    """The (groups, channel_sigmoid) with which GCSA equals the module on random weights and a random map.

    Raises:
        ValueError: no such settings exist.
    """
    generator = torch.Generator().manual_seed(0)  # torch's global generator stays as it is
    channels = _perceptron(module)[0].in_features
    x = torch.randn(2, channels, 5, 6, generator=generator, dtype=torch.float64)
    copied = _randomised_copy(module, generator)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        expected = copied.eval()(x.clone())
        likely_first = dict.fromkeys([4, 1, *range(2, channels + 1)])
        settings = [(g, sigmoid) for g in likely_first if channels % g == 0 for sigmoid in (True, False)]
        equal = next((s for s in settings if _gcsa_equals(copied, x, expected, *s)), None)
        if equal is None:
            raise ValueError(
                f"{type(module).__name__} has the layers of GCSA but computes something else with them "
                "(tried every number of shuffle groups, with and without a sigmoid in the channel gate)"
            )
        copied.train()
        synchronises = any(map(layers.synchronises, copied.modules()))
        if not synchronises and not _gcsa_equals(copied, x, copied(x.clone()), *equal):
            raise ValueError(
                f"{type(module).__name__} computes what GCSA does in evaluation, "
                "but something else in training"
            )
    return equal
