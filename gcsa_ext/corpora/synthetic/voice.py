"""Parametric voices: glottal pulses and breath, shaped by the formants of a sequence of vowels.

The source is computed per sample from the phase of the fundamental frequency. The vocal tract is a factor on
the source's short-time Fourier transform, another one in each column, so that formants can move.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_WINDOW = 512
_HOP = 128
# First three formants in Hz of an average adult, the corners and the middle of the vowel space.
_VOWELS = np.array(
    [(730, 1250, 2500), (530, 1850, 2500), (290, 2250, 3000), (560, 900, 2450), (320, 850, 2300)]
)
_HIGHER_FORMANTS = (3500.0, 4500.0)


@dataclass(frozen=True)
class Prosody:
    """The manner of speaking of an emotion.

    Attributes:
        pitch: factor on the speaker's mean fundamental frequency.
        pitch_range: standard deviation of the pitch between syllables, in semitones.
        contour: rise of the pitch over the utterance, in semitones.
        tremor: depth of a tremor of the pitch at 7 Hz, in semitones.
        level: loudness relative to a normal voice, in dB.
        syllable_rate: syllables per second.
        pause: share of each syllable's time that is silent.
        breath: share of breath noise in the source, from 0 (voiced) to 1 (whispered).
        tilt: fall of the source spectrum above 500 Hz, in dB per octave. A small tilt gives a bright voice.
    """

    pitch: float = 1.0
    pitch_range: float = 1.5
    contour: float = 0.0
    tremor: float = 0.0
    level: float = 0.0
    syllable_rate: float = 4.0
    pause: float = 0.2
    breath: float = 0.1
    tilt: float = 9.0


@dataclass(frozen=True)
class Voice:
    """One speaker: mean fundamental frequency in Hz, and a factor on all formants (tract length)."""

    pitch: float
    formants: float


def random_voice(random: np.random.Generator) -> Voice:
    """Draw a speaker. High voices have short vocal tracts."""
    octaves = random.uniform(0.0, 1.2)
    return Voice(pitch=95.0 * 2.0**octaves, formants=0.95 + 0.15 * octaves + random.normal(0.0, 0.03))


def render_voice(
    random: np.random.Generator, voice: Voice, prosody: Prosody, seconds: float, sample_rate: int
) -> tuple[npt.NDArray[np.float32], Array]:
    """Let ``voice`` speak a random sequence of vowels with ``prosody``.

    Returns:
        waveform: (samples,) float32 in [-1, 1], with the room's noise.
        loudness: (samples,) float64 in [0, 1], the syllables' envelope.
    """
    samples = round(seconds * sample_rate)
    time = np.arange(samples) / sample_rate

    rate = prosody.syllable_rate * np.exp(random.normal(0.0, 0.08))
    starts = np.cumsum(np.exp(random.normal(0.0, 0.12, round(seconds * rate * 2) + 4)) / rate)
    starts += random.uniform(0.05, 0.15) - starts[0]
    syllable = np.searchsorted(starts, time, side="right") - 1
    speaking = syllable >= 0
    length = np.diff(starts)[syllable.clip(0)]
    progress = (time - starts[syllable.clip(0)]) / (length * (1 - prosody.pause))
    envelope = np.where(speaking & (progress < 1), np.sin(np.pi * np.clip(progress, 0, 1)) ** 0.6, 0.0)
    envelope *= np.exp(random.normal(0.0, 0.15, len(starts)))[syllable]

    targets = random.normal(0.0, prosody.pitch_range, len(starts))
    semitones = np.interp(time, starts + 0.4 / rate, targets) + prosody.contour * (time / seconds - 0.5)
    semitones += prosody.tremor * np.sin(2 * np.pi * random.uniform(6.5, 7.5) * time + random.uniform(0, 6))
    semitones += random.normal(0.0, 0.7)
    pitch = voice.pitch * prosody.pitch * 2 ** (semitones / 12)

    breath = np.clip(prosody.breath * np.exp(random.normal(0.0, 0.15)), 0.0, 1.0)
    voiced = _pulses(pitch, sample_rate)
    hiss = random.standard_normal(samples)
    source = envelope * ((1 - breath) * voiced + breath * hiss)

    vowels = _VOWELS[random.integers(len(_VOWELS), size=len(starts))] * random.normal(
        1.0, 0.03, (len(starts), 3)
    )
    columns = np.arange(0, samples + _HOP, _HOP) / sample_rate
    moving = np.stack([np.interp(columns, starts + 0.3 / rate, track) for track in vowels.T], axis=1)
    higher = np.broadcast_to(_HIGHER_FORMANTS, (len(columns), len(_HIGHER_FORMANTS)))
    formants = voice.formants * np.concatenate([moving, higher], axis=1)
    speech = _through_tract(source, formants, prosody.tilt + random.normal(0.0, 0.5), sample_rate)

    level = prosody.level + random.normal(0.0, 1.5)
    speech *= 0.08 * 10 ** (level / 20) / (np.sqrt(np.mean(speech**2)) + 1e-9)
    room = np.convolve(random.standard_normal(samples + 3), np.full(4, 0.25), "valid")
    room *= 0.0025 * 10 ** (random.uniform(-6.0, 6.0) / 20)
    # The microphone saturates softly, so that a loud voice is not clipped.
    return np.tanh(speech + room).astype(np.float32), envelope / max(float(envelope.max()), 1e-9)


def _pulses(pitch: Array, sample_rate: int) -> Array:
    """Glottal flow derivative: one negative spike as the folds close, once per period; unit power."""
    phase = np.cumsum(pitch / sample_rate) % 1.0
    width = 1.5 * pitch / sample_rate
    spike = -np.exp(-(((phase - 0.6) / width) ** 2))
    opening = np.where(phase < 0.6, np.sin(np.pi * phase / 0.6), 0.0) * 0.3
    flow = spike + opening
    flow -= flow.mean()
    pulses: Array = flow / np.sqrt(np.mean(flow**2))
    return pulses


def _through_tract(source: Array, formants: Array, tilt: float, sample_rate: int) -> Array:
    """Filter ``source`` (samples,) by resonances at ``formants`` (columns, n) in Hz, tilt its spectrum."""
    window = np.hanning(_WINDOW + 1)[:-1]
    padded = np.pad(source, (_WINDOW // 2, _WINDOW))
    columns = len(formants)
    at = np.arange(columns)[:, None] * _HOP + np.arange(_WINDOW)
    padded = np.pad(padded, (0, max(0, int(at[-1, -1]) + 1 - len(padded))))
    spectrum = np.fft.rfft(padded[at] * window)

    frequency = np.fft.rfftfreq(_WINDOW, 1 / sample_rate)
    gain = np.zeros((columns, len(frequency)))
    for i, formant in enumerate(formants.T):
        bandwidth = 60.0 + 40.0 * i
        gain += 0.75**i / np.sqrt(1 + ((frequency - formant[:, None]) / bandwidth) ** 2)
    octaves = np.log2(np.maximum(frequency, 500.0) / 500.0)
    gain *= 10 ** (-tilt * octaves / 20)

    filtered = np.fft.irfft(spectrum * gain) * window
    speech = np.zeros(int(at[-1, -1]) + 1)
    # Every step-th window begins where the window before it ends, so that these windows are added in one
    # piece.
    step = _WINDOW // _HOP
    for offset in range(step):
        part = filtered[offset::step].reshape(-1)
        speech[offset * _HOP : offset * _HOP + len(part)] += part
    return speech[_WINDOW // 2 : _WINDOW // 2 + len(source)]
