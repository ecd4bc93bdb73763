"""What gcsa_ext is compared with: the same computations as people write them in plain PyTorch."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcsa_ext.nn import GCSA, FrequencyMasking, SpecAugment, TimeMasking
from gcsa_ext.reference import channel_shuffle

try:
    import torchaudio
except ImportError:
    torchaudio = None


def channel_gate(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, groups: int) -> Tensor:
    """Steps 1 and 2 of GCSA, (N, C, H, W)."""
    hidden = F.relu(F.linear(x.permute(0, 2, 3, 1), w1, b1), inplace=True)
    gate = F.linear(hidden, w2, b2).sigmoid().permute(0, 3, 1, 2)
    return channel_shuffle(x * gate, groups)


def norm_gate(
    u: Tensor, z: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, training: bool
) -> Tensor:
    """The end of step 3 and step 4 of GCSA, (N, C, H, W); running statistics are updated in training."""
    return z * F.batch_norm(u, mean, var, weight, bias, training).sigmoid()


def frequency_bins(spectrogram: Tensor, start: Tensor, width: Tensor) -> Tensor:
    """The masked bins of one band per sample or for all, bool, for a spectrogram (N, C, freq, time)."""
    bins = torch.arange(spectrogram.shape[-2], device=spectrogram.device).unsqueeze(-1)
    start, width = start.unsqueeze(-1), width.unsqueeze(-1)
    return (bins >= start) & (bins < start + width)


def frequency_mask(spectrogram: Tensor, start: Tensor, width: Tensor) -> Tensor:
    """Set a band of a spectrogram (N, C, freq, time) to 0."""
    return spectrogram.masked_fill(frequency_bins(spectrogram, start, width), 0.0)


def frequency_mask_(spectrogram: Tensor, start: Tensor, width: Tensor) -> Tensor:
    """Set a band of a spectrogram (N, C, freq, time) to 0 in place."""
    return spectrogram.masked_fill_(frequency_bins(spectrogram, start, width), 0.0)


class PlainGCSA(nn.Module):
    """Global channel-spatial attention in the layout of the public modules, layer by layer.

    Args:
        gcsa: the module to compute the same as; its layers are copied.
    """

    def __init__(self, gcsa: GCSA) -> None:
        super().__init__()
        self.groups = gcsa.groups
        self.channel_attention = copy.deepcopy(gcsa.channel_attention)
        self.spatial_attention = copy.deepcopy(gcsa.spatial_attention)
        self.train(gcsa.training)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) to the gated map, of the same shape."""
        positions = x.permute(0, 2, 3, 1).flatten(1, 2)
        gate = self.channel_attention(positions).transpose(1, 2).unflatten(2, x.shape[2:]).sigmoid()
        z = channel_shuffle(x * gate, self.groups)
        return z * self.spatial_attention(z).sigmoid()


def plain_copy(module: nn.Module) -> nn.Module:
    """A copy of the module, same weights, in which plain PyTorch and torchaudio do what gcsa_ext did."""
    copied = copy.deepcopy(module)
    if (counterpart := _counterpart(copied)) is not None:
        return counterpart
    for path, child in list(copied.named_modules()):
        if (counterpart := _counterpart(child)) is not None:
            copied.set_submodule(path, counterpart)
    return copied


def _counterpart(module: nn.Module) -> nn.Module | None:
    if isinstance(module, GCSA):
        return PlainGCSA(module)
    if torchaudio is None:
        return None
    if isinstance(module, FrequencyMasking):
        return torchaudio.transforms.FrequencyMasking(module.freq_mask_param, module.iid_masks)
    if isinstance(module, TimeMasking):
        return torchaudio.transforms.TimeMasking(module.time_mask_param, module.iid_masks, module.p)
    if isinstance(module, SpecAugment):
        return torchaudio.transforms.SpecAugment(
            module.n_time_masks,
            module.time_mask_param,
            module.n_freq_masks,
            module.freq_mask_param,
            module.iid_masks,
            module.p,
            module.zero_masking,
        )
    return None
