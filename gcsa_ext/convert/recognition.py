"""What a module computes with its layers, found out from the calls of one forward pass on random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gcsa_ext import reference
from gcsa_ext.convert.copies import Call, is_linear_map, layer_type, record
from gcsa_ext.nn import layers
from gcsa_ext.nn.attention import Settings

GATED = 2
"""The least progress (`NotAttentionError.progress`) of a module that resembles an attention."""


class NotAttentionError(ValueError):
    """A module is not an attention that can be fused. The message says why; it follows the module's name."""

    def __init__(self, reason: str, progress: int = GATED) -> None:
        super().__init__(reason)
        self.progress = progress
        """How many steps of the attention were recognised before the difference."""


@dataclass(frozen=True)
class Recipe:
    """How a module computes an attention: ``after(attention(before(x)))``.

    The names are paths of layers inside the module.
    """

    linear1: str
    linear2: str
    conv1: str
    conv2: str
    norm1: str | None
    norm2: str | None
    settings: Settings
    before: tuple[str, ...] = ()
    """Layers in front of the attention, each called on the result of the one before."""
    after: tuple[str, ...] = ()
    kept: dict[str, str] = field(default_factory=dict)
    """Attributes that the forward pass sets: to its "input" or "output", or to that detached."""


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of float64 are equal but for rounding; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype or a.numel() == 0:
        return a.shape == b.shape and a.dtype == b.dtype
    with torch.no_grad():
        difference, scale = (a - b).abs().max().item(), b.abs().max().item()
        if math.isfinite(difference):
            return difference <= 1e-9 * scale
        return torch.allclose(a, b, rtol=1e-9, atol=0.0, equal_nan=True)


def _maps_of(rows: Tensor, like: Tensor) -> Iterator[Tensor]:
    """The feature maps (N, C, H, W) that the input or output of a perceptron's layer may hold."""
    N, _, H, W = like.shape
    if rows.dim() > 1 and rows.numel() == N * rows.shape[-1] * H * W:
        C = rows.shape[-1]
        yield rows.reshape(N, H, W, C).permute(0, 3, 1, 2)
        yield rows.reshape(N, W, H, C).permute(0, 3, 2, 1)
        yield rows.reshape(H, W, N, C).permute(2, 3, 0, 1)
    if rows.dim() == 4 and rows.shape[0] == N and rows.shape[2:] == (H, W):
        yield rows


def _holds(rows: Tensor, x: Tensor) -> bool:
    """Whether the input of a perceptron's layer has the channels of x (N, C, H, W) at each position."""
    return any(equal(found, x) for found in _maps_of(rows, x))


def _divisors(channels: int) -> list[int]:
    likely = dict.fromkeys([1, 4, *range(2, channels + 1)])
    return [g for g in likely if channels % g == 0]


def _gated(x: Tensor, pre: Tensor, z: Tensor) -> tuple[int, bool] | None:
    """The (groups, sigmoid) of the channel gate that makes z from x, or None."""
    for sigmoid in (True, False):
        product = x * (torch.sigmoid(pre) if sigmoid else pre)
        for groups in _divisors(x.shape[1]):
            if equal(reference.channel_shuffle(product, groups), z):
                return groups, sigmoid
    return None


def _spatially_gated(z: Tensor, v: Tensor, out: Tensor) -> tuple[int, bool] | None:
    """The (gate_groups, gate_sigmoid) of the spatial gate that makes `out` from z, or None."""
    for sigmoid in (True, False):
        gate = torch.sigmoid(v) if sigmoid else v
        for groups in _divisors(z.shape[1]):
            if equal(z * reference.channel_shuffle(gate, groups), out):
                return groups, sigmoid
    return None


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "GELU": F.gelu,
    "SiLU": F.silu,
    "LeakyReLU": lambda x: F.leaky_relu(x, 0.01),
    "LeakyReLU(0.1)": lambda x: F.leaky_relu(x, 0.1),
    "Hardswish": F.hardswish,
    "ReLU6": F.relu6,
    "ELU": F.elu,
    "Mish": F.mish,
    "tanh": torch.tanh,
    "a sigmoid": torch.sigmoid,
    "no activation": lambda x: x,
}


def _require_relu(before: Tensor, after: Tensor, where: str, progress: int) -> None:
    if equal(torch.relu(before), after):
        return
    for name, function in _ACTIVATIONS.items():
        if equal(function(before), after):
            raise NotAttentionError(f"its {where} has {name} where ReLU is expected", progress)
    raise NotAttentionError(f"its {where} computes something else than ReLU between its layers", progress)


def _is_norm(layer: nn.Module) -> bool:
    return type(layer) in layers.BATCH_NORM


