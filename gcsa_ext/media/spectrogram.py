"""The log-mel spectrogram, the audio input of the network."""

import math

import torch
from torch import Tensor, nn

# Speech at a usual level has a mean power per band around -20 dB re 1 (full-scale float samples, window not
# normalised), which spreads over some 20 dB. The floor is far below the noise of any microphone.
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
        n_fft: length of the Fourier transform in samples.
        win_length: samples of a window.
        hop_length: samples from one column to the next.
        silence: value of a cell without any sound.
        window: (win_length,) float32 buffer.
        filters: (n_mels, n_fft // 2 + 1) float32 buffer, see :func:`mel_filters`.

    Raises:
        ValueError: an argument is outside its range.
    """

    silence = (_FLOOR_DB - _MEAN_DB) / _SCALE_DB
    window: Tensor
    filters: Tensor

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
        self.win_length = round(0.025 * sample_rate)
        # Twice the next power of two: with fewer frequencies, the lowest mel bands would lie between two.
        self.n_fft = 2 << (self.win_length - 1).bit_length()
        self.register_buffer("window", torch.hann_window(self.win_length), persistent=False)
        filters = mel_filters(sample_rate, self.n_fft, n_mels, f_min, top)
        self.register_buffer("filters", filters, persistent=False)

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
        power = self.filters.to(waveform.dtype) @ self._power(waveform)
        decibels = 10.0 * torch.log10(power.clamp_min(10.0 ** (_FLOOR_DB / 10.0)))
        return (decibels - _MEAN_DB) / _SCALE_DB

    def _power(self, waveform: Tensor) -> Tensor:
        """(..., samples) -> (..., n_fft // 2 + 1, columns), squared magnitudes."""
        spectrum = torch.stft(
            waveform.reshape(-1, waveform.shape[-1]),
            n_fft=self.n_fft,
            hop_length=self.hop_length,
            win_length=self.win_length,
            window=self.window.to(waveform.dtype),
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        power = spectrum.abs().square()
        return power.reshape(*waveform.shape[:-1], *power.shape[1:])


def mel_filters(sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float) -> Tensor:
    """Triangular filters on the mel scale of HTK: mel = 2595 log10(1 + Hz / 700).

    The corners of the triangles lie at equal distances in mel. Filter i rises from 0 at corner i to 1 at
    corner i + 1 and falls to 0 at corner i + 2, linearly in Hz.

    Args:
        sample_rate: in Hz.
        n_fft: length of the Fourier transform in samples.
        n_mels: number of filters.
        f_min: the first corner, in Hz.
        f_max: the last corner, in Hz.

    Returns:
        (n_mels, n_fft // 2 + 1) float32, the weight of each frequency in each band.
    """
    first, last = (2595.0 * math.log10(1.0 + hertz / 700.0) for hertz in (f_min, f_max))
    mels = torch.linspace(first, last, n_mels + 2)
    corners = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    frequencies = torch.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)
    distances = frequencies - corners[:, None]
    widths = corners.diff()[:, None]
    rising, falling = distances[:-2] / widths[:-1], -distances[2:] / widths[1:]
    return torch.minimum(rising, falling).clamp_min(0.0)
