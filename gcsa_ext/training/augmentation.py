"""Random changes of clips that leave the expression as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from gcsa_ext.corpora import ClipBatch


def draw_frames(batch: ClipBatch, count: int | None) -> ClipBatch:
    """Keep a random choice of frame positions, the same for every clip of the batch.

    Other frames in every step reduce overfitting, and fewer frames reduce the time of a step.

    Args:
        batch: frames (N, T, 3, H, W) with frame_mask (N, T), and the other tensors.
        count: number of frames to keep; all if it is None or at least T.

    Returns:
        A batch that shares the tensors which have not changed.
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
    """Mirror and shift the frames of each clip and change their brightness and contrast.

    All frames of a clip are changed alike. The random numbers come from PyTorch's global CPU generator.

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
