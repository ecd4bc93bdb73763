"""GCSA and GAM as public repositories have them: plain modules, independent of gcsa_ext."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PlainAttention(nn.Module):
    """Channel gate, shuffle and spatial gate as in the public modules; GAM has groups=1."""

    def __init__(
        self,
        channels: int,
        reduction: int = 4,
        groups: int = 4,
        kernel_size: int = 7,
        channel_sigmoid: bool = True,
    ) -> None:
        super().__init__()
        hidden = channels // reduction
        self.shuffle_groups = groups
        self.squash = channel_sigmoid
        self.channel_attention = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
        )
        self.spatial_attention = nn.Sequential(
            nn.Conv2d(channels, hidden, kernel_size, padding="same"),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, kernel_size, padding="same"),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, rows, columns = x.shape
        rows_of_channels = x.permute(0, 2, 3, 1).reshape(b, -1, c)
        attention = self.channel_attention(rows_of_channels).reshape(b, rows, columns, c).permute(0, 3, 1, 2)
        x = x * (attention.sigmoid() if self.squash else attention)
        g = self.shuffle_groups
        x = x.reshape(b, g, c // g, rows, columns).transpose(1, 2).reshape(b, c, rows, columns)
        return x * torch.sigmoid(self.spatial_attention(x))


class GroupedAttention(nn.Module):
    """GAM with grouped convolutions and a channel-shuffled spatial gate; the channel gate has no sigmoid."""

    def __init__(self, channels: int, rate: int = 4) -> None:
        super().__init__()
        hidden = channels // rate
        self.rate = rate
        self.channel = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(channels, hidden, 7, padding=3, groups=rate),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 7, padding=3, groups=rate),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        gated = x * self.channel(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        gate = torch.sigmoid(self.spatial(gated)).view(b, self.rate, c // self.rate, h, w)
        return gated * gate.transpose(1, 2).reshape(b, c, h, w)


class WithResidual(PlainAttention):
    """The same layers, another result."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class WithDropout(PlainAttention):
    """The same result in evaluation, another one in training."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


def randomize_statistics(module: nn.Module) -> None:
    """Make norms differ from the identity, so that a norm that is left out changes the result."""
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            if norm.weight is not None:
                nn.init.normal_(norm.weight, 1.0, 0.4)
                nn.init.normal_(norm.bias, 0.2, 0.4)
            if norm.running_mean is not None:
                norm.running_mean.normal_(0.1, 0.3)
                norm.running_var.uniform_(0.3, 2.0)
