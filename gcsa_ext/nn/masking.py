"""SpecAugment's masking of spectrograms as modules (arXiv 1904.08779, section 2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.fx import Proxy

from gcsa_ext import functional


def _check_share(module: nn.Module, p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{type(module).__name__}: expected p in [0, 1], got {p=}")


def _widest(param: int, p: float, size: int) -> int:
    """The exclusive upper end of a band's width on an axis of this size."""
    return param if p == 1.0 else min(param, int(size * p))


class _AxisMasking(nn.Module):
    """Mask random bands of one axis in training: what FrequencyMasking and TimeMasking share.

    A subclass stores the exclusive upper end of a band's width in the attribute of the name `_param`.
    """

    _param: str

    def __init__(
        self, param: int, iid_masks: bool, num_masks: int, p: float, value: float, inplace: bool
    ) -> None:
        super().__init__()
        if param < 0 or num_masks < 1:
            raise ValueError(
                f"{type(self).__name__}: expected {self._param} >= 0 and num_masks >= 1, "
                f"got {self._param}={param}, {num_masks=}"
            )
        _check_share(self, p)
        setattr(self, self._param, param)
        self.iid_masks = iid_masks
        self.num_masks = num_masks
        self.p = p
        self.value = value
        self.inplace = inplace

    def _check(self, specgram: Tensor) -> None:
        dimensions = 2 + self.iid_masks
        # A proxy of torch.fx has no size that could be checked.
        if not isinstance(specgram, Proxy) and specgram.dim() < dimensions:
            raise ValueError(
                f"{type(self).__name__}(iid_masks={self.iid_masks}): expected a spectrogram (..., freq, "
                f"time) of at least {dimensions} dimensions, got {tuple(specgram.shape)}"
            )

    def extra_repr(self) -> str:
        return (
            f"{self._param}={getattr(self, self._param)}, iid_masks={self.iid_masks}, "
            f"num_masks={self.num_masks}, p={self.p}, value={self.value}"
            + (", inplace=True" if self.inplace else "")
        )


class FrequencyMasking(_AxisMasking):
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

    _param = "freq_mask_param"
    freq_mask_param: int

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
        super().__init__(freq_mask_param, iid_masks, num_masks, p, value, inplace)

    def forward(self, specgram: Tensor, mask_value: float | Tensor | None = None) -> Tensor:
        """Mask a spectrogram.

        Args:
            specgram: (..., freq, time); the name is torchaudio's.
            mask_value: the new value of masked bins in this call, a number or a tensor of one element. None
                for `value`.
        """
        self._check(specgram)
        if not self.training:
            return specgram
        widest = _widest(self.freq_mask_param, self.p, specgram.shape[-2])
        if widest < 1:
            return specgram
        value = self.value if mask_value is None else mask_value
        return functional.random_frequency_mask(
            specgram, widest, self.num_masks, self.iid_masks, value, self.inplace
        )


class TimeMasking(_AxisMasking):
    """Mask random bands of frames in training (SpecAugment, arXiv 1904.08779, section 2).

    It replaces torchaudio.transforms.TimeMasking and draws the same random numbers from the same generator
    in the same order: with num_masks=1 the same ``torch.manual_seed`` gives the same bits. The width of each
    band is uniform in [0, time_mask_param) frames, its start is uniform in [0, time - width); both are
    truncated.

    It differs from torchaudio's as `FrequencyMasking` does: it does nothing after ``.eval()``, takes real
    spectrograms only, cannot be scripted by TorchScript, and counts frames exactly, where torchaudio's counts
    them in the spectrogram's dtype; the two differ in bfloat16 beyond 256 frames and in float16 beyond 2048.

    Args:
        time_mask_param: exclusive upper end of a band's width in frames.
        iid_masks: True draws bands for every sample and channel, False draws bands for the whole batch.
        p: largest share of the frames that one band may cover; caps time_mask_param at int(time * p).
        num_masks: bands drawn, one after the other; they may overlap.
        value: the new value of masked frames.
        inplace: overwrite the input.

    Shape:
        (..., freq, time), any floating dtype, to the same shape; with iid_masks at least three dimensions.

    Raises:
        ValueError: an argument or shape is out of range.
    """

    _param = "time_mask_param"
    time_mask_param: int

    def __init__(
        self,
        time_mask_param: int,
        iid_masks: bool = False,
        p: float = 1.0,
        num_masks: int = 1,
        value: float = 0.0,
        *,
        inplace: bool = False,
    ) -> None:
        super().__init__(time_mask_param, iid_masks, num_masks, p, value, inplace)

    def forward(self, specgram: Tensor, mask_value: float | Tensor | None = None) -> Tensor:
        """Mask a spectrogram.

        Args:
            specgram: (..., freq, time); the name is torchaudio's.
            mask_value: the new value of masked frames in this call, a number or a tensor of one element. None
                for `value`.
        """
        self._check(specgram)
        if not self.training:
            return specgram
        widest = _widest(self.time_mask_param, self.p, specgram.shape[-1])
        if widest < 1:
            return specgram
        value = self.value if mask_value is None else mask_value
        return functional.random_time_mask(
            specgram, widest, self.num_masks, self.iid_masks, value, self.inplace
        )


