"""Copies of a module on which its forward pass can be tried: small, in float64, with random numbers.

The linear layers and convolutions of a copy are replaced by cheap random maps of the same sizes, `LinearMap`.
What a forward pass does between its layers can then be examined at the cost of a few small products, however
large the layers are.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
"""The attributes of a module that hold its hooks. Hooks may hold a whole training program."""


class Call(NamedTuple):
    """One call of a layer in a forward pass."""

    name: str
    """The path of the layer inside the module."""
    layer: nn.Module
    input: Tensor
    output: Tensor


def layer_type(layer: nn.Module) -> type[nn.Module]:
    """The type of a layer, without what a parametrisation makes of it."""
    kind = type(layer)
    return cast("type[nn.Module]", kind.__base__) if parametrize.is_parametrized(layer) else kind


def is_linear_map(layer: nn.Module) -> bool:
    """Whether it is a linear layer or a convolution of torch, not of a subclass."""
    return layer_type(layer) in (nn.Linear, nn.Conv2d)


class LinearMap(nn.Module):
    """A random linear map with a layer's numbers of channels, of low rank.

    That of a convolution convolves its few inner channels with the layer's kernel size, stride, padding and
    dilation. The result has the size and the memory layout of the layer's.
    """

    rank = 3

    def __init__(self, layer: nn.Module, generator: torch.Generator) -> None:
        super().__init__()
        self.conv: dict[str, Any] | None = None
        if isinstance(layer, nn.Linear):
            inputs, outputs = layer.in_features, layer.out_features
        else:
            conv = cast("nn.Conv2d", layer)
            inputs, outputs = conv.in_channels, conv.out_channels
            self.conv = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
            self.edges = conv._reversed_padding_repeated_twice, conv.padding_mode
            self.taps = nn.Parameter(_random((self.rank, 1, *conv.kernel_size), generator), False)
        self.inputs = inputs
        self.squeeze = nn.Parameter(_random((inputs, self.rank), generator) / inputs**0.5)
        self.expand = nn.Parameter(_random((self.rank, outputs), generator))
        self.offset = nn.Parameter(_random((outputs,), generator))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., inputs), or (..., inputs, H, W) for a convolution."""
        axis = -1 if self.conv is None else -3
        if x.dim() < -axis or x.shape[axis] != self.inputs:
            raise ValueError(f"expected {self.inputs} channels, got a map {tuple(x.shape)}")
        few = x.to(self.squeeze.dtype).movedim(axis, -1) @ self.squeeze
        if self.conv is None:
            return (few @ self.expand + self.offset).contiguous()
        few, settings = few.movedim(-1, axis), self.conv
        if self.edges[1] != "zeros":
            few, settings = F.pad(few, *self.edges), {**settings, "padding": 0}
        few = F.conv2d(few, self.taps, groups=self.rank, **settings)
        out = (few.movedim(axis, -1) @ self.expand + self.offset).movedim(-1, axis)
        last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        return out.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors in an attribute of a module."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _replacement(tensor: Tensor, generator: torch.Generator, in_layer: bool) -> Tensor:
    """A tensor of the copy: random numbers, but one number for weights of layers, which nothing reads."""
    shape = tuple(tensor.shape)
    new: Tensor
    if in_layer:
        new = torch.full((), 0.5, dtype=torch.float64, device="cpu").expand(shape)
    elif tensor.is_floating_point():
        new = _random(shape, generator)
    elif tensor.is_meta:
        new = torch.zeros(shape, dtype=tensor.dtype, device="cpu")
    else:
        new = tensor.detach().cpu().clone()
    return nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new


