"""The layout of the maps inside a GCSA, and the shape in which the outputs of its convolutions are saved."""

from __future__ import annotations

import torch
from torch import Tensor

from gcsa_ext.layout import memory_format


def is_last(layout: torch.memory_format) -> bool:
    """Whether the layout is channels_last."""
    return layout == torch.channels_last


def convolution_layout(x: Tensor) -> torch.memory_format:
    """The layout of all maps inside a GCSA of x (N, C, H, W).

    Convolutions of 16-bit maps run on matrix units, which read channels_last. The channel gate reads x in its
    own layout, and the last gate writes the result in it, so no pass only transposes a map.
    """
    return torch.channels_last if x.dtype.itemsize == 2 else memory_format(x)


def saved_shape(channels: int, x: Tensor) -> tuple[int, ...]:
    """The shape in which the forward pass saves a convolution's output: contiguous, in `convolution_layout`.

    The two layouts have different numbers of axes. The backward pass so notices when a hook on saved tensors
    has changed the layout of x.
    """
    N, _, H, W = x.shape
    if is_last(convolution_layout(x)):
        return N, H * W, 1, channels
    return N, channels, H * W


def to_saved(u: Tensor, layout: torch.memory_format) -> Tensor:
    """The map u (N, C, H, W), in `layout`, as a view of `saved_shape`."""
    return u.permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(2) if is_last(layout) else u.flatten(2)


def from_saved(saved: Tensor, x: Tensor, layout: torch.memory_format) -> Tensor:
    """The map (N, C, H, W), in `layout`, as a view of a contiguous tensor of `saved_shape`."""
    N, _, H, W = x.shape
    if is_last(layout):
        return saved.view(N, H, W, saved.shape[3]).permute(0, 3, 1, 2)
    return saved.view(N, saved.shape[1], H, W)