def _require_pointwise(call: Call, progress: int) -> None:
    _require_same_size(call, progress)
    if isinstance(call.layer, nn.Conv2d) and not layers.is_pointwise(call.layer):
        raise NotAttentionError(f"its convolution {call.name} does not read all channels", progress)


def _require_same_size(call: Call, progress: int) -> None:
    layer = call.layer
    if isinstance(layer, nn.Conv2d) and not layers.keeps_size(layer):
        raise NotAttentionError(
            f"its convolution {call.name} is not one of stride 1 and 'same' padding", progress
        )


class _Attempt:
    """The recognition of an attention whose perceptron begins with the layer of one call."""

    def __init__(self, calls: Sequence[Call], x: Tensor, out: Tensor, first: int) -> None:
        self.calls, self.x, self.out, self.first = calls, x, out, first
        self.at = first  # the call that is examined

    def _next(self, what: str, progress: int) -> Call:
        """The next call of a layer with weights."""
        for i in range(self.at, len(self.calls)):
            layer = self.calls[i].layer
            if is_linear_map(layer) or _is_norm(layer) or layer._parameters:
                self.at = i + 1
                return self.calls[i]
        raise NotAttentionError(f"it has no {what}", progress)

    def _norm_of(self, call: Call, progress: int) -> Call | None:
        """The normalisation that is called on the result of a convolution, if there is one."""
        before = self.at
        try:
            norm = self._next("normalisation", progress)
        except NotAttentionError:
            return None
        if not is_linear_map(norm.layer) and equal(norm.input, call.output):
            if not _is_norm(norm.layer):
                raise NotAttentionError(
                    f"its {norm.name} is {type(norm.layer).__name__} where BatchNorm2d is expected", progress
                )
            return norm
        self.at = before
        return None

    def _chain(self, calls: Sequence[Call], start: Tensor, end: Tensor) -> tuple[str, ...] | None:
        """The names of calls, each of which takes the result of the one before, or None."""
        value = start
        for call in calls:
            if not equal(call.input, value):
                return None
            value = call.output
        return tuple(call.name for call in calls) if equal(value, end) else None

    def recipe(self) -> Recipe:
        """The recipe, or NotAttentionError with the first difference."""
        linear1 = self._next("perceptron", 0)
        x, before = self._start(linear1)
        linear2 = self._second_linear(linear1)

        conv1 = self._next("spatial gate of two convolutions", 2)
        if layer_type(conv1.layer) is not nn.Conv2d:
            raise NotAttentionError(f"its spatial gate begins with {type(conv1.layer).__name__}", 2)
        _require_same_size(conv1, 2)
        z = conv1.input
        gate = self._channel_gate(x, linear2, z)
        norm1 = self._norm_of(conv1, 4)
        conv2 = self._next("second convolution in its spatial gate", 4)
        if layer_type(conv2.layer) is not nn.Conv2d:
            raise NotAttentionError("its spatial gate is not one of two convolutions", 4)
        _require_same_size(conv2, 4)
        _require_relu((norm1 or conv1).output, conv2.input, "spatial gate", 5)
        if conv2.output.shape != x.shape:
            raise NotAttentionError("its spatial gate has another number of channels than the map", 5)
        norm2 = self._norm_of(conv2, 5)
        spatial, after = self._spatial_gate(z, (norm2 or conv2).output)
        return Recipe(
            linear1.name,
            linear2.name,
            conv1.name,
            conv2.name,
            norm1.name if norm1 else None,
            norm2.name if norm2 else None,
            Settings(*gate, *spatial),
            before,
            after,
        )

    def _start(self, linear1: Call) -> tuple[Tensor, tuple[str, ...]]:
        """The input of the attention, and the layers in front of it."""
        kind = "linear layer" if layer_type(linear1.layer) is nn.Linear else "convolution"
        name = f"its {kind} {linear1.name}"
        if isinstance(linear1.layer, nn.Conv2d) and linear1.layer.kernel_size != (1, 1):
            raise NotAttentionError(
                f"its first layer, {linear1.name}, is not a perceptron over the channels", 0
            )
        _require_pointwise(linear1, 0)
        maps = [self.x, *(call.output for call in self.calls[: self.first])]
        # A map of a single position may be one that was pooled.
        for i, x in reversed(list(enumerate(maps))):
            if x.dim() != 4 or x[0, 0].numel() == 1 or not _holds(linear1.input, x):
                continue
            before = self._chain(self.calls[:i], self.x, x)
            if before is None:
                raise NotAttentionError("the layers in front of the attention do not follow each other", 1)
            if x.shape[2:] != self.x.shape[2:]:
                raise NotAttentionError("the layers in front of the attention change the size of the map", 1)
            return x, before
        for x in (value for value in maps if value.dim() == 4):
            if linear1.input.numel() == x[:, :, 0, 0].numel():
                raise NotAttentionError(
                    f"its channel gate is pooled: {name} sees one value per channel, not every position", 1
                )
            for v in maps:
                if v.shape == x.shape and any(_holds(linear1.input, x * s) for s in (v, torch.sigmoid(v))):
                    raise NotAttentionError(
                        "its gates are in the other order: the spatial gate comes first", 1
                    )
        raise NotAttentionError(f"{name} does not see the channels of each position", 0)

    def _second_linear(self, linear1: Call) -> Call:
        linear2 = self._next("second layer of a perceptron over the channels", 1)
        if not is_linear_map(linear2.layer):
            raise NotAttentionError("its channel gate is not a perceptron of two layers", 1)
        if equal(linear2.input, linear1.input):
            raise NotAttentionError(
                f"its layers {linear1.name} and {linear2.name} read the same map, as those of queries and "
                "keys do",
                1,
            )
        _require_relu(linear1.output, linear2.input, "channel gate", 2)
        _require_pointwise(linear2, 2)
        return linear2

    def _channel_gate(self, x: Tensor, linear2: Call, z: Tensor) -> tuple[int, bool]:
        """The (groups, sigmoid) of the channel gate that makes z from x."""
        for pre in _maps_of(linear2.output, x) if z.shape == x.shape else ():
            gate = _gated(x, pre, z) if pre.shape == x.shape else None
            if gate is not None:
                return gate
        if equal(z, x):
            raise NotAttentionError(
                "its branches are parallel: the spatial gate reads the input, not the gated map", 3
            )
        raise NotAttentionError(
            "its spatial gate does not read x * sigmoid(perceptron(x)) or x * perceptron(x) (tried with "
            "every number of shuffle groups)",
            3,
        )

    def _spatial_gate(self, z: Tensor, v: Tensor) -> tuple[tuple[int, bool], tuple[str, ...]]:
        """The (gate_groups, gate_sigmoid) of the spatial gate, and the layers behind it."""
        # The result of the attention is that of the module, or the input of the first layer behind it.
        rest = self.calls[self.at :]
        for start in range(len(rest) + 1):
            result = rest[start].input if start < len(rest) else self.out
            spatial = _spatially_gated(z, v, result) if result.shape == z.shape else None
            after = None if spatial is None else self._chain(rest[start:], result, self.out)
            if spatial is not None and after is not None:
                return spatial, after
        for name, added in (("its input", self.x), ("the gated map", z)):
            if self.out.shape == z.shape == added.shape and _spatially_gated(z, v, self.out - added):
                raise NotAttentionError(f"it adds {name} to the result of the attention", 6)
        if self.out.shape != z.shape:
            raise NotAttentionError(
                f"its result has the shape {tuple(self.out.shape)}, the gated map {tuple(z.shape)}", 6
            )
        raise NotAttentionError(
            "it computes something else from its gated map and its spatial gate than their product", 6
        )


