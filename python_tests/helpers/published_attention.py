"""GCSA and GAM in every form that public sources give them, written for the tests: plain modules.

Each class is one arrangement of layers, and its options are the differences between sources. `VARIANTS` has a
factory for every form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the groups of channels."""
    b, c, h, w = x.shape
    x = x.view(b, groups, c // groups, h, w)
    return x.transpose(1, 2).contiguous().view(b, -1, h, w)


def gate_by_permute(x: Tensor, perceptron: nn.Module) -> Tensor:
    """(N, H, W, C)."""
    return perceptron(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def gate_by_view(x: Tensor, perceptron: nn.Module) -> Tensor:
    """(N, HW, C), by permute and view."""
    b, c, h, w = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(b, -1, c)
    return perceptron(rows).view(b, h, w, c).permute(0, 3, 1, 2)


def gate_by_flatten(x: Tensor, perceptron: nn.Module) -> Tensor:
    """(N, HW, C), by flatten and transpose."""
    return perceptron(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


def gate_of_rows(x: Tensor, perceptron: nn.Module) -> Tensor:
    """(NHW, C), as einops.rearrange(x, "n c h w -> (n h w) c") gives it."""
    b, c, h, w = x.shape
    rows = x.permute((0, 2, 3, 1)).reshape(b * h * w, c)
    return perceptron(rows).reshape(b, h, w, c).permute((0, 3, 1, 2))


def gate_of_columns(x: Tensor, perceptron: nn.Module) -> Tensor:
    """(N, WH, C): the columns of the map one after the other."""
    b, c, h, w = x.shape
    columns = x.transpose(1, 3).reshape(b, w * h, c)
    return perceptron(columns).reshape(b, w, h, c).transpose(1, 3)


def gate_of_positions(x: Tensor, perceptron: nn.Module) -> Tensor:
    """(HW, N, C), as for nn.MultiheadAttention."""
    return perceptron(x.flatten(2).permute(2, 0, 1)).permute(1, 2, 0).reshape(x.shape)


def gate_of_map(x: Tensor, perceptron: nn.Module) -> Tensor:
    """(N, C, H, W), for 1x1 convolutions."""
    return perceptron(x)


GATES = [
    gate_by_permute,
    gate_by_view,
    gate_by_flatten,
    gate_of_rows,
    gate_of_columns,
    gate_of_positions,
]


class TwoSequentials(nn.Module):
    """The usual arrangement: a Sequential for each gate."""

    def __init__(
        self,
        c: int,
        rate: int = 4,
        *,
        kernel: int = 7,
        first_kernel: int | None = None,
        conv_groups: int = 1,
        bias: bool = True,
        linear_bias: bool = True,
        padding_mode: str = "zeros",
        between: int = 1,
        on_gate: int = 1,
        sigmoid: bool = True,
        layers: str = "",
        gate: Callable[[Tensor, nn.Module], Tensor] = gate_by_view,
        pointwise: bool = False,
        names: tuple[str, str] = ("channel_attention", "spatial_attention"),
    ) -> None:
        super().__init__()
        h = max(1, c // rate)
        self.between, self.on_gate, self.sigmoid = between, on_gate, sigmoid and layers != "sigmoid"
        self.squash_last = layers != "sigmoid"
        self.gate, self.names = gate, names

        def linear(inputs: int, outputs: int) -> nn.Module:
            if pointwise:
                return nn.Conv2d(inputs, outputs, 1, bias=linear_bias)
            return nn.Linear(inputs, outputs, bias=linear_bias)

        def conv(inputs: int, outputs: int, size: int) -> nn.Module:
            return nn.Conv2d(
                inputs,
                outputs,
                size,
                padding=size // 2,
                groups=conv_groups,
                bias=bias,
                padding_mode=padding_mode,
            )

        channel = [linear(c, h), nn.ReLU(inplace=True), linear(h, c)]
        spatial = [
            conv(c, h, first_kernel or kernel),
            nn.BatchNorm2d(h),
            nn.ReLU(inplace=True),
            conv(h, c, kernel),
            nn.BatchNorm2d(c),
        ]
        if layers == "identity":
            channel.insert(2, nn.Identity())
            channel.append(nn.Identity())
            spatial.append(nn.Identity())
        if layers == "sigmoid":
            if sigmoid:
                channel.append(nn.Sigmoid())
            spatial.append(nn.Sigmoid())
        setattr(self, names[0], nn.Sequential(*channel))
        setattr(self, names[1], nn.Sequential(*spatial))

    def forward(self, x: Tensor) -> Tensor:
        pre = self.gate(x, getattr(self, self.names[0]))
        x = x * (pre.sigmoid() if self.sigmoid else pre)
        if self.between > 1:
            x = shuffle(x, self.between)
        gate = getattr(self, self.names[1])(x)
        gate = torch.sigmoid(gate) if self.squash_last else gate
        return x * (shuffle(gate, self.on_gate) if self.on_gate > 1 else gate)


class Grouped(nn.Module):
    """With both convolutions grouped by the rate, and the spatial gate shuffled before the product."""

    def __init__(self, c1: int, c2: int, group: bool = True, rate: int = 4) -> None:
        super().__init__()
        hidden = c1 // rate
        groups = rate if group else 1
        self.channel_attention = nn.Sequential(
            nn.Linear(c1, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, c1)
        )
        self.spatial_attention = nn.Sequential(
            nn.Conv2d(c1, hidden, kernel_size=7, padding=3, groups=groups),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, c2, kernel_size=7, padding=3, groups=groups),
            nn.BatchNorm2d(c2),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        rows = x.permute(0, 2, 3, 1).view(b, -1, c) if x.is_contiguous() else x.flatten(2).transpose(1, 2)
        gate = self.channel_attention(rows).view(b, h, w, c).permute(0, 3, 1, 2)
        x = x * gate
        spatial = shuffle(self.spatial_attention(x).sigmoid(), 4)
        return x * spatial


class Attributes(nn.Module):
    """Every layer an attribute of its own, and edges replicated."""

    def __init__(self, in_channels: int, out_channels: int, rate: int = 4) -> None:
        super().__init__()
        inner = in_channels // rate
        self.linear1 = nn.Linear(in_channels, inner)
        self.relu = nn.ReLU(inplace=True)
        self.linear2 = nn.Linear(inner, in_channels)
        self.conv1 = nn.Conv2d(in_channels, inner, 7, padding=3, padding_mode="replicate")
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, out_channels, 7, padding=3, padding_mode="replicate")
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4, "a map"
        print("input", x.shape)
        rows = x.permute(0, 2, 3, 1)
        gate = self.linear2(self.relu(self.linear1(rows))).permute(0, 3, 1, 2)
        gated = x * self.sigmoid(gate)
        hidden = self.relu(self.norm1(self.conv1(gated)))
        spatial = self.sigmoid(self.norm2(self.conv2(hidden)))
        assert spatial.shape == gated.shape
        print("gates", gate.shape, spatial.shape)
        return gated * spatial


class _ChannelGate(nn.Module):
    def __init__(self, c: int, h: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(c, h), nn.Linear(h, c)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.size()
        y = x.view(b, c, -1).permute(0, 2, 1)
        y = self.fc2(F.relu(self.fc1(y)))
        return x * F.sigmoid(y).permute(0, 2, 1).reshape(b, c, h, w)


class ConvNorm(nn.Module):
    """A convolution and its normalisation."""

    def __init__(self, inputs: int, outputs: int, size: int, relu: bool, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, 1, size // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class _SpatialGate(nn.Module):
    def __init__(self, c: int, h: int, groups: int) -> None:
        super().__init__()
        self.reduce, self.expand = (
            ConvNorm(c, h, 7, True, groups),
            ConvNorm(h, c, 7, False, groups),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.mul(x, torch.sigmoid(self.expand(self.reduce(x))))


class TwoModules(nn.Module):
    """A module for each gate, called one after the other; convolution and normalisation are nested."""

    def __init__(self, c: int, rate: int = 4, groups: int = 1) -> None:
        super().__init__()
        self.channel, self.spatial = _ChannelGate(c, c // rate), _SpatialGate(c, c // rate, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.spatial(self.channel(x))


class Around(nn.Module):
    """A further 1x1 convolution before or behind the attention."""

    def __init__(self, c1: int, c2: int, behind: bool, norm: bool = False) -> None:
        super().__init__()
        inner = c1 if behind else c2
        self.linears = nn.Sequential(
            nn.Linear(inner, inner // 4), nn.ReLU(inplace=True), nn.Linear(inner // 4, inner)
        )
        self.convs = nn.Sequential(
            nn.Conv2d(inner, inner // 4, 7, padding=3),
            nn.BatchNorm2d(inner // 4),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner // 4, inner, 7, padding=3),
            nn.BatchNorm2d(inner),
        )
        self.project = nn.Conv2d(c1, c2, 1)
        self.norm = nn.BatchNorm2d(c2) if norm else None
        self.behind = behind

    def _projected(self, x: Tensor) -> Tensor:
        x = self.project(x)
        return x if self.norm is None else self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        if not self.behind:
            x = self._projected(x)
        x = x * gate_by_flatten(x, self.linears).sigmoid()
        x = x * self.convs(x).sigmoid()
        return self._projected(x) if self.behind else x


class InContainers(nn.Module):
    """The layers in a ModuleList and a ModuleDict, called in a loop."""

    def __init__(self, c: int, rate: int = 4) -> None:
        super().__init__()
        h = c // rate
        self.fc = nn.ModuleList([nn.Linear(c, h), nn.Linear(h, c)])
        self.conv = nn.ModuleDict(
            {
                "down": nn.ModuleList([nn.Conv2d(c, h, 5, padding="same"), nn.BatchNorm2d(h)]),
                "up": nn.ModuleList([nn.Conv2d(h, c, 5, padding="same"), nn.BatchNorm2d(c)]),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = x.movedim(1, -1)
        for i, layer in enumerate(self.fc):
            rows = layer(rows) if i == 0 else layer(rows.clamp(min=0))
        x = x * rows.movedim(-1, 1).sigmoid()
        gate = x
        for name, layers in self.conv.items():
            for layer in layers:
                gate = layer(gate)
            if name == "down":
                gate = gate.relu()
        return gate.sigmoid().mul(x)


class AllInOneSequential(nn.Module):
    """Every layer in one Sequential, used by number."""

    def __init__(self, c: int) -> None:
        super().__init__()
        h = c // 4
        self.layers = nn.Sequential(
            nn.Linear(c, h),
            nn.Linear(h, c),
            nn.Conv2d(c, h, 7, padding=3),
            nn.BatchNorm2d(h),
            nn.Conv2d(h, c, 7, padding=3),
            nn.BatchNorm2d(c),
        )

    def forward(self, x: Tensor) -> Tensor:
        fc1, fc2, conv1, norm1, conv2, norm2 = self.layers
        x = x * gate_by_permute(x, lambda rows: fc2(fc1(rows).relu()))
        return x * norm2(conv2(norm1(conv1(x)).relu())).sigmoid()


def _two(c: int, **options: Any) -> Callable[[], nn.Module]:
    return lambda: TwoSequentials(c, **options)


VARIANTS: dict[str, Callable[[], nn.Module]] = {
    "GAM without sigmoid in the channel gate": _two(16, sigmoid=False),
    "GAM with sigmoid": _two(16),
    "convolutions without bias": _two(16, bias=False),
    "max(1, c // r)": _two(6, rate=8),
    "identity layers": _two(16, layers="identity"),
    "sigmoid as a layer": _two(16, layers="sigmoid"),
    "no sigmoid, then a sigmoid layer": _two(16, layers="sigmoid", sigmoid=False),
    "GCSA": _two(16, between=4),
    "GCSA of two groups": _two(12, between=2, sigmoid=False),
    "grouped": lambda: Grouped(32, 32),
    "grouped, another rate": lambda: Grouped(24, 24, rate=2),
    "gate shuffled, not grouped": lambda: Grouped(16, 16, group=False),
    "attributes, replicate padding": lambda: Attributes(16, 16),
    "other names, sigmoid last, replicate padding": _two(
        16, padding_mode="replicate", layers="sigmoid", names=("channel_attn", "spatial_attn")
    ),
    "two modules": lambda: TwoModules(16),
    "two modules, grouped": lambda: TwoModules(32, groups=4),
    "reflect padding": _two(16, padding_mode="reflect"),
    "linear layers without bias": _two(16, linear_bias=False),
    "first convolution 1x1": _two(16, first_kernel=1),
    "1x1 convolution behind": lambda: Around(16, 24, True),
    "1x1 convolution in front": lambda: Around(12, 16, False),
    "1x1 convolution and normalisation behind": lambda: Around(16, 16, True, norm=True),
    "perceptron of 1x1 convolutions": _two(16, pointwise=True, gate=gate_of_map),
    "shuffled at both places, grouped": _two(32, between=4, on_gate=2, conv_groups=2),
    "kernels of 5": _two(16, kernel=5, between=8),
    "kernels of 3": _two(16, kernel=3),
    "kernels of 3, grouped, gate shuffled": _two(32, kernel=3, conv_groups=4, on_gate=4),
    "groups of one channel": _two(4, between=4, on_gate=4),
    "in containers": lambda: InContainers(16),
    "one Sequential": lambda: AllInOneSequential(16),
    **{gate.__name__.replace("_", " "): _two(16, gate=gate) for gate in GATES},
}
"""Every form of the attention; new objects with random weights."""

BY_LAYERS = ("reflect padding", "kernels of 3", "kernels of 3, grouped, gate shuffled")
"""The forms whose convolutions torch computes, with fused gates around them."""
