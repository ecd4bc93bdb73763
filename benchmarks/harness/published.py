"""The cases of attention modules as published sources have them, swapped by gcsa_ext.replace_attention."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from harness.case import BACKWARD_TOLERANCE, FORWARD_TOLERANCE, Case, passes
from harness.operators import randn
from torch import Tensor, nn

from gcsa_ext import replace_attention
from gcsa_ext.reference import channel_shuffle


class Published(nn.Module):
    """A channel gate and a spatial gate of two convolutions.

    Args:
        channels: C, with C / 4 hidden channels.
        groups: of both convolutions, and of the channel shuffle of the spatial gate.
        padding_mode: of both convolutions.
        first_kernel_size: of the first convolution; the second has 7.
        bias: of the perceptron's layers.
        behind: a further 1x1 convolution behind the attention.
    """

    def __init__(
        self,
        channels: int,
        groups: int = 1,
        padding_mode: str = "zeros",
        first_kernel_size: int = 7,
        bias: bool = True,
        behind: bool = False,
    ) -> None:
        super().__init__()
        hidden = channels // 4
        convolution = functools.partial(nn.Conv2d, padding="same", groups=groups, padding_mode=padding_mode)
        self.groups = groups
        self.perceptron = nn.Sequential(
            nn.Linear(channels, hidden, bias), nn.ReLU(inplace=True), nn.Linear(hidden, channels, bias)
        )
        self.spatial = nn.Sequential(
            convolution(channels, hidden, first_kernel_size),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            convolution(hidden, channels, 7),
            nn.BatchNorm2d(channels),
        )
        self.behind = nn.Conv2d(channels, channels, 1) if behind else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) to the gated map, of the same shape."""
        N, C, H, W = x.shape
        gate = (
            self.perceptron(x.permute(0, 2, 3, 1).reshape(N, -1, C)).reshape(N, H, W, C).permute(0, 3, 1, 2)
        )
        x = x * gate.sigmoid()
        spatial = self.spatial(x).sigmoid()
        if self.groups > 1:
            spatial = channel_shuffle(spatial, self.groups)
        return self.behind(x * spatial)


VARIANTS: dict[str, Callable[[int], Published]] = {
    "plain": Published,
    "grouped, shuffled gate": functools.partial(Published, groups=4),
    "replicate padding": functools.partial(Published, padding_mode="replicate"),
    "first convolution 1x1, no biases": functools.partial(Published, first_kernel_size=1, bias=False),
    "further convolution behind": functools.partial(Published, behind=True),
}


def published_case(variant: str, shape: Sequence[int], training: bool) -> Case:
    """A variant on a map of `shape` (N, C, H, W), fused where it stands."""
    N, C, H, W = shape

    def make(is_plain: bool) -> Any:
        module = VARIANTS[variant](C).train(training)
        if not is_plain:
            fused = replace_attention(module)
            assert fused == 1, f"replace_attention fused {fused} modules"
        return module, (randn(shape),), randn(shape)

    module = VARIANTS[variant](C)
    products = sum(p.numel() for p in module.parameters() if p.dim() > 1)
    return Case(
        f"published {variant} {'train' if training else 'eval'} {passes(training)}",
        shape,
        make,
        training,
        torch.float32,
        operator="gcsa",
        flops=(3 if training else 1) * 2 * N * H * W * products,
        bytes=(5 if training else 2) * 4 * math.prod(shape),
        tolerance=BACKWARD_TOLERANCE if training else FORWARD_TOLERANCE,
    )
