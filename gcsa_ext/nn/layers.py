"""Whether the operators compute what a module's layers compute.

They do for layers of torch's types, but not of subclasses, without hooks. Every forward pass asks, so these
functions read the dictionaries of a module: `nn.Module.__getattr__` takes several times as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

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
    """The layers of an attention that have weights, in the order of the operator's arguments.

    The perceptron of the channel gate may consist of 1x1 convolutions. A normalisation that was folded into
    its convolution is None.
    """

    linear1: nn.Linear | nn.Conv2d
    linear2: nn.Linear | nn.Conv2d
    conv1: nn.Conv2d
    conv2: nn.Conv2d
    norm1: BatchNorm | None
    norm2: BatchNorm | None


class Node(NamedTuple):
    """A module inside an attention."""

    parent: int
    """The number of the module that has it: 0 for the attention itself, i for node i - 1."""
    name: str
    kinds: tuple[type[nn.Module], ...]
    """The types that it may have, exactly."""
    children: tuple[str, ...]
    """The names of the modules inside it, in order."""
    attributes: tuple[tuple[str, object], ...] = ()
    """Names and values of plain attributes that it must have."""


class Structure(NamedTuple):
    """Every module inside an attention, parents first, and which of them are its `Layers`."""

    nodes: tuple[Node, ...]
    layers: tuple[int, ...]
    """The numbers of the six layers, as in `Node.parent`; 0 for a normalisation that does not exist."""
    same: tuple[tuple[int, int], ...] = ()
    """The numbers of modules that are one module under two names."""
    attributes: tuple[tuple[str, object], ...] = ()
    """Names and values of plain attributes that the attention itself must have."""
    of_classes: tuple[tuple[int, str, object], ...] = ()
    """Plain attributes of the classes of modules: the number of the module, name and value."""


def _structure_of_gcsa() -> Structure:
    folded = [(*kind, nn.Identity) if kind is BATCH_NORM else kind for kind in SPATIAL_ATTENTION]
    nodes: list[Node] = []
    for name, kinds in (("channel_attention", CHANNEL_ATTENTION), ("spatial_attention", folded)):
        branch = len(nodes) + 1
        names = tuple(map(str, range(len(kinds))))
        nodes.append(Node(0, name, (nn.Sequential,), names))
        nodes += [Node(branch, name, kind, ()) for name, kind in zip(names, kinds, strict=True)]
    return Structure(tuple(nodes), (2, 4, 6, 9, 7, 10))


STRUCTURE = _structure_of_gcsa()
"""The structure of the module `GCSA`."""


def find(module: nn.Module, structure: Structure = STRUCTURE) -> Layers | None:
    """The layers of an attention if they are those of the structure, else None.

    There must be no hooks but those that compute a weight (of pruning, weight and spectral normalisation).
    Before a weight is read, `compute_weights` has to call these.
    """
    if not _has_attributes(module, structure.attributes):
        return None
    modules = [module]
    for parent, name, kinds, children, attributes in structure.nodes:
        child = modules[parent]._modules.get(name)
        if child is None or type(child) not in kinds or tuple(child._modules) != children:
            return None
        if attributes and not _has_attributes(child, attributes):
            return None
        modules.append(child)
    for i, name, value in structure.of_classes:
        if getattr(modules[i], name, modules) != value:
            return None
    for i, j in structure.same:
        if modules[i] is not modules[j]:
            return None
    if _have_hooks(modules[1:]) and not _have_weight_hooks_alone(modules[1:]):
        return None
    six = (None if i == 0 or type(modules[i]) is nn.Identity else modules[i] for i in structure.layers)
    weighted = Layers(*cast("Layers", six))
    return None if None in weighted[:4] else weighted


def _has_attributes(module: nn.Module, attributes: tuple[tuple[str, object], ...]) -> bool:
    """Whether the module's plain attributes have these values."""
    found = module.__dict__
    for name, value in attributes:
        now = found.get(name, found)
        if now is not value and (type(now) is not type(value) or now != value):
            return False
    return True


def operator_takes(weighted: Layers) -> bool:
    """Whether the operator gcsa supports the sizes and settings of these layers."""
    linear1, linear2, conv1, conv2, norm1, norm2 = weighted
    sizes = conv1.kernel_size[0], conv2.kernel_size[0]
    return (
        is_pointwise(linear1)
        and is_pointwise(linear2)
        and _pads_to_same(conv1)
        and _pads_to_same(conv2)
        # Torch's own convolution of 3x3 is faster than the operator's.
        and 5 <= max(sizes) <= 11
        and (min(sizes) == 1 or conv1.padding_mode == conv2.padding_mode)
        and not synchronises(norm1)
        and not synchronises(norm2)
        and _have_own_shape(weighted)
    )


def _have_own_shape(weighted: Layers) -> bool:
    """Whether the weights have the shapes that the operator expects.

    Pruning may have cut them without changing the attributes of their layers.
    """
    three = weighted.linear1, weighted.conv1, weighted.conv2
    linear1, conv1, conv2 = (layer._parameters.get("weight") for layer in three)
    if linear1 is None or conv1 is None or conv2 is None:
        return True  # A weight that is computed has the layer's own shape.
    return (
        conv2.shape[0] == linear1.shape[1] == conv1.shape[1] * weighted.conv1.groups
        and conv1.shape[0] == conv2.shape[1] * weighted.conv2.groups
    )


