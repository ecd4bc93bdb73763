"""The log-mel spectrogram: equal to torchaudio's, on a fixed scale, at every sample rate."""

import pytest
import torch
import torchaudio

from gcsa_ext.media import LogMelSpectrogram


@pytest.mark.parametrize(
    ("rate", "n_fft", "win_length", "n_mels", "f_min", "f_max"),
    [
        (16000, 1024, 400, 64, 50.0, None),
        (16000, 1024, 400, 40, 0.0, 7600.0),
        (8000, 512, 200, 1, 50.0, None),
        (44100, 4096, 1102, 128, 20.0, None),
    ],
)
def test_log_mel_is_torchaudio_s_on_a_fixed_scale(
    rate: int, n_fft: int, win_length: int, n_mels: int, f_min: float, f_max: float | None
) -> None:
    waveform = torch.randn(2, rate // 2, generator=torch.Generator().manual_seed(0)) * 0.1
    log_mel = LogMelSpectrogram(rate, n_mels, f_min, f_max)
    mel = torchaudio.transforms.MelSpectrogram(
        rate,
        n_fft=n_fft,
        win_length=win_length,
        hop_length=rate // 100,
        f_min=f_min,
        f_max=f_max,
        n_mels=n_mels,
        pad_mode="constant",
    )
    torch.testing.assert_close(log_mel.filters, mel.mel_scale.fb.T, rtol=0, atol=1e-5)
    decibels = torchaudio.functional.amplitude_to_DB(mel(waveform), 10.0, 1e-6, 0.0)
    torch.testing.assert_close(log_mel(waveform), (decibels + 20) / 20, rtol=0, atol=1e-5)
    assert log_mel(waveform).shape == (2, n_mels, rate // 2 // log_mel.hop_length + 1)


def test_log_mel_of_other_shapes_and_dtypes() -> None:
    waveform = torch.randn(2, 3, 1600, generator=torch.Generator().manual_seed(0)) * 0.1
    log_mel = LogMelSpectrogram()
    batch = log_mel(waveform)
    assert batch.shape == (2, 3, 64, 11)
    torch.testing.assert_close(log_mel(waveform[1, 2]), batch[1, 2])
    exact = log_mel(waveform.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact.float(), batch)
    assert not log_mel.state_dict()


def test_log_mel_of_silence_and_of_louder_sound() -> None:
    log_mel = LogMelSpectrogram()
    assert (log_mel(torch.zeros(1600)) == log_mel.silence).all()
    waveform = torch.randn(1600, generator=torch.Generator().manual_seed(0)) * 0.1
    torch.testing.assert_close(log_mel(10 * waveform) - log_mel(waveform), torch.ones(64, 11))
    assert torch.isfinite(log_mel(torch.zeros(1))).all()


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
@pytest.mark.parametrize("n_mels", [1, 80, 128])
def test_log_mel_has_no_empty_band(rate: int, n_mels: int) -> None:
    log_mel = LogMelSpectrogram(rate, n_mels)
    assert (log_mel.filters.sum(1) > 0).all()


def test_log_mel_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match="n_mels 0"):
        LogMelSpectrogram(16000, 0)
    with pytest.raises(ValueError, match=r"9000.*8000"):
        LogMelSpectrogram(16000, f_max=9000.0)
    for waveform in (torch.zeros(100, dtype=torch.int16), torch.zeros(2, 0)):
        with pytest.raises(ValueError, match="waveform is"):
            LogMelSpectrogram()(waveform)
