"""Random changes of clips that leave the expression as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from gcsa_ext.data import ClipBatch


def augment_clips(batch: ClipBatch, frame_share: float = 0.5) -> ClipBatch:
    """A batch for one training step: some frames of each clip, changed by :func:`augment_frames`.

    Fewer frames are not only cheaper: that the choice differs each time keeps a network from learning the clips by
    heart. Draws from PyTorch's global CPU generator.

    Args:
        batch: left as it is.
        frame_share: share of each clip's frames to keep, rounded up, in (0, 1].

    Returns:
        A new batch with floating-point frames; those that were not drawn are False in the mask.
    """
    augmented = batch.copy()
    augmented["frames"] = augment_frames(batch["frames"])
    augmented["frame_mask"] = draw_frames(batch["frame_mask"], frame_share)
    return augmented


def draw_frames(frame_mask: Tensor, share: float) -> Tensor:
    """Keep a random `share`, rounded up, of the True entries in each row of an (N, T) bool mask."""
    order = torch.rand(frame_mask.shape).to(frame_mask.device).masked_fill(~frame_mask, 2.0)
    rank = order.argsort(dim=1).argsort(dim=1)
    wanted = (frame_mask.sum(dim=1, keepdim=True) * share).ceil()
    return frame_mask & (rank < wanted)

from gcsa_ext.data import ClipBatch


def draw_frames(batch: ClipBatch, count: int | None) -> ClipBatch:
    """Keep some of the clips' frames, the same positions of every clip, drawn at random.

    A network that sees other frames in every step learns less by heart, and a step costs less.

    Args:
        batch: frames (N, T, 3, H, W) with frame_mask (N, T), and the rest.
        count: how many to keep, T or more for all; None: all.

    Returns:
        A batch that shares what has not changed.
    """
    drawn = batch.copy()
    length = batch["frames"].shape[1]
    if count is not None and count < length:
        positions = torch.randperm(length)[:count].sort().values.to(batch["frames"].device)
        drawn["frames"] = batch["frames"][:, positions]
        drawn["frame_mask"] = batch["frame_mask"][:, positions]
    return drawn


def augment_frames(
    frames: Tensor, shift: float = 0.04, brightness: float = 0.1, contrast: float = 0.1
) -> Tensor:
    """Mirror, shift and relight the frames of each clip, all frames of a clip alike.

    Draws from PyTorch's global CPU generator.

    Args:
        frames: (N, T, C, H, W), uint8 in [0, 255] or floating point in [0, 1].
        shift: largest shift in either direction, as a part of the side; edge pixels are repeated.
        brightness: largest change of brightness, as a part of the full range.
        contrast: largest change of contrast about middle grey, as a factor above or below 1.

    Returns:
        A new tensor of the same shape, floating point in [0, 1].
    """
    count, _, _, height, width = frames.shape
    images = frames.float() / 255.0 if frames.dtype == torch.uint8 else frames

    draws = torch.rand(5, count)
    mirrored = draws[0] < 0.5
    top, left = (
        ((2.0 * draw - 1.0) * shift * side).round().long()
        for draw, side in zip(draws[1:3], (height, width), strict=True)
    )
    rows = (torch.arange(height) + top[:, None]).clamp(0, height - 1)  # (N, H)
    columns = (torch.arange(width) + left[:, None]).clamp(0, width - 1)  # (N, W)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    clip = torch.arange(count)[:, None, None]
    # Indexing moves the indexed axes to the front: (N, H, W, T, C).
    images = images.permute(0, 3, 4, 1, 2)[
        clip.to(frames.device), rows[:, :, None].to(frames.device), columns[:, None, :].to(frames.device)
    ].permute(0, 3, 4, 1, 2)

    def per_clip(values: Tensor) -> Tensor:
        return values.to(images.device, images.dtype).view(count, 1, 1, 1, 1)

    scale = per_clip(1.0 + (2.0 * draws[3] - 1.0) * contrast)
    offset = per_clip((2.0 * draws[4] - 1.0) * brightness)
    return ((images - 0.5) * scale + 0.5 + offset).clamp(0.0, 1.0)