def takes_channels(weighted: Layers, x: Tensor) -> bool:
    """Whether x (N, C, H, W) has as many channels as the first linear layer reads."""
    layer = weighted.linear1
    weight = layer._parameters.get("weight")
    if weight is not None:
        channels = weight.shape[1]
    else:
        channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    return x.shape[1] == channels


def have_dtype(weighted: Layers, dtype: torch.dtype) -> bool:
    """Whether the weights of linear layers and convolutions have this dtype. None is computed for that."""
    for layer in weighted[:4]:
        parameters = layer._parameters
        tensors: Iterable[Tensor | None]
        if "weight" in parameters and "bias" in parameters:
            tensors = parameters.values()
        elif parametrize.is_parametrized(layer):
            tensors = layer.parameters()
        else:
            tensors = weights(layer)
        for tensor in tensors:
            if tensor is not None and tensor.dtype != dtype:
                return False
    return True


def replicates(weighted: Layers) -> bool:
    """Whether the convolutions pad with the values at the edge of the map."""
    return any(conv.padding_mode == "replicate" and conv.kernel_size[0] > 1 for conv in weighted[2:4])


def weights(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer.

    A parametrisation computes its weight whenever it is read, and that of spectral normalisation changes with
    every reading. So a forward pass reads every weight once.
    """
    parameters = layer._parameters
    if "weight" in parameters and "bias" in parameters:
        return cast("Tensor", parameters["weight"]), parameters["bias"]
    # Parametrised or pruned: properties or plain tensors have replaced the parameters.
    return cast("Tensor", layer.weight), cast("Tensor | None", layer.bias)


def running(norm: BatchNorm, name: str) -> Tensor | None:
    """The buffer called `name`, or the plain attribute that has replaced it."""
    attributes = norm.__dict__
    return cast("Tensor | None", attributes[name] if name in attributes else norm._buffers.get(name))


def uses_batch(norm: BatchNorm | None) -> bool:
    """Whether the layer normalises with the statistics of the batch."""
    return norm is not None and (norm.training or running(norm, "running_mean") is None)


def synchronises(norm: nn.Module | None) -> bool:
    """Whether the layer computes its statistics together with other processes, which no operator does."""
    return (
        isinstance(norm, nn.SyncBatchNorm)
        and norm.training
        and torch.distributed.is_available()
        and torch.distributed.is_initialized()
    )


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)


_COMPUTE_WEIGHTS = (prune.BasePruningMethod, WeightNorm, SpectralNorm)


def _have_hooks(modules: Iterable[nn.Module], names: Sequence[str] = _HOOKS) -> bool:
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
        for name in names:
            if attributes.get(name, True):
                return True
    return False


def _have_weight_hooks_alone(modules: Sequence[nn.Module]) -> bool:
    """Whether all hooks are of those that compute a weight before each forward pass."""
    if _have_hooks(modules, [name for name in _HOOKS if name != "_forward_pre_hooks"]):
        return False
    return all(isinstance(hook, _COMPUTE_WEIGHTS) for m in modules for hook in m._forward_pre_hooks.values())


def compute_weights(layers: Iterable[nn.Module | None]) -> None:
    """Call the hooks of the layers, which `find` has found to compute a weight each."""
    for layer in layers:
        if layer is not None and layer._forward_pre_hooks:
            for hook in layer._forward_pre_hooks.values():
                hook(layer, ())  # the hooks of these types do not read the layer's input


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
    first, _, second = branch
    return first.bias is not None and second.bias is not None


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
    if not _is_plain(layer, nn.Conv2d):
        return False
    conv = cast("nn.Conv2d", layer)
    return _pads_to_same(conv) and conv.groups == 1 and conv.padding_mode == "zeros"


def _pads_to_same(layer: nn.Conv2d) -> bool:
    """Whether it is a convolution of stride 1 with an odd square kernel and 'same' padding by 0 or edges."""
    size = layer.kernel_size[0]
    return (
        layer.kernel_size == (size, size)
        and size % 2 == 1
        and (layer.padding == (size // 2, size // 2) or layer.padding == "same")
        and layer.padding_mode in ("zeros", "replicate")
        and layer.stride == layer.dilation == (1, 1)
    )


def keeps_size(layer: nn.Conv2d) -> bool:
    """Whether the result of a convolution has as many rows and columns as its input."""
    if any(step != 1 for step in layer.stride):
        return False
    if isinstance(layer.padding, str):
        return layer.padding == "same" or layer.kernel_size == (1, 1)
    return all(
        2 * padding == dilation * (size - 1)
        for padding, dilation, size in zip(layer.padding, layer.dilation, layer.kernel_size, strict=True)
    )


def is_pointwise(layer: nn.Linear | nn.Conv2d) -> bool:
    """Whether the layer is linear in the channels of each position."""
    return isinstance(layer, nn.Linear) or (
        layer.kernel_size == layer.stride == (1, 1)
        and layer.padding in ((0, 0), "same", "valid")
        and layer.groups == 1
    )
