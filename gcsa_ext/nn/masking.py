"""SpecAugment's frequency masking as a module."""

from __future__ import annotations

from torch import Tensor, nn
from torch.fx import Proxy

from gcsa_ext import functional


class FrequencyMasking(nn.Module):
    """Mask random bands of frequency bins in training (SpecAugment, arXiv 1904.08779, section 2).

    It replaces torchaudio.transforms.FrequencyMasking and draws the same random numbers from the same
    generator in the same order: with num_masks=1 and p=1 the same ``torch.manual_seed`` gives the same bits.
    The width of each band is uniform in [0, freq_mask_param) bins, its start is uniform in [0, freq - width);
    both are truncated.

    It differs from torchaudio's in four ways. It does nothing after ``.eval()``. It takes real spectrograms
    only. TorchScript cannot script it, nor can torch.fx trace it in training. It counts bins exactly, where
    torchaudio's counts them in the spectrogram's dtype; the two differ in bfloat16 beyond 256 bins and in
    float16 beyond 2048.

    Args:
        freq_mask_param: exclusive upper end of a band's width in bins.
        iid_masks: True draws bands for every sample and channel, False draws bands for the whole batch.
        num_masks: bands drawn, one after the other; they may overlap.
        p: largest share of the frequency bins that one band may cover; caps freq_mask_param at int(freq * p).
        value: the new value of masked bins.
        inplace: overwrite the input.

    Shape:
        (..., freq, time), any floating dtype, to the same shape; with iid_masks at least three dimensions.

    Raises:
        ValueError: an argument or shape is out of range.
    """

    def __init__(
        self,
        freq_mask_param: int,
        iid_masks: bool = False,
        num_masks: int = 1,
        p: float = 1.0,
        value: float = 0.0,
        *,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        if freq_mask_param < 0 or num_masks < 1:
            raise ValueError(
                "FrequencyMasking: expected freq_mask_param >= 0 and num_masks >= 1, "
                f"got {freq_mask_param=}, {num_masks=}"
            )
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"FrequencyMasking: expected p in [0, 1], got {p=}")
        self.freq_mask_param = freq_mask_param
        self.iid_masks = iid_masks
        self.num_masks = num_masks
        self.p = p
        self.value = value
        self.inplace = inplace

    def forward(self, specgram: Tensor, mask_value: float | Tensor | None = None) -> Tensor:
        """Mask a spectrogram.

        Args:
            specgram: (..., freq, time); the name is torchaudio's.
            mask_value: the new value of masked bins in this call, a number or a tensor of one element. None
                for `value`.
        """
        if isinstance(specgram, Proxy) and not self.training:  # torch.fx knows no sizes to check
            return specgram
        dimensions = 2 + self.iid_masks
        if specgram.dim() < dimensions:
            raise ValueError(
                f"FrequencyMasking(iid_masks={self.iid_masks}): expected a spectrogram (..., freq, time) "
                f"of at least {dimensions} dimensions, got {tuple(specgram.shape)}"
            )
        value = self.value if mask_value is None else float(mask_value)
        freq = specgram.shape[-2]
        widest = self.freq_mask_param if self.p == 1.0 else min(self.freq_mask_param, int(freq * self.p))
        if not self.training or widest < 1:
            return specgram
        return functional.random_frequency_mask(
            specgram, widest, self.num_masks, self.iid_masks, value, self.inplace
        )

    def extra_repr(self) -> str:
        return (
            f"freq_mask_param={self.freq_mask_param}, iid_masks={self.iid_masks}, "
            f"num_masks={self.num_masks}, p={self.p}, value={self.value}"
            + (", inplace=True" if self.inplace else "")
        )
