"""Global channel-spatial attention, and its exchange for such modules in other people's models."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeGuard, TypeVar, cast

import torch
from torch import Tensor, is_autocast_enabled, is_grad_enabled, nn
from torch.compiler import is_compiling

from gcsa_ext import functional, ops, reference
from gcsa_ext.backends import has_kernels, native
from gcsa_ext.backends.native import transformed
from gcsa_ext.ops.gcsa import Plan

_BatchNorm: TypeAlias = nn.BatchNorm2d | nn.SyncBatchNorm
_Layer = TypeVar("_Layer", bound=nn.Module)
_SpatialLayers: TypeAlias = tuple[nn.Conv2d, _BatchNorm, nn.ReLU, nn.Conv2d, _BatchNorm]
_Layers: TypeAlias = tuple[nn.Linear, nn.Linear, nn.Conv2d, _BatchNorm, nn.Conv2d, _BatchNorm]


class GCSA(nn.Module):
    """Global channel-spatial attention (arXiv 2503.11935; with groups=1 it is GAM, arXiv 2112.05561).

    ::

        y   = x * sigmoid(W2 relu(W1 x + b1) + b2)          at every position, over the channels
        z   = channel_shuffle(y, groups)
        s   = sigmoid(BN2(conv(relu(BN1(conv(z))))))        C -> h -> C channels, 'same' zero padding
        out = z * s

    The layers are ordinary ones under the names that the public GCSA and GAM modules give them, so their
    state dicts load unchanged: ``channel_attention`` = (Linear, ReLU, Linear), ``spatial_attention`` =
    (Conv2d, BatchNorm2d, ReLU, Conv2d, BatchNorm2d). BatchNorm keeps its full meaning, including
    SyncBatchNorm after conversion. A layer that was exchanged for one of another kind, or that carries hooks,
    is called as it is, without fusion.

    Not to be confused with the grouped channel self-attention of arXiv 2404.07846, which is called GCSA too.

    Args:
        channels: C, divisible by `groups`.
        reduction: the hidden layers have h = channels // reduction channels, at least 1.
        groups: groups of the channel shuffle.
        kernel_size: of both convolutions; odd.
        channel_sigmoid: False leaves the sigmoid out of the channel gate, as some public GAM modules do.

    Shape:
        (N, C, H, W) to (N, C, H, W), any N, H and W; the memory layout is kept.

    Raises:
        ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 4,
        groups: int = 4,
        kernel_size: int = 7,
        *,
        channel_sigmoid: bool = True,
    ) -> None:
        super().__init__()
        if channels < 1 or reduction < 1 or channels // reduction < 1:
            raise ValueError(f"GCSA: expected channels // reduction >= 1, got {channels=}, {reduction=}")
        if groups < 1 or channels % groups:
            raise ValueError(f"GCSA: expected groups that divide the channels, got {channels=}, {groups=}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"GCSA: expected an odd kernel_size, got {kernel_size=}")
        hidden, padding = channels // reduction, kernel_size // 2
        self.groups = groups
        self.channel_sigmoid = channel_sigmoid
        self.channel_attention = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
        )
        self.spatial_attention = nn.Sequential(
            nn.Conv2d(channels, hidden, kernel_size, padding=padding),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, kernel_size, padding=padding),
            nn.BatchNorm2d(channels),
        )

    @classmethod
    def from_module(cls, module: nn.Module) -> GCSA:
        """The GCSA that computes what `module` computes and shares its layers, parameters, buffers and hooks.

        Args:
            module: any module with the layers of this class under the same names. What its forward pass does
                with them (groups of the shuffle, a channel gate with or without sigmoid) is found out on a
                copy with random weights.

        Raises:
            ValueError: the module has other layers, or computes something else with them.
        """
        reason = _structural_difference(module)
        if reason is not None:
            raise ValueError(f"{type(module).__name__} is not a GCSA or GAM module: {reason}")
        groups, channel_sigmoid = _probe(module)
        gcsa = cls.__new__(cls)
        nn.Module.__init__(gcsa)
        gcsa.groups = groups
        gcsa.channel_sigmoid = channel_sigmoid
        gcsa.channel_attention = _branch(module, "channel_attention")
        gcsa.spatial_attention = _branch(module, "spatial_attention")
        gcsa.training = module.training
        for name in _HOOKS:
            setattr(gcsa, name, getattr(module, name))
        return gcsa

    def forward(self, x: Tensor) -> Tensor:
        """Attend to x (N, C, H, W)."""
        memory = None if is_compiling() else self.__dict__.get("_memory")
        out = self._directly(x, memory)
        if out is not None:
            return out
        plan = self._fusing_plan(x)
        if plan is None:
            return self._spatial_gate(self._channel_gate(x))
        if not is_compiling() and (made := self.__dict__.get("_memory")) is not memory:
            out = self._directly(x, made)
        return self._fused(x, plan) if out is None else out

    def _directly(self, x: Tensor, memory: _Memory | None) -> Tensor | None:
        """All layers as the plan says that is remembered from the last call, unless it no longer holds."""
        if memory is None or memory.plan is None or memory.notes is None or memory.kind is not type(self):
            return None
        return ops.gcsa.directly(self.__dict__, x, memory.notes, memory.plan)

    def _fusing_plan(self, x: Tensor) -> Plan | None:
        """What one operator needs to compute what all layers do, if a backend has it for x."""
        if (
            x.dim() != 4
            or x.numel() == 0
            or transformed()
            or not has_kernels("gcsa", x.device, x.dtype)
            or (plan := self._plan()) is None
        ):
            return None
        first, conv1 = cast("tuple[Tensor, Tensor]", plan.weights[0:5:4])
        # The operator has one number of hidden channels for both branches. Weights tell: somebody may have
        # cut them.
        if first.shape[0] != conv1.shape[0]:
            return None
        # One value per channel has no variance: batch normalisation refuses it with a good message.
        if any(plan.batch) and x.numel() == x.shape[1]:
            return None
        device, dtype = "cpu" if x.is_cpu else x.device.type, x.dtype
        if is_autocast_enabled(device):
            # On a GPU the convolutions of a wider map are to be computed in autocast's dtype, layer by layer.
            return plan if device == "cpu" or dtype == torch.get_autocast_dtype(device) else None
        for weight in plan.weights[:8]:
            # Outside of autocast other dtypes are a mistake, and the layers say so.
            if weight is not None and weight.dtype != dtype:
                return None
        return plan

    def _plan(self) -> Plan | None:
        """_make_plan(self), from the last call if nothing that it rests on has changed since."""
        if is_compiling() or native.extension is None:
            return _make_plan(self)
        own = self.__dict__
        memory: _Memory | None = own.get("_memory")
        if (
            memory is not None
            and memory.notes is not None
            and memory.kind is type(self)
            and native.extension.unchanged(own, memory.notes)
        ):
            return memory.plan
        own.pop("_memory", None)
        plan = _make_plan(self)
        notes = None if plan is None else _take_notes(self, plan)
        if notes is not None:
            # The plan is the younger of the two: what another thread changes in between shows in the notes.
            plan = _make_plan(self)
            own["_memory"] = _Memory(type(self), plan, notes)
        return plan

    # Parameters that are exchanged should not stay in memory until the next call.
    def _apply(self, *args: Any, **kwargs: Any) -> GCSA:
        self.__dict__.pop("_memory", None)
        return cast("GCSA", super()._apply(*args, **kwargs))  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.__dict__.pop("_memory", None)
        super()._load_from_state_dict(*args, **kwargs)

    def _fused(self, x: Tensor, plan: Plan) -> Tensor:
        tensors = (x, *plan.weights)
        save = is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        out: Tensor
        mixed = x.is_cpu and is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        out, _, _, *used = torch.ops.gcsa_ext.gcsa(*tensors, *plan.statistics, *plan.settings, mixed, save)
        for i, norm, mean, var, batches in plan.updated:
            values = x.numel() // x.shape[1]
            functional.update_statistics(mean, var, used[i], used[i + 1], values, norm.momentum, batches)
        return out

    def _channel_gate(self, x: Tensor) -> Tensor:
        if not _fuses_channel_gate(self.channel_attention):
            pre = self.channel_attention(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            gate = torch.sigmoid(pre) if self.channel_sigmoid else pre
            return reference.channel_shuffle(x * gate, self.groups)
        first, _, second = _perceptron(self)
        return functional.channel_gate(
            x, first.weight, first.bias, second.weight, second.bias, self.groups, self.channel_sigmoid
        )

    def _spatial_gate(self, z: Tensor) -> Tensor:
        # 'Same' padding of an empty map is an empty map, but the convolutions refuse it.
        if z.shape[2] == 0 or z.shape[3] == 0:
            return z
        if not _fuses_norm_gate(self.spatial_attention):
            return z * torch.sigmoid(self.spatial_attention(z))
        *convolutions, norm = self.spatial_attention
        u = z
        for layer in convolutions:
            u = functional.conv2d_same(u, layer.weight, layer.bias) if _is_conv2d_same(layer) else layer(u)
        return _norm_gate(cast("nn.BatchNorm2d", norm), u, z)

    def extra_repr(self) -> str:
        return f"groups={self.groups}" + ("" if self.channel_sigmoid else ", channel_sigmoid=False")


def _norm_gate(norm: _BatchNorm, u: Tensor, z: Tensor) -> Tensor:
    """norm_gate with the statistics that `norm` would use, and its running ones updated as it would."""
    use_batch = _uses_batch(norm)
    update = norm.training and norm.track_running_stats
    momentum = _next_momentum(norm) if update else 0.0
    return functional.norm_gate(
        u,
        z,
        norm.weight,
        norm.bias,
        norm.running_mean if update or not use_batch else None,
        norm.running_var if update or not use_batch else None,
        training=use_batch,
        momentum=momentum,
        eps=norm.eps,
    )


def _uses_batch(norm: _BatchNorm) -> bool:
    """Whether the layer normalises with the statistics of the batch."""
    return norm.training or norm.running_mean is None


def _next_momentum(norm: _BatchNorm) -> float | Tensor:
    """Count one more batch; the share of its statistics in the running ones."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # cumulative average
            return 1 / norm.num_batches_tracked.to(torch.float32)
    return 0.0 if norm.momentum is None else norm.momentum


def _synchronises(norm: nn.Module) -> bool:
    """Whether the layer gathers its statistics from other processes; that is left to the layer."""
    return (
        isinstance(norm, nn.SyncBatchNorm)
        and norm.training
        and torch.distributed.is_available()
        and torch.distributed.is_initialized()
    )


_HOOKS = (  # with the flag that says which kind the backward hooks are
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


class _Notes(NamedTuple):
    """What a decision about modules rests on, as native.extension.unchanged takes it: each tuple is flat."""

    kinds: tuple[object, ...]
    """An object, its type, its __dict__."""
    entries: tuple[object, ...]
    """A dict, or None for the __dict__ of the module itself, which notes must not keep alive; a key; the
    value under it, or ...: none."""
    sequences: tuple[object, ...]
    """A dict, its values in order."""
    empty: tuple[object, ...]
    """A dict without entries."""


class _Memory:
    """A module's plan and what it rests on; a copy or a pickle of it is empty."""

    __slots__ = ("kind", "notes", "plan")

    def __init__(
        self, kind: type[GCSA] | None = None, plan: Plan | None = None, notes: _Notes | None = None
    ) -> None:
        self.kind, self.plan, self.notes = kind, plan, notes

    def __reduce__(self) -> tuple[type[_Memory], tuple[()]]:
        return _Memory, ()


def _make_plan(module: GCSA) -> Plan | None:
    """The plan if one operator computes what all layers do."""
    branches = [module._modules.get(name) for name in _LAYERS]
    if not _fuses_channel_gate(branches[0]) or not _fuses_spatial_gate(branches[1]):
        return None
    first, second, conv1, norm1, conv2, norm2 = _layers(module)
    norms = (norm1, norm2)
    return Plan(
        tuple(t for layer in (first, second, conv1, conv2, norm1, norm2) for t in _weights(layer)),
        tuple(
            None if _uses_batch(norm) else value
            for norm in norms
            for value in (norm.running_mean, norm.running_var)
        ),
        (norm1.eps, norm2.eps, module.groups, module.channel_sigmoid),
        (_uses_batch(norm1), _uses_batch(norm2)),
        tuple(
            (2 * i, norm, norm.running_mean, norm.running_var, norm.num_batches_tracked)
            for i, norm in enumerate(norms)
            if norm.training and norm.track_running_stats
        ),
    )


_HOOKS_OF_CALLS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_ATTRIBUTES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: (),
    nn.Conv2d: (
        *("kernel_size", "padding", "padding_mode", "stride", "dilation", "groups"),
        *("in_channels", "out_channels"),
    ),
    nn.BatchNorm2d: ("training", "track_running_stats", "eps"),
}
"""What a plan asks of a layer besides its hooks, parameters and buffers."""
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def _take_notes(module: GCSA, plan: Plan) -> _Notes | None:
    """What _make_plan saw when it made a plan, if notes can tell all of it and may keep it alive."""
    # Weights that were computed hold on to all that they were computed from.
    if any(type(weight) not in (nn.Parameter, type(None)) for weight in plan.weights):
        return None
    branches, layers = [_branch(module, name) for name in _LAYERS], _layers(module)
    settings = ("_modules", "groups", "channel_sigmoid")
    if not module.__dict__.keys() >= set(settings):  # a property of a derived class
        return None
    if any(type(branch._modules) is not dict for branch in branches):  # others have an order of their own
        return None
    for layer in layers:
        if type(layer) not in _ATTRIBUTES or not {"weight", "bias"} <= layer._parameters.keys():
            return None
        if type(layer) is nn.BatchNorm2d and not set(_BUFFERS) <= layer._buffers.keys():
            return None
    observed = [layer for branch in branches for layer in (branch, *branch._modules.values())]
    everywhere = vars(nn.modules.module)
    hooks = [(m.__dict__, name) for m in observed for name in _HOOKS_OF_CALLS]
    hooks += [(everywhere, f"_global{name}") for name in _HOOKS_OF_CALLS]
    seen = [*hooks, *((module._modules, name) for name in _LAYERS)]
    seen += [(branch.__dict__, "_modules") for branch in branches]
    for layer in layers:
        own = layer.__dict__
        seen += [(own, name) for name in ("_parameters", "_buffers", *_ATTRIBUTES[type(layer)])]
        seen += [(own[kind], name) for kind in ("_parameters", "_buffers") for name in own[kind]]
    entries: list[tuple[dict[str, Any] | None, str, Any]] = [(own, name, own[name]) for own, name in seen]
    entries += [(None, name, module.__dict__[name]) for name in settings]
    entries += [(m.__dict__, "forward", ...) for m in observed]
    # Attributes come before buffers.
    entries += [(layer.__dict__, name, ...) for layer in layers[3::2] for name in _BUFFERS]
    return _Notes(
        tuple(x for m in observed for x in (m, type(m), m.__dict__)),
        tuple(x for entry in entries for x in entry),
        tuple(x for branch in branches for x in (branch._modules, tuple(branch._modules.values()))),
        tuple(owner[name] for owner, name in hooks),
    )


