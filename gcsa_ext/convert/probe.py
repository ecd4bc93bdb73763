"""What a module with the layers of GCSA computes with them, found out on random numbers."""

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

HOOKS = (  # with the flag that says which kind the backward hooks are
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
    """The Sequential of that name, or an empty one."""
    found = getattr(module, name, None)
    return found if isinstance(found, nn.Sequential) else nn.Sequential()


def _perceptron(module: nn.Module) -> tuple[nn.Linear, nn.ReLU, nn.Linear]:
    return cast("tuple[nn.Linear, nn.ReLU, nn.Linear]", tuple(branch(module, "channel_attention")))


def structural_difference(module: nn.Module) -> str | None:
    """What about the module's layers differs from GCSA's, or None."""
    for name, expected in BRANCHES.items():
        found = branch(module, name)
        if len(found) != len(expected) or not all(
            isinstance(layer, kinds) for layer, kinds in zip(found, expected, strict=True)
        ):
            names = ", ".join(type(layer).__name__ for layer in found)
            return f"it has {f'a {name} of {names}' if names else f'no Sequential named {name}'}"
    first, _, second = _perceptron(module)
    if any(getattr(layer, "bias", None) is None for layer in (first, second)):
        return "its channel_attention has a layer without bias"
    shared = {id(parameter) for name in BRANCHES for parameter in branch(module, name).parameters()}
    if any(id(parameter) not in shared for parameter in module.parameters()):
        return "it has parameters besides channel_attention and spatial_attention"
    second_conv = cast("nn.Conv2d", branch(module, "spatial_attention")[3])
    if not first.in_features == second.out_features == second_conv.out_channels:
        return "its output has another number of channels than its input"
    return None


def probe(module: nn.Module) -> tuple[int, bool]:
    """The (groups, channel_sigmoid) with which GCSA equals the module on random weights and a random map.

    Raises:
        ValueError: there are none.
    """
    copied = copy.deepcopy(module).cpu().double()
    for layer in copied.modules():  # the calls below are not for the user's hooks
        for hooks in (getattr(layer, name) for name in HOOKS):
            if isinstance(hooks, dict):
                hooks.clear()
    first, _, second = _perceptron(copied)
    channels = first.in_features
    generator = torch.Generator().manual_seed(0)  # leaves the user's random state alone
    x = torch.randn(2, channels, 5, 6, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for parameter in copied.parameters():
            scale = parameter[0].numel() ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

        def agrees(expected: Tensor, groups: int, sigmoid: bool) -> bool:
            z = reference.channel_gate(
                x, first.weight, first.bias, second.weight, second.bias, groups, sigmoid
            )
            found = z * torch.sigmoid(branch(copied, "spatial_attention")(z))
            return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-9, atol=1e-12)

        with torch.random.fork_rng(devices=[]):
            expected = copied.eval()(x.clone())
            likely = dict.fromkeys([4, 1, *range(2, channels + 1)])
            choices = [(g, sigmoid) for g in likely if channels % g == 0 for sigmoid in (True, False)]
            found = next((choice for choice in choices if agrees(expected, *choice)), None)
            if found is None:
                raise ValueError(
                    f"{type(module).__name__} has the layers of GCSA but computes something else with them "
                    "(tried every number of shuffle groups, with and without a sigmoid in the channel gate)"
                )
            copied.train()
            synchronises = any(map(layers.synchronises, copied.modules()))
            if not synchronises and not agrees(copied(x.clone()), *found):
                raise ValueError(
                    f"{type(module).__name__} computes what GCSA does in evaluation, "
                    "but something else in training"
                )
    return found