def random_copy(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy on the CPU in float64 with random parameters and buffers, without hooks.

    Every linear layer and convolution computes its `LinearMap`, which is an attribute ``_map`` of the layer.

    Raises:
        Exception: any, if the module cannot be copied.
    """
    memo: dict[int, Any] = {}
    # A module inside a layer belongs to a parametrisation.
    in_layers = {inner for layer in module.modules() if is_linear_map(layer) for inner in layer.modules()}
    for part in module.modules():
        for hooks in HOOKS:
            if hooks in part.__dict__:
                memo[id(part.__dict__[hooks])] = OrderedDict()
        for name, value in part.__dict__.items():
            if name in ("_modules", *HOOKS):
                continue
            for tensor in _tensors(value):
                memo[id(tensor)] = _replacement(tensor, generator, part in in_layers)
                # Variances must be positive.
                if name == "_buffers" and tensor is part._buffers.get("running_var"):
                    memo[id(tensor)] = memo[id(tensor)].abs() + 0.3
    copied = copy.deepcopy(module, memo)
    _require_separate(module, copied)
    for part in copied.modules():
        if is_linear_map(part):
            part.__dict__["_map"] = LinearMap(part, generator)
            part.__dict__["forward"] = part.__dict__["_map"]
        elif type(part) is nn.SyncBatchNorm:
            cast("nn.Module", part).__class__ = nn.BatchNorm2d  # without the other processes
    return copied


def _require_separate(module: nn.Module, copied: nn.Module) -> None:
    """Raise ValueError if a copy shares modules or tensors with the original, by its ``__deepcopy__``."""
    parts = {id(o) for m in module.modules() for o in (m, *m._parameters.values(), *m._buffers.values())}
    for name, part in copied.named_modules():
        for shared in (part, *part._parameters.values(), *part._buffers.values()):
            if shared is not None and id(shared) in parts:
                raise ValueError(f"the copy of {name or 'the module'} shares it with the original")


def duplicate(copied: nn.Module) -> nn.Module:
    """A copy of a random copy, which shares the weights that nothing reads."""
    memo: dict[int, Any] = {
        id(p): p for part in copied.modules() if "_map" in part.__dict__ for p in part.parameters()
    }
    return copy.deepcopy(copied, memo)


def converted(copied: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a random copy in another floating dtype."""
    other = duplicate(copied)
    in_layers = {inner for part in other.modules() if "_map" in part.__dict__ for inner in part.modules()}
    for part in other.modules():
        stores: tuple[dict[str, Any], ...] = part._parameters, part._buffers, part.__dict__
        for store in stores:
            for name, value in store.items():
                if not isinstance(value, Tensor) or not value.is_floating_point():
                    continue
                if part in in_layers:  # one number, expanded
                    new = value.detach()[(0,) * value.dim()].to(dtype).expand(value.shape)
                else:
                    new = value.detach().to(dtype)
                store[name] = nn.Parameter(new) if isinstance(value, nn.Parameter) else new
        if "_map" in part.__dict__:
            part.__dict__["_map"].to(dtype)
    return other


def parameters(copied: nn.Module) -> Iterator[Tensor]:
    """The parameters of a random copy that its forward pass reads, those of its `LinearMap`s among them."""
    in_layers = {inner for layer in copied.modules() if "_map" in layer.__dict__ for inner in layer.modules()}
    for part in copied.modules():
        if "_map" in part.__dict__:
            yield from part.__dict__["_map"].parameters()
        elif part not in in_layers:
            yield from (p for p in part._parameters.values() if p is not None)


def record(copied: nn.Module, x: Tensor) -> tuple[Tensor, list[Call]]:
    """The result of a copy's forward pass and the calls of its layers, which have no modules inside."""
    calls: list[Call] = []
    names = {part: name for name, part in copied.named_modules()}
    recorded = [part for part in copied.modules() if not part._modules or "_map" in part.__dict__]
    previous = {part: part.__dict__.get("forward") for part in recorded}

    def recording(part: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = args[0].clone() if len(args) == 1 and isinstance(args[0], Tensor) else None
            out = forward(*args, **kwargs)
            if given is not None and isinstance(out, Tensor):  # clones, since a later layer may work in place
                calls.append(Call(names[part], part, given, out.clone()))
            return out

        return call

    for part in recorded:
        part.__dict__["forward"] = recording(part, part.forward)
    try:
        out = copied(x)
    finally:
        for part, forward in previous.items():
            if forward is None:
                del part.__dict__["forward"]
            else:
                part.__dict__["forward"] = forward
    return out, calls


def equal_attributes(a: object, b: object) -> bool:
    """Whether an attribute has its earlier value: the same object, or an equal one of the same type."""
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    try:
        return bool(type(a) is type(b) and a == b)
    except Exception:  # the comparison of any two objects may raise any exception
        return False
