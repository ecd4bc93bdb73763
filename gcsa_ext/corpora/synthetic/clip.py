"""Synthetic talking faces as media files. They need no licence and no download.

Neither the face nor the voice alone tells all eight emotions apart, but together they do. Emotions with the
same entry in `FACE_OF` are drawn from the same distribution of faces, those with the same entry in `VOICE_OF`
from that of voices. Lips move with the syllables; there is no other dependence between face and voice. The
entries are made up for tests and say nothing about people.
"""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gcsa_ext.atomic import whole_file
from gcsa_ext.corpora.labels import ABAW
from gcsa_ext.corpora.synthetic.face import Expression, random_face, render_empty_room, render_face
from gcsa_ext.corpora.synthetic.voice import Prosody, random_voice, render_voice
from gcsa_ext.extra import import_extra

av = import_extra("av")
cv2 = import_extra("cv2")

_FACE_AND_VOICE = {
    "Neutral": ("plain", "calm"),
    "Anger": ("frowning", "aroused"),
    "Disgust": ("frowning", "calm"),
    "Fear": ("startled", "trembling"),
    "Happiness": ("smiling", "aroused"),
    "Sadness": ("sorrowful", "calm"),
    "Surprise": ("startled", "aroused"),
    "Other": ("plain", "whispering"),
}

FACE_OF = {emotion: face for emotion, (face, _) in _FACE_AND_VOICE.items()}
"""What each emotion's face shows: emotions with the same entry look alike."""

VOICE_OF = {emotion: voice for emotion, (_, voice) in _FACE_AND_VOICE.items()}
"""How each emotion's voice speaks: emotions with the same entry sound alike."""

EXPRESSIONS = {
    "plain": Expression(),
    "frowning": Expression(
        brow_height=-0.05,
        brow_tilt=-0.42,
        eye_opening=0.6,
        mouth_curve=-0.03,
        mouth_width=0.85,
        nose_wrinkle=1.0,
    ),
    "startled": Expression(brow_height=0.09, eye_opening=1.55, mouth_opening=0.13, mouth_width=0.8),
    "smiling": Expression(
        eye_opening=0.75, mouth_curve=0.085, mouth_opening=0.03, mouth_width=1.35, cheek=1.0
    ),
    "sorrowful": Expression(
        brow_height=0.01, brow_tilt=0.42, eye_opening=0.65, gaze=0.02, mouth_curve=-0.07, mouth_width=0.9
    ),
}

PROSODIES = {
    "calm": Prosody(
        pitch=0.92,
        pitch_range=0.8,
        contour=-2.5,
        level=-5.0,
        syllable_rate=2.7,
        pause=0.25,
        breath=0.1,
        tilt=13.0,
    ),
    "aroused": Prosody(
        pitch=1.35,
        pitch_range=3.0,
        contour=1.5,
        level=4.0,
        syllable_rate=5.2,
        pause=0.12,
        breath=0.04,
        tilt=5.0,
    ),
    "trembling": Prosody(
        pitch=1.6,
        pitch_range=1.0,
        contour=3.0,
        tremor=1.6,
        level=-2.0,
        syllable_rate=4.4,
        pause=0.35,
        breath=0.35,
        tilt=9.0,
    ),
    "whispering": Prosody(
        pitch=1.0, pitch_range=0.5, level=-8.0, syllable_rate=3.4, pause=0.3, breath=0.97, tilt=4.0
    ),
}

_FRAME_RATE = 25
_SAMPLE_RATE = 16000


def synthesize_clip(
    path: str | Path,
    identity: int,
    emotion: int | str,
    seed: int,
    sound: bool = True,
    face: bool = True,
    seconds: float | None = None,
    size: int = 112,
) -> Path:
    """Write one talking face to ``path`` (.mp4, H.264 at 25 frames per second and AAC at 16 kHz).

    The same arguments give the same file. The file is complete from the moment it appears.

    Args:
        path: the file to write; its folder is made.
        identity: number of the person; looks and voice depend on it alone.
        emotion: name or index of a class of :data:`~gcsa_ext.corpora.ABAW`.
        seed: chooses pose, light, background, timing and noise.
        sound: False leaves the sound track out.
        face: False shows an empty room; the voice is still there.
        seconds: length, 1.6 to 2.4 s at random if None.
        size: even side of the frames in pixels.

    Returns:
        ``path``.

    Raises:
        ValueError: an unknown emotion, a negative identity or seed, an odd ``size``, or ``seconds`` shorter
            than a frame.
    """
    label = ABAW.lookup(emotion)
    name = ABAW[label]
    if identity < 0 or seed < 0:
        raise ValueError(f"identity is {identity} and seed {seed}; expected numbers >= 0")
    if size < 32 or size % 2:
        raise ValueError(f"size is {size}; expected an even number of at least 32 pixels, as H.264 needs")
    if seconds is not None and not seconds * _FRAME_RATE >= 1:
        raise ValueError(f"seconds is {seconds}; expected at least one frame, {1 / _FRAME_RATE} s")
    person = np.random.default_rng([identity])
    looks, voice = random_face(person), random_voice(person)
    # Face and voice draw from a random stream each. In a shared stream, what the face draws would depend on
    # how much the voice has drawn, and so on the emotion.
    for_time, for_face, for_voice = np.random.default_rng([identity, seed, label]).spawn(3)
    length = for_time.uniform(1.6, 2.4) if seconds is None else seconds
    frames = max(1, round(length * _FRAME_RATE))

    prosody = PROSODIES[VOICE_OF[name]]
    waveform, loudness = render_voice(for_voice, voice, prosody, frames / _FRAME_RATE, _SAMPLE_RATE)
    at_frames = (np.arange(frames) * _SAMPLE_RATE) // _FRAME_RATE
    if face:
        speech = loudness[at_frames].astype(np.float32)
        if not sound:
            speech = np.zeros_like(speech)
        film = render_face(for_face, looks, EXPRESSIONS[FACE_OF[name]], speech, size, _FRAME_RATE)
    else:
        film = render_empty_room(for_face, frames, size)
    with whole_file(path) as temporary:
        _encode(temporary, film, waveform if sound else None)
    return Path(path)


def _encode(path: Path, film: npt.NDArray[np.uint8], waveform: npt.NDArray[np.float32] | None) -> None:
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=_FRAME_RATE)
        video.width, video.height, video.pix_fmt = film.shape[2], film.shape[1], "yuv420p"
        video.options = {"preset": "superfast", "crf": "18", "threads": "1"}
        tracks: list[tuple[Any, list[Any]]] = []
        pictures = []
        for i, pixels in enumerate(film):
            picture = av.VideoFrame.from_ndarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2YUV_I420), "yuv420p")
            picture.pts, picture.time_base = i, Fraction(1, _FRAME_RATE)
            pictures.append(picture)
        tracks.append((video, pictures))
        if waveform is not None:
            audio = container.add_stream(
                "aac", rate=_SAMPLE_RATE, layout="mono", options={"aac_coder": "fast"}
            )
            audio.bit_rate = 48_000
            sound = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = _SAMPLE_RATE, 0, Fraction(1, _SAMPLE_RATE)
            tracks.append((audio, [sound]))
        for stream, pieces in tracks:
            for piece in [*pieces, None]:
                container.mux(stream.encode(piece))
