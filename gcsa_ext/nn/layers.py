"""Whether the operators compute what a module's layers compute.

They do for layers of torch's types, but not of subclasses, without hooks. Every forward pass asks, so these
functions read the dictionaries of a module: `nn.Module.__getattr__` takes several times as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias, TypeGuard, cast

import torch
from torch import Tensor, nn

BatchNorm: TypeAlias = nn.BatchNorm2d | nn.SyncBatchNorm

BATCH_NORM = (nn.BatchNorm2d, nn.SyncBatchNorm)
CHANNEL_ATTENTION: tuple[tuple[type[nn.Module], ...], ...] = ((nn.Linear,), (nn.ReLU,), (nn.Linear,))
SPATIAL_ATTENTION: tuple[tuple[type[nn.Module], ...], ...] = (
    (nn.Conv2d,),
    BATCH_NORM,
    (nn.ReLU,),
    (nn.Conv2d,),
    BATCH_NORM,
)


class Layers(NamedTuple):
    """The layers of a GCSA that have weights, in the order of the operator's arguments."""

    linear1: nn.Linear
    linear2: nn.Linear
    conv1: nn.Conv2d
    conv2: nn.Conv2d
    norm1: BatchNorm
    norm2: BatchNorm


def find(module: nn.Module) -> Layers | None:
    """The layers of a GCSA if the operator gcsa computes what they compute, else None."""
    channel = module._modules.get("channel_attention")
    spatial = module._modules.get("spatial_attention")
    if not are_channel_gate(channel) or not _of_kinds(spatial, SPATIAL_ATTENTION):
        return None
    linear1, _, linear2 = channel._modules.values()
    conv1, norm1, _, conv2, norm2 = spatial._modules.values()
    weighted = Layers(*cast("Layers", (linear1, linear2, conv1, conv2, norm1, norm2)))
    return weighted if _settings_fit(weighted) else None


def _settings_fit(weighted: Layers) -> bool:
    """Whether the operator supports the sizes and settings of these layers."""
    conv1, conv2 = weighted.conv1, weighted.conv2
    return (
        _pads_to_same(conv1)
        and _pads_to_same(conv2)
        and conv1.kernel_size == conv2.kernel_size
        and 5 <= conv1.kernel_size[0] <= 11
        and conv1.out_channels == conv2.in_channels
        and conv1.in_channels == conv2.out_channels
        # The operator has one number of hidden channels for both branches. Pruning may have cut the weights
        # without changing the layers' attributes, so the weights' shapes decide.
        and weights(weighted.linear1)[0].shape[0] == weights(conv1)[0].shape[0]
        and not synchronises(weighted.norm1)
        and not synchronises(weighted.norm2)
    )


def weights(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer."""
    parameters = layer._parameters
    if "weight" in parameters and "bias" in parameters:
        return cast("Tensor", parameters["weight"]), parameters["bias"]
    # Parametrised or pruned: properties or plain tensors have replaced the parameters.
    return cast("Tensor", layer.weight), cast("Tensor | None", layer.bias)


def running(norm: BatchNorm, name: str) -> Tensor | None:
    """The buffer called `name`, or the plain attribute that has replaced it."""
    attributes = norm.__dict__
    return cast("Tensor | None", attributes[name] if name in attributes else norm._buffers.get(name))


def uses_batch(norm: BatchNorm) -> bool:
    """Whether the layer normalises with the statistics of the batch."""
    return norm.training or running(norm, "running_mean") is None


def synchronises(norm: nn.Module) -> bool:
    """Whether the layer computes its statistics together with other processes, which no operator does."""
    return (
        isinstance(norm, nn.SyncBatchNorm)
        and norm.training
        and torch.distributed.is_available()
        and torch.distributed.is_initialized()
    )


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)


def _have_hooks(modules: Iterable[nn.Module]) -> bool:
    """Whether there is a hook on a module or on all modules, or a `forward` assigned to an instance.

    The names are private. If torch lacks one of them, the result is True: callers then call the layers, which
    is always right.
    """
    global_attributes = vars(nn.modules.module)
    for name in _GLOBAL_HOOKS:
        if global_attributes.get(name, True):
            return True
    for module in modules:
        attributes = module.__dict__
        if "forward" in attributes:
            return True
        for name in _HOOKS:
            if attributes.get(name, True):
                return True
    return False


def _of_kinds(
    branch: nn.Module | None, kinds: Sequence[tuple[type[nn.Module], ...]]
) -> TypeGuard[nn.Sequential]:
    """Whether the branch is a Sequential of layers of exactly these types, all without hooks."""
    if type(branch) is not nn.Sequential:
        return False
    layers = branch._modules.values()
    if len(layers) != len(kinds):
        return False
    for layer, kind in zip(layers, kinds, strict=True):
        if type(layer) not in kind:
            return False
    return not _have_hooks((branch, *cast("Iterable[nn.Module]", layers)))


def _is_plain(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether the type of the layer is one of `kinds`, not a subclass, and the layer is without hooks."""
    return type(layer) in kinds and not _have_hooks((layer,))


def are_channel_gate(branch: nn.Module | None) -> TypeGuard[nn.Sequential]:
    """Whether functional.channel_gate computes what these layers and the gate compute."""
    if not _of_kinds(branch, CHANNEL_ATTENTION):
        return False
    first, _, second = cast("Iterable[nn.Module]", branch._modules.values())
    return weights(first)[1] is not None and weights(second)[1] is not None


def end_in_norm_gate(branch: nn.Module) -> bool:
    """Whether functional.norm_gate computes what the last of these layers and the gate compute."""
    return (
        isinstance(branch, nn.Sequential)
        and _is_plain(branch, nn.Sequential)
        and len(branch) > 0
        and _is_plain(branch[-1], *BATCH_NORM)
        and not synchronises(branch[-1])
    )


def is_conv2d_same(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether functional.conv2d_same computes what the layer computes."""
    return _is_plain(layer, nn.Conv2d) and _pads_to_same(cast("nn.Conv2d", layer))


def _pads_to_same(layer: nn.Conv2d) -> bool:
    """Whether it is a convolution with an odd square kernel, 'same' zero padding, and no stride or groups."""
    size = layer.kernel_size[0]
    return (
        layer.kernel_size == (size, size)
        and size % 2 == 1
        and (layer.padding == (size // 2, size // 2) or layer.padding == "same")
        and layer.padding_mode == "zeros"
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
    )
