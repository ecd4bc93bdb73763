"""Global channel-spatial attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gcsa_ext import reference


class GCSA(nn.Module):
    """Global channel-spatial attention. (First draft; the fused operators come in underneath.)"""

    def __init__(self, channels: int, reduction: int = 4, groups: int = 4, kernel_size: int = 7) -> None:
        super().__init__()
        hidden = channels // reduction
        if hidden < 1 or channels % groups or kernel_size % 2 == 0:
            raise ValueError(f"bad GCSA sizes {channels=} {reduction=} {groups=} {kernel_size=}")
        self.groups = groups
        pad = kernel_size // 2
        self.channel_attention = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
        )
        self.spatial_attention = nn.Sequential(
            nn.Conv2d(channels, hidden, kernel_size, padding=pad),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, kernel_size, padding=pad),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        first, _, second = self.channel_attention
        z = reference.channel_gate(x, first.weight, first.bias, second.weight, second.bias, self.groups)
        return z * torch.sigmoid(self.spatial_attention(z))