# nn.Module's search for an attribute is long: these look into the modules' own dictionaries.
def _observed(*layers: nn.Module) -> bool:
    """Whether somebody listens in on a layer or stands in for it."""
    everywhere = vars(nn.modules.module)
    return any(everywhere[f"_global{name}"] for name in _HOOKS_OF_CALLS) or any(
        "forward" in layer.__dict__ or any(layer.__dict__[name] for name in _HOOKS_OF_CALLS)
        for layer in layers
    )


def _weights(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    own = layer._parameters
    if "weight" in own and "bias" in own:
        return cast("Tensor", own["weight"]), own["bias"]
    return cast("Tensor", layer.weight), cast("Tensor | None", layer.bias)  # exchanged for plain tensors


def _of_kinds(
    branch: nn.Module | None, kinds: Sequence[tuple[type[nn.Module], ...]]
) -> TypeGuard[nn.Sequential]:
    """Whether the branch is a sequence of layers of exactly these kinds, none of them observed."""
    if type(branch) is not nn.Sequential:
        return False
    layers = branch._modules.values()
    if len(layers) != len(kinds):
        return False
    for layer, kind in zip(layers, kinds, strict=True):
        if type(layer) not in kind:
            return False
    return not _observed(branch, *cast("Iterable[nn.Module]", layers))


def _is_plain(layer: nn.Module, *kinds: type[_Layer]) -> TypeGuard[_Layer]:
    """Whether the layer is of exactly one of these kinds, and not observed."""
    return type(layer) in kinds and not _observed(layer)


def _fuses_channel_gate(branch: nn.Module | None) -> TypeGuard[nn.Sequential]:
    """Whether functional.channel_gate computes what these layers do."""
    if not _of_kinds(branch, ((nn.Linear,), (nn.ReLU,), (nn.Linear,))):
        return False
    first, _, second = cast("Iterable[nn.Module]", branch._modules.values())
    return _weights(first)[1] is not None and _weights(second)[1] is not None


def _fuses_norm_gate(branch: nn.Module) -> bool:
    """Whether functional.norm_gate computes what the last of these layers and the gate do."""
    return (
        isinstance(branch, nn.Sequential)
        and _is_plain(branch, nn.Sequential)
        and len(branch) > 0
        and _is_plain(branch[-1], *_BATCH_NORM)
        and not _synchronises(branch[-1])
    )


def _pads_to_same(layer: nn.Conv2d) -> bool:
    """Whether functional.conv2d_same computes what the layer does."""
    return (
        layer.kernel_size[0] == layer.kernel_size[1]
        and layer.kernel_size[0] % 2 == 1
        and layer.padding in ("same", (layer.kernel_size[0] // 2,) * 2)
        and layer.padding_mode == "zeros"
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
    )


def _is_conv2d_same(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    return _is_plain(layer, nn.Conv2d) and _pads_to_same(layer)


def _fuses_spatial_gate(branch: nn.Module | None) -> TypeGuard[nn.Sequential]:
    """Whether the operator gcsa computes what these layers and the gate do."""
    if not _of_kinds(branch, ((nn.Conv2d,), _BATCH_NORM, (nn.ReLU,), (nn.Conv2d,), _BATCH_NORM)):
        return False
    conv1, norm1, _, conv2, norm2 = cast("_SpatialLayers", tuple(branch._modules.values()))
    return (
        _pads_to_same(conv1)
        and _pads_to_same(conv2)
        and conv1.kernel_size == conv2.kernel_size
        and 5 <= conv1.kernel_size[0] <= 11
        and conv1.out_channels == conv2.in_channels
        and conv1.in_channels == conv2.out_channels
        and not _synchronises(norm1)
        and not _synchronises(norm2)
    )


_BATCH_NORM = (nn.BatchNorm2d, nn.SyncBatchNorm)
_LAYERS: dict[str, tuple[type[nn.Module] | tuple[type[nn.Module], ...], ...]] = {
    "channel_attention": (nn.Linear, nn.ReLU, nn.Linear),
    "spatial_attention": (nn.Conv2d, _BATCH_NORM, nn.ReLU, nn.Conv2d, _BATCH_NORM),
}


def _branch(module: nn.Module, name: str) -> nn.Sequential:
    branch = getattr(module, name, None)
    return branch if isinstance(branch, nn.Sequential) else nn.Sequential()


def _perceptron(module: nn.Module) -> tuple[nn.Linear, nn.ReLU, nn.Linear]:
    return cast("tuple[nn.Linear, nn.ReLU, nn.Linear]", tuple(_branch(module, "channel_attention")))


def _layers(module: GCSA) -> _Layers:
    """Those with weights."""
    gate, spatial = (module._modules[name] for name in _LAYERS)
    first, _, second = cast("nn.Module", gate)._modules.values()
    conv1, norm1, _, conv2, norm2 = cast("nn.Module", spatial)._modules.values()
    return cast("_Layers", (first, second, conv1, norm1, conv2, norm2))


def _structural_difference(module: nn.Module) -> str | None:
    """What about the module's layers differs from GCSA's, or None."""
    for name, expected in _LAYERS.items():
        branch = _branch(module, name)
        if len(branch) != len(expected) or not all(
            isinstance(layer, kind) for layer, kind in zip(branch, expected, strict=True)
        ):
            found = ", ".join(type(layer).__name__ for layer in branch)
            return f"it has {f'a {name} of {found}' if found else f'no Sequential named {name}'}"
    first, _, second = _perceptron(module)
    if any(getattr(layer, "bias", None) is None for layer in (first, second)):
        return "its channel_attention has a layer without bias"
    shared = {id(parameter) for name in _LAYERS for parameter in _branch(module, name).parameters()}
    if any(id(parameter) not in shared for parameter in module.parameters()):
        return "it has parameters besides channel_attention and spatial_attention"
    second_conv = cast("nn.Conv2d", _branch(module, "spatial_attention")[3])
    if not first.in_features == second.out_features == second_conv.out_channels:
        return "its output has another number of channels than its input"
    return None


def _probe(module: nn.Module) -> tuple[int, bool]:
    """The (groups, channel_sigmoid) with which GCSA equals the module on random weights and a random map.

    Raises:
        ValueError: there are none.
    """
    copied = copy.deepcopy(module).cpu().double()
    for layer in copied.modules():  # hooks are the user's: these are no calls to tell them of
        for hooks in (getattr(layer, name) for name in _HOOKS):
            if isinstance(hooks, dict):
                hooks.clear()
    first, _, second = _perceptron(copied)
    channels = first.in_features
    generator = torch.Generator().manual_seed(0)  # the user's random state is left alone
    x = torch.randn(2, channels, 5, 6, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for parameter in copied.parameters():
            scale = parameter[0].numel() ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

        def agrees(expected: Tensor, groups: int, sigmoid: bool) -> bool:
            z = reference.channel_gate(
                x, first.weight, first.bias, second.weight, second.bias, groups, sigmoid
            )
            found = z * torch.sigmoid(_branch(copied, "spatial_attention")(z))
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
            synchronises = any(map(_synchronises, copied.modules()))
            if not synchronises and not agrees(copied(x.clone()), *found):
                raise ValueError(
                    f"{type(module).__name__} computes what GCSA does in evaluation, "
                    "but something else in training"
                )
    return found


def replace_attention(model: nn.Module) -> int:
    """Exchange every public GCSA or GAM module inside a model for the fused `GCSA`, in place.

    Modules are found by their layers (see `GCSA`), whatever their class is called, and each is checked by its
    results on a copy with random weights; the exchange shares the very same parameters and buffers, so
    optimisers, checkpoints and weight ties go on working. A module that has such layers but computes
    something else is left alone with a warning. Do it before torch.compile, DistributedDataParallel or other
    wrappers.

    Args:
        model: any module; must not itself be such a module (use ``GCSA.from_module``).

    Returns:
        How many modules were exchanged. A module used in several places counts once.

    Raises:
        ValueError: `model` itself is such a module, which cannot be exchanged in place.
    """
    if not isinstance(model, GCSA) and _structural_difference(model) is None:
        raise ValueError(
            f"the model itself ({type(model).__name__}) is the attention module: "
            "use model = GCSA.from_module(model)"
        )
    exchanged: dict[nn.Module, GCSA] = {}
    refused: set[nn.Module] = set()
    for path, parent in list(model.named_modules()):
        for name, child in list(parent._modules.items()):  # named_children leaves repetitions out
            if child is None or isinstance(child, GCSA) or child in refused:
                continue
            if _structural_difference(child) is not None:
                continue
            if child not in exchanged:
                try:
                    exchanged[child] = GCSA.from_module(child)
                except Exception as error:  # the child's own forward pass may raise anything
                    refused.add(child)
                    warnings.warn(
                        f"replace_attention leaves {path or 'the model'}.{name} alone: {error}", stacklevel=2
                    )
                    continue
            setattr(parent, name, exchanged[child])
    return len(exchanged)
