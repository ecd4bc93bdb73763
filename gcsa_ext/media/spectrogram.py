"""The log-mel spectrogram, the form in which the network hears a clip."""

import torch
from torch import Tensor, nn

from gcsa_ext.extra import import_extra

torchaudio = import_extra("torchaudio")

# Mean power of a band for speech at a usual level lies around -20 dB re 1 (full-scale float samples, window
# not normalised) and spreads over some 20 dB; the floor is far below what any microphone's own noise gives.
_FLOOR_DB = -60.0
_MEAN_DB = -20.0
_SCALE_DB = 20.0


class LogMelSpectrogram(nn.Module):
    """Log-mel spectrogram of 25 ms Hann windows every 10 ms, scaled by fixed constants.

    The value of a cell is (dB - ``-20``) / ``20`` with dB = 10 log10(max(band power, 1e-6)): about zero mean
    and unit scale for speech, exactly -2 for silence. The constants are fixed, not taken from the clip,
    because loudness tells emotions apart and normalising each clip would remove it, and because two windows
    of one recording stay comparable.

    Args:
        sample_rate: of the waveform, in Hz.
        n_mels: number of mel bands (HTK scale) between ``f_min`` and ``f_max``.
        f_min: lower edge of the lowest band, in Hz. Below it is hum, not voice.
        f_max: upper edge of the highest band, in Hz; at most, and by default, half the sample rate.

    Attributes:
        hop_length: samples from one column to the next.
        silence: value of a cell without any sound.

    Raises:
        ValueError: an argument is outside its range.
    """

    silence = (_FLOOR_DB - _MEAN_DB) / _SCALE_DB

    def __init__(
        self, sample_rate: int = 16000, n_mels: int = 64, f_min: float = 50.0, f_max: float | None = None
    ) -> None:
        super().__init__()
        if sample_rate < 1000 or n_mels < 1:
            raise ValueError(
                f"sample_rate is {sample_rate} Hz and n_mels {n_mels}; expected >= 1000 Hz and >= 1 band"
            )
        top = sample_rate / 2 if f_max is None else f_max
        if not 0 <= f_min < top <= sample_rate / 2:
            raise ValueError(f"the band from {f_min} to {top} Hz is not within 0 to {sample_rate / 2} Hz")
        self.sample_rate = sample_rate
        self.n_mels = n_mels
        self.hop_length = round(0.010 * sample_rate)
        window = round(0.025 * sample_rate)
        self.mel = torchaudio.transforms.MelSpectrogram(
            sample_rate=sample_rate,
            # Twice the window's next power of two: the lowest mel bands are narrower than the bins of less.
            n_fft=2 << (window - 1).bit_length(),
            win_length=window,
            hop_length=self.hop_length,
            f_min=f_min,
            f_max=top,
            n_mels=n_mels,
            power=2.0,
            pad_mode="constant",
        )

    def forward(self, waveform: Tensor) -> Tensor:
        """Log-mel spectrogram of ``waveform``.

        Args:
            waveform: (..., samples) floating point in [-1, 1], at least one sample.

        Returns:
            (..., n_mels, samples // hop_length + 1), column i is centred on sample i * hop_length.

        Raises:
            ValueError: ``waveform`` is not floating point or has no samples.
        """
        if not waveform.is_floating_point() or waveform.dim() < 1 or waveform.shape[-1] < 1:
            raise ValueError(
                f"waveform is {waveform.dtype} of shape {tuple(waveform.shape)}; expected floating point of "
                "shape (..., samples) with at least one sample"
            )
        power: Tensor = self.mel(waveform)
        decibels = 10.0 * torch.log10(power.clamp_min(10.0 ** (_FLOOR_DB / 10.0)))
        return (decibels - _MEAN_DB) / _SCALE_DB