class SpecAugment(nn.Module):
    """Mask random bands of frames and of bins in training (SpecAugment, arXiv 1904.08779, section 2).

    It replaces torchaudio.transforms.SpecAugment: the same ``torch.manual_seed`` gives the same bits. All
    bands of frames are drawn, then all bands of bins, each as by `TimeMasking` and `FrequencyMasking`. They
    are masked in one pass over the memory, where torchaudio's takes one pass per band.

    It differs from torchaudio's as `TimeMasking` and `FrequencyMasking` do: it does nothing after
    ``.eval()``, takes real spectrograms only, cannot be scripted by TorchScript, and counts frames and bins
    exactly.

    Args:
        n_time_masks: bands of frames; they may overlap.
        time_mask_param: exclusive upper end of such a band's width in frames.
        n_freq_masks: bands of frequency bins; they may overlap.
        freq_mask_param: exclusive upper end of such a band's width in bins.
        iid_masks: True draws bands for every sample and channel, False draws bands for the whole batch. A
            spectrogram (freq, time) is one sample either way.
        p: largest share of the frames, or of the bins, that one band may cover; caps time_mask_param at
            int(time * p) and freq_mask_param at int(freq * p).
        zero_masking: True masks with 0, False masks with the mean of the whole input, of which gradients are
            computed.
        inplace: overwrite the input.

    Shape:
        (..., freq, time), any floating dtype, to the same shape.

    Raises:
        ValueError: an argument or shape is out of range.
        TypeError: a dtype does not fit.
    """

    def __init__(
        self,
        n_time_masks: int,
        time_mask_param: int,
        n_freq_masks: int,
        freq_mask_param: int,
        iid_masks: bool = True,
        p: float = 1.0,
        zero_masking: bool = False,
        *,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        if min(n_time_masks, time_mask_param, n_freq_masks, freq_mask_param) < 0:
            raise ValueError(
                "SpecAugment: expected numbers and widths of at least 0, "
                f"got {n_time_masks=}, {time_mask_param=}, {n_freq_masks=}, {freq_mask_param=}"
            )
        _check_share(self, p)
        self.n_time_masks = n_time_masks
        self.time_mask_param = time_mask_param
        self.n_freq_masks = n_freq_masks
        self.freq_mask_param = freq_mask_param
        self.iid_masks = iid_masks
        self.p = p
        self.zero_masking = zero_masking
        self.inplace = inplace

    def forward(self, specgram: Tensor) -> Tensor:
        """Mask a spectrogram (..., freq, time); the name is torchaudio's."""
        if isinstance(specgram, Proxy) and not self.training:
            return specgram  # a proxy of torch.fx has no size that could be checked
        if specgram.dim() < 2:
            raise ValueError(
                "SpecAugment: expected a spectrogram (..., freq, time) of at least 2 dimensions, "
                f"got {tuple(specgram.shape)}"
            )
        if not specgram.is_floating_point():
            raise TypeError(f"SpecAugment: expected a spectrogram of a floating dtype, got {specgram.dtype}")
        freq, time = specgram.shape[-2:]
        widest_time, widest_freq = (
            _widest(param, self.p, size)
            for param, size in ((self.time_mask_param, time), (self.freq_mask_param, freq))
        )
        time_bands = self.n_time_masks if widest_time >= 1 else 0
        freq_bands = self.n_freq_masks if widest_freq >= 1 else 0
        if not self.training or time_bands + freq_bands == 0:
            return specgram
        return functional.random_spectrogram_mask(
            specgram,
            widest_time,
            widest_freq,
            time_bands,
            freq_bands,
            self.iid_masks and specgram.dim() > 2,
            0.0 if self.zero_masking else specgram.mean(),
            self.inplace,
        )

    def extra_repr(self) -> str:
        return (
            f"n_time_masks={self.n_time_masks}, time_mask_param={self.time_mask_param}, "
            f"n_freq_masks={self.n_freq_masks}, freq_mask_param={self.freq_mask_param}, "
            f"iid_masks={self.iid_masks}, p={self.p}, zero_masking={self.zero_masking}"
            + (", inplace=True" if self.inplace else "")
        )
