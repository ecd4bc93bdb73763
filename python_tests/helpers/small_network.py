"""A network that is trained in seconds, and the clip settings that it is used with."""

from __future__ import annotations

import torch

from gcsa_ext.corpora import ClipSettings
from gcsa_ext.nn import BimodalNet

SETTINGS = ClipSettings(frames_per_clip=2, image_size=24, n_mels=24, faces="frame")
CONFIG = {
    "visual": {"widths": [8, 12], "depths": [1, 1]},
    "audio": {"branch_width": 4, "widths": [8, 12], "depths": [1, 1]},
    "num_classes": 8,
    "dropout": 0.1,
    "frequency_mask_param": 4,
}


def make_model() -> BimodalNet:
    torch.manual_seed(0)
    return BimodalNet.from_config(CONFIG)
