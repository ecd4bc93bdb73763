"""MCNN: a multi-branch convolutional network for spectrograms, with GCSA at the end of each stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcsa_ext.nn.attention import GCSA
from gcsa_ext.nn.rhcnn import HybridBlock, check_stages


class MCNN(nn.Module):
    """Multi-branch CNN: spectrograms of any length to feature vectors.

    Three parallel convolutions read the spectrogram: along time (1 x 9), along frequency (9 x 1) and locally
    (3 x 3). Their outputs are concatenated and pass through residual stages, each of which halves the map and
    ends in a GCSA. The last map is pooled to its mean and standard deviation over all valid positions.

    In evaluation the amount of padding does not change the result. Padded columns are set to 0 in front of
    every convolution, which so reads what it would read beyond the edge of the unpadded spectrogram. Inside
    GCSA the first convolution writes into the padding and the second one reads it. Three more columns of
    zeros (half the kernel) behind the input of GCSA make the columns that are read the same for every amount
    of padding. In training the statistics of batch norm include the padding.

    The name and the role (audio branch) are those of arXiv 2503.11935; the layers are this project's choice.

    Args:
        in_channels: channels of the spectrogram.
        branch_width: output channels of each of the three branches.
        widths: channels of each stage, each divisible by `groups` and at least `reduction`, as GCSA requires.
        depths: residual blocks of each stage.
        branch_size: length of the time and of the frequency kernel, odd.
        reduction: GCSA's reduction of channels.
        groups: GCSA's shuffle groups.
        kernel_size: GCSA's spatial kernel, odd.

    Attributes:
        out_features: length of the feature vector, ``2 * widths[-1]``.

    Shape:
        (B, in_channels, F, L) floating point, any F, L >= 1 -> (B, out_features).

    Raises:
        ValueError: the sizes do not fit each other, an input has another rank or number of channels, or a
            mask does not fit.
    """

    def __init__(
        self,
        in_channels: int = 1,
        branch_width: int = 32,
        widths: Sequence[int] = (64, 128, 256),
        depths: Sequence[int] = (2, 2, 2),
        branch_size: int = 9,
        reduction: int = 4,
        groups: int = 4,
        kernel_size: int = 7,
    ) -> None:
        super().__init__()
        check_stages("MCNN", widths, depths)
        if branch_size < 1 or branch_size % 2 == 0:
            raise ValueError(f"MCNN's branch_size must be odd and positive, got {branch_size}")
        self.in_channels = in_channels
        self.out_features = 2 * widths[-1]
        self.attention_margin = kernel_size // 2
        half = branch_size // 2
        self.time_branch = nn.Conv2d(
            in_channels, branch_width, (1, branch_size), stride=2, padding=(0, half), bias=False
        )
        self.frequency_branch = nn.Conv2d(
            in_channels, branch_width, (branch_size, 1), stride=2, padding=(half, 0), bias=False
        )
        self.local_branch = nn.Conv2d(in_channels, branch_width, 3, stride=2, padding=1, bias=False)
        self.branch_norm = nn.BatchNorm2d(3 * branch_width)
        self.blocks = nn.ModuleList()
        self.attentions = nn.ModuleList()
        previous = 3 * branch_width
        for width, depth in zip(widths, depths, strict=True):
            self.blocks.append(
                nn.ModuleList(
                    HybridBlock(previous if position == 0 else width, width, stride=2 if position == 0 else 1)
                    for position in range(depth)
                )
            )
            self.attentions.append(GCSA(width, reduction=reduction, groups=groups, kernel_size=kernel_size))
            previous = width

    def forward(self, spectrogram: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map spectrograms to features.

        Args:
            spectrogram: (B, in_channels, F, L), floating point.
            mask: (B, L) bool, True for columns of sound, which come first, False for the padding. None: all
                columns are sound.

        Returns:
            (B, out_features); 0 for a spectrogram whose mask is False everywhere.
        """
        if spectrogram.dim() != 4 or spectrogram.shape[1] != self.in_channels:
            raise ValueError(
                f"MCNN expects a spectrogram of shape (B, {self.in_channels}, F, L), "
                f"got {tuple(spectrogram.shape)}"
            )
        batch, _, _, length = spectrogram.shape
        if mask is None:
            mask = spectrogram.new_ones((batch, length), dtype=torch.bool)
        elif mask.shape != (batch, length) or mask.dtype != torch.bool:
            raise ValueError(
                f"MCNN expects a bool mask of shape {(batch, length)} for a spectrogram of shape "
                f"{tuple(spectrogram.shape)}, got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        padding = ~mask[:, None, None, :]  # (B, 1, 1, L)

        x = spectrogram.masked_fill(padding, 0.0)
        padding = padding[..., ::2]
        x = torch.cat([self.time_branch(x), self.frequency_branch(x), self.local_branch(x)], dim=1)
        x = torch.relu(self.branch_norm(x)).masked_fill(padding, 0.0)
        for blocks, attention in zip(self.blocks, self.attentions, strict=True):
            padding = padding[..., ::2]  # the first block of a stage has stride 2
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                x = block(x, padding)
            gated = attention(F.pad(x, (0, self.attention_margin)))[..., : x.shape[-1]]
            x = gated.masked_fill(padding, 0.0)
        return self._pool(x, padding)

    @staticmethod
    def _pool(x: Tensor, padding: Tensor) -> Tensor:
        """Mean and standard deviation of (B, C, F, L) over frequency and the valid time -> (B, 2 C)."""
        positions = ((~padding).sum(dim=(2, 3)) * x.shape[2]).clamp(min=1)  # (B, 1)
        mean = x.sum(dim=(2, 3)) / positions
        deviation = (x - mean[:, :, None, None]).masked_fill(padding, 0.0)
        variance = deviation.square().sum(dim=(2, 3)) / positions
        # The slope of a square root at 0 is infinite. The offset bounds it, and subtracting the offset's root
        # maps 0 to 0.
        offset = 1e-4
        return torch.cat([mean, (variance + offset).sqrt() - offset**0.5], dim=1)