class _Casts(TorchFunctionMode):
    """The dtypes that feature maps are converted to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[torch.dtype] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = args[0] if args else None
        if isinstance(out, Tensor) and isinstance(given, Tensor) and out.dim() > 1:
            floating = out.is_floating_point() and given.is_floating_point()
            if floating and out.dtype != given.dtype:
                self.found.append(out.dtype)
        return out

    def require_none(self, dtype: torch.dtype) -> None:
        """Raise NotAttentionError if there are conversions to another dtype than this."""
        for other in self.found:
            if other != dtype:
                raise NotAttentionError(f"it converts its map to {other}, whatever the dtype of its input is")


def recognise(copied: nn.Module, x: Tensor) -> Recipe:
    """How a random copy computes an attention of x (N, C, H, W).

    Raises:
        NotAttentionError: it computes something else.
        Exception: any that its forward pass raises.
    """
    casts = _Casts()
    try:
        with torch.no_grad(), casts:
            out, calls = record(copied, x.clone())
    except Exception:
        casts.require_none(x.dtype)
        raise
    if not isinstance(out, Tensor):
        raise NotAttentionError(f"its result is {type(out).__name__}, not a tensor")
    starts = [i for i, call in enumerate(calls) if is_linear_map(call.layer)]
    if not starts:
        raise NotAttentionError("it has no perceptron over the channels of each position", 0)
    differences = []
    for first in starts:
        try:
            return _Attempt(calls, x, out, first).recipe()
        except NotAttentionError as difference:
            differences.append(difference)
    casts.require_none(x.dtype)
    raise max(differences, key=lambda difference: difference.progress)
