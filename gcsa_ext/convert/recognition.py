"""What a module computes with its layers, found out from the calls of one forward pass on random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcsa_ext import reference
from gcsa_ext.convert.copies import Call, is_linear_map, layer_type, record
from gcsa_ext.nn import layers
from gcsa_ext.nn.attention import Settings


GATED = 2
"""The progress of a recognition (`NotAttentionError.progress`) from which on a module resembles an attention."""


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


def _maps_of(rows: Tensor, like: Tensor) -> Iterable[tuple[str, Tensor]]:
    """The feature maps (N, C, H, W) that the input or output of a perceptron's layer may hold."""
    N, _, H, W = like.shape
    C = rows.shape[-1]
    if rows.numel() == N * C * H * W:
        yield "rows", rows.reshape(N, H, W, C).permute(0, 3, 1, 2)
        yield "columns", rows.reshape(N, W, H, C).permute(0, 3, 2, 1)
    if rows.dim() == 4 and rows.shape[0] == N and rows.shape[2:] == (H, W):
        yield "map", rows


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


def _require_same_convolution(call: Call, progress: int) -> None:
    conv = cast("nn.Conv2d", call.layer)
    if not layers.keeps_size(conv):
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
            if is_linear_map(layer) or _is_norm(layer) or (layer._parameters and not layer._modules):
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
        if (
            not is_linear_map(norm.layer)
            and norm.input.shape == call.output.shape
            and equal(norm.input, call.output)
        ):
            if not _is_norm(norm.layer):
                raise NotAttentionError(
                    f"its {norm.name} is {type(norm.layer).__name__} where BatchNorm2d is expected", progress
                )
            return norm
        self.at = before
        return None

    def _chain(self, calls: Sequence[Call], start: Tensor, end: Tensor) -> tuple[str, ...] | None:
        """The names of calls each of which takes the result of the one before, from `start` to `end`, or None."""
        value = start
        for call in calls:
            if not equal(call.input, value):
                return None
            value = call.output
        return tuple(call.name for call in calls) if equal(value, end) else None

    def recipe(self) -> Recipe:
        """The recipe, or NotAttentionError with the first difference."""
        x = self.calls[self.first - 1].output if self.first else self.x
        linear1 = self._next("perceptron", 0)
        kinds = {nn.Linear: "linear layer", nn.Conv2d: "convolution"}
        name1 = kinds[layer_type(linear1.layer)]  # type: ignore[index]
        if x.dim() != 4:
            raise NotAttentionError("its layers are not called on a map (N, C, H, W)", 0)
        if linear1.input.numel() != x.numel():
            N, C = x.shape[:2]
            if linear1.input.numel() == N * C:
                raise NotAttentionError(
                    f"its channel gate is pooled: the {name1} {linear1.name} sees one value per channel, not "
                    "every position",
                    1,
                )
            raise NotAttentionError(f"its {name1} {linear1.name} does not see the whole map", 0)
        arrangement = next((how for how, rows in _maps_of(linear1.input, x) if equal(rows, x)), None)
        if arrangement is None:
            raise NotAttentionError(
                f"its {name1} {linear1.name} does not see the channels of each position", 0
            )
        if isinstance(linear1.layer, nn.Conv2d) and linear1.layer.kernel_size != (1, 1):
            raise NotAttentionError(
                f"its first layer, {linear1.name}, is not a perceptron over the channels", 0
            )
        linear2 = self._next("second layer of a perceptron over the channels", 1)
        if not is_linear_map(linear2.layer) or linear2.output.numel() != x.numel():
            raise NotAttentionError("its channel gate is not a perceptron of two layers", 1)
        _require_relu(linear1.output, linear2.input, "channel gate", 2)
        pre = dict(_maps_of(linear2.output, x))[arrangement]

        conv1 = self._next("spatial gate of two convolutions", 2)
        if layer_type(conv1.layer) is not nn.Conv2d:
            raise NotAttentionError(f"its spatial gate begins with {type(conv1.layer).__name__}", 2)
        _require_same_convolution(conv1, 2)
        gate = _gated(x, pre, conv1.input) if conv1.input.shape == x.shape else None
        if gate is None:
            if conv1.input.shape == x.shape and equal(conv1.input, x):
                raise NotAttentionError(
                    "its branches are parallel: the spatial gate reads the input, not the gated map", 3
                )
            raise NotAttentionError(
                "its spatial gate does not read x * sigmoid(perceptron(x)) or x * perceptron(x) (tried with "
                "every number of shuffle groups)",
                3,
            )
        norm1 = self._norm_of(conv1, 4)
        conv2 = self._next("second convolution in its spatial gate", 4)
        if layer_type(conv2.layer) is not nn.Conv2d:
            raise NotAttentionError("its spatial gate is not one of two convolutions", 4)
        _require_same_convolution(conv2, 4)
        _require_relu((norm1 or conv1).output, conv2.input, "spatial gate", 5)
        if conv2.output.shape != x.shape:
            raise NotAttentionError("its spatial gate has another number of channels than the map", 5)
        norm2 = self._norm_of(conv2, 5)
        v, z = (norm2 or conv2).output, conv1.input

        before = self._chain(self.calls[: self.first], self.x, x)
        if before is None:
            raise NotAttentionError("the layers in front of the attention do not follow each other", 6)
        # Behind the attention: nothing, or calls that begin with its result.
        rest = [call for call in self.calls[self.at :] if not equal(call.output, torch.sigmoid(v))]
        for start in range(len(rest) + 1):
            result = rest[start].input if start < len(rest) else self.out
            spatial = _spatially_gated(z, v, result) if result.shape == z.shape else None
            if spatial is None:
                continue
            after = self._chain(rest[start:], result, self.out)
            if after is not None:
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
        for name, added in (("its input", self.x), ("the gated map", z)):
            if self.out.shape == added.shape and _spatially_gated(z, v, self.out - added):
                raise NotAttentionError(f"it adds {name} to the result of the attention", 6)
        raise NotAttentionError(
            "it computes something else from its gated map and its spatial gate than their product", 6
        )


def recognise(copied: nn.Module, x: Tensor) -> Recipe:
    """How a random copy computes an attention of x (N, C, H, W).

    Raises:
        NotAttentionError: it computes something else.
        Exception: any that its forward pass raises.
    """
    with torch.no_grad():
        out, calls = record(copied, x.clone())
    if not isinstance(out, Tensor):
        raise NotAttentionError(f"its result is {type(out).__name__}, not a tensor")
    for value in (out, *(call.input for call in calls)):
        if value.dtype != x.dtype:
            raise NotAttentionError(
                f"it converts its map to {value.dtype}, whatever the dtype of its input is"
            )
    starts = [i for i, call in enumerate(calls) if is_linear_map(call.layer)]
    if not starts:
        raise NotAttentionError("it has no perceptron over the channels of each position", 0)
    differences = []
    for first in starts:
        try:
            return _Attempt(calls, x, out, first).recipe()
        except NotAttentionError as difference:
            differences.append(difference)
    raise max(differences, key=lambda difference: difference.progress)
