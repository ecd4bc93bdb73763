"""RHCNN: a residual hybrid convolutional network for images, with GCSA at the end of each stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gcsa_ext.nn.attention import GCSA


class HybridBlock(nn.Module):
    """A residual block of one plain and one dilated 3x3 convolution.

    ``relu(bn(dilated(relu(bn(plain(x))))) + shortcut(x))``; the plain convolution carries the stride. The
    shortcut is the identity, or a strided 1x1 convolution with batch norm where the shape changes.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the block, in both directions.
        dilation: rate of the second convolution; 1 makes the block an ordinary residual block.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.plain = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )
        self.dilated = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Apply the block.

        Args:
            x: (B, in_channels, H, W).
            padding: bool, broadcastable to the output; True where the output is padding and must be 0. Both
                convolutions then read the zeros that they would read beyond the edge of a shorter input.
        """
        hidden = self.plain(x)
        if padding is not None:
            hidden = hidden.masked_fill(padding, 0.0)
        out = torch.relu(self.dilated(hidden) + self.shortcut(x))
        return out if padding is None else out.masked_fill(padding, 0.0)


def check_stages(name: str, widths: Sequence[int], depths: Sequence[int]) -> None:
    """Raise ValueError unless every stage has a positive width and depth."""
    if not widths or len(widths) != len(depths) or min(*widths, *depths) < 1:
        raise ValueError(
            f"{name} needs one positive width and one positive depth per stage, "
            f"got widths={tuple(widths)}, depths={tuple(depths)}"
        )


class RHCNN(nn.Module):
    """Residual hybrid CNN: images to feature vectors.

    A strided 3x3 stem is followed by stages. Each stage halves the map, runs its residual blocks and ends in
    a GCSA. The last map is averaged over its positions. The blocks cycle through `dilations` from the first
    to the last, so that neighbouring blocks have different rates and no position of the input is skipped.

    The name and the role (image branch) are those of arXiv 2503.11935; the layers are this project's choice.

    Args:
        in_channels: channels of the images.
        widths: channels of each stage, each divisible by `groups` and at least `reduction`, as GCSA requires.
        depths: residual blocks of each stage.
        dilations: rates of the blocks' second convolutions, in turn.
        reduction: GCSA's reduction of channels.
        groups: GCSA's shuffle groups.
        kernel_size: GCSA's spatial kernel, odd.
        stem_width: channels of the stem; None for the width of the first stage.
        stem_stride: stride of the stem.

    Attributes:
        out_features: length of the feature vector, ``widths[-1]``.

    Shape:
        (B, in_channels, H, W) floating point, any H, W >= 1 -> (B, out_features).

    Raises:
        ValueError: the sizes do not fit each other, or an input has another rank or number of channels.
    """

    def __init__(
        self,
        in_channels: int = 3,
        widths: Sequence[int] = (48, 96, 192, 384),
        depths: Sequence[int] = (3, 3, 3, 3),
        dilations: Sequence[int] = (1, 2, 5),
        reduction: int = 4,
        groups: int = 4,
        kernel_size: int = 7,
        stem_width: int | None = None,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        check_stages("RHCNN", widths, depths)
        if not dilations or min(dilations) < 1:
            raise ValueError(f"RHCNN needs at least one dilation, each at least 1, got {tuple(dilations)}")
        stem_width = widths[0] if stem_width is None else stem_width
        self.in_channels = in_channels
        self.out_features = widths[-1]
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, stem_width, 3, stride=stem_stride, padding=1, bias=False),
            nn.BatchNorm2d(stem_width),
            nn.ReLU(inplace=True),
        )
        stages: list[nn.Module] = []
        previous, index = stem_width, 0
        for width, depth in zip(widths, depths, strict=True):
            layers: list[nn.Module] = []
            for position in range(depth):
                dilation = dilations[index % len(dilations)]
                layers.append(
                    HybridBlock(previous, width, stride=2 if position == 0 else 1, dilation=dilation)
                )
                previous, index = width, index + 1
            layers.append(GCSA(width, reduction=reduction, groups=groups, kernel_size=kernel_size))
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) images to (B, out_features) features."""
        if images.dim() != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"RHCNN expects images of shape (B, {self.in_channels}, H, W), got {tuple(images.shape)}"
            )
        features: Tensor = self.stages(self.stem(images))
        return features.mean(dim=(2, 3))
