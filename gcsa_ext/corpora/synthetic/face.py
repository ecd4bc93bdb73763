"""Parametric faces, drawn as layers of soft shapes in face coordinates and then posed in the frame.

In face coordinates x points to the right of the picture and y down. The head is an ellipse around (0, 0)
whose half axes are about 0.5 and 0.65 long. The parts that are the same in all frames of a clip (head, hair,
nose, clothes) are drawn once. Brows, eyes and mouth are drawn for all frames at once, each in its part of the
picture.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gcsa_ext.extra import import_extra

cv2 = import_extra("cv2")

Array = npt.NDArray[np.floating[Any]]

_PATCH = 128
_REACH = 1.15  # the patch spans [-_REACH, _REACH] in both face coordinates
_PIXEL = 2 * _REACH / _PATCH


@dataclass(frozen=True)
class Expression:
    """The changes of a neutral face by an expression at full strength, in face coordinates.

    Attributes:
        brow_height: by how much the brows rise.
        brow_tilt: slope of the brows, positive where their inner ends rise.
        eye_opening: factor on the opening of the lids.
        gaze: by how much the eyes look down.
        mouth_curve: by how much the corners of the mouth rise.
        mouth_opening: by how much the lips part.
        mouth_width: factor on the width of the mouth.
        nose_wrinkle: strength of the folds between brows and beside the nose, 0 to 1.
        cheek: strength of the raised cheeks, 0 to 1.
    """

    brow_height: float = 0.0
    brow_tilt: float = 0.0
    eye_opening: float = 1.0
    gaze: float = 0.0
    mouth_curve: float = 0.0
    mouth_opening: float = 0.0
    mouth_width: float = 1.0
    nose_wrinkle: float = 0.0
    cheek: float = 0.0


@dataclass(frozen=True)
class Face:
    """The looks of one person: colours as RGB in 0 to 1, measures in face coordinates."""

    skin: Array
    hair: Array
    lips: Array
    iris: Array
    clothes: Array
    head_width: float
    head_height: float
    jaw: float
    hairline: float
    hair_volume: float
    long_hair: bool
    eye_distance: float
    eye_height: float
    eye_size: float
    brow_thickness: float
    brow_gap: float
    nose_length: float
    nose_width: float
    mouth_height: float
    mouth_width: float
    lip_thickness: float


_HAIR_COLOURS = (
    (0.08, 0.06, 0.05),
    (0.20, 0.12, 0.07),
    (0.38, 0.24, 0.12),
    (0.62, 0.48, 0.26),
    (0.45, 0.43, 0.42),
)
_IRIS_COLOURS = ((0.22, 0.13, 0.07), (0.28, 0.33, 0.20), (0.25, 0.36, 0.48))


_EYEBALL, _PUPIL, _LASHES, _THROAT, _TEETH, _BLUSH = np.array(
    [
        (0.88, 0.86, 0.84),
        (0.03, 0.03, 0.03),
        (0.09, 0.06, 0.05),
        (0.16, 0.05, 0.05),
        (0.90, 0.88, 0.84),
        (1.25, 1.05, 1.05),  # a factor on the skin's colour
    ],
    np.float32,
)


def random_face(random: np.random.Generator) -> Face:
    """Draw one person's looks."""
    darkness = random.uniform(0.0, 1.0)
    skin = (1 - darkness) * np.array([0.93, 0.76, 0.66]) + darkness * np.array([0.58, 0.40, 0.30])
    skin = skin + random.normal(0, 0.015, 3)
    return Face(
        skin=skin.astype(np.float32),
        hair=np.array(_HAIR_COLOURS[random.integers(len(_HAIR_COLOURS))], np.float32)
        * (1.1 - 0.4 * darkness),
        lips=(skin * np.array([0.80, 0.52, 0.52])).astype(np.float32),
        iris=np.array(_IRIS_COLOURS[random.integers(len(_IRIS_COLOURS))], np.float32),
        clothes=random.uniform(0.1, 0.8, 3).astype(np.float32),
        head_width=random.uniform(0.50, 0.57),
        head_height=random.uniform(0.66, 0.73),
        jaw=random.uniform(0.05, 0.25),
        hairline=random.uniform(-0.50, -0.40),
        hair_volume=random.uniform(0.05, 0.14),
        long_hair=bool(random.random() < 0.45),
        eye_distance=random.uniform(0.215, 0.245),
        eye_height=random.uniform(-0.14, -0.10),
        eye_size=random.uniform(0.095, 0.115),
        brow_thickness=random.uniform(0.022, 0.036),
        brow_gap=random.uniform(0.12, 0.145),
        nose_length=random.uniform(0.27, 0.33),
        nose_width=random.uniform(0.075, 0.105),
        mouth_height=random.uniform(0.36, 0.41),
        mouth_width=random.uniform(0.17, 0.21),
        lip_thickness=random.uniform(0.028, 0.045),
    )


def render_face(
    random: np.random.Generator, face: Face, expression: Expression, speech: Array, size: int, rate: float
) -> npt.NDArray[np.uint8]:
    """Film ``face`` while its expression grows and it speaks. Pose, light and background are random.

    Args:
        random: source of everything that varies from clip to clip.
        face: looks of the person.
        expression: the expression at full strength.
        speech: (T,) loudness at each frame in [0, 1]; it opens the mouth.
        size: side of the frames in pixels.
        rate: frames per second.

    Returns:
        (T, size, size, 3) uint8 RGB.
    """
    person = _Person.draw(random, face, _Moment.draw(random, expression, speech, rate))
    return _film(random, person, _background(random, size), rate)


def render_empty_room(random: np.random.Generator, frames: int, size: int) -> npt.NDArray[np.uint8]:
    """Film an empty room, lit and noisy as in :func:`render_face`: (frames, size, size, 3) uint8 RGB."""
    background = _background(random, size)
    camera = _Camera.draw(random)
    return np.stack([camera.picture(random, background) for _ in range(frames)])


@dataclass(frozen=True)
class _Moment:
    """The state of the face in each frame, every array (T, 1, 1)."""

    brow_height: Array
    brow_tilt: Array
    eye_opening: Array
    gaze_x: Array
    gaze_y: Array
    mouth_curve: Array
    mouth_opening: Array
    mouth_width: Array
    nose_wrinkle: Array
    cheek: Array
    yaw: float

    @classmethod
    def draw(
        cls, random: np.random.Generator, expression: Expression, speech: Array, rate: float
    ) -> "_Moment":
        frames = len(speech)
        time = np.arange(frames) / rate
        # The expression grows from a fifth of its strength to its peak in the first part of the clip, then
        # wavers.
        peak = random.uniform(0.75, 1.1)
        onset, rise = random.uniform(0.0, 0.3), random.uniform(0.2, 0.5)
        growth = np.clip((time - onset) / rise, 0.0, 1.0)
        waver = 0.08 * np.sin(2 * np.pi * (random.uniform(0.4, 1.2) * time + random.random()))
        strength = np.clip(peak * (0.2 + 0.8 * growth * growth * (3 - 2 * growth)) + waver, 0.0, None)

        def shown(change: float, spread: float) -> Array:
            return _per_frame(strength * change + random.normal(0.0, spread))

        blink = np.ones(frames)
        for moment in random.uniform(0, time[-1] + 1.5, 1):
            blink = np.minimum(blink, np.clip(np.abs(time - moment) / 0.10, 0.08, 1.0))
        opening = np.clip(1 + strength * (expression.eye_opening - 1) + random.normal(0, 0.06), 0.2, 1.8)
        speaking = random.uniform(0.05, 0.085) * np.clip(speech, 0, 1)
        return cls(
            brow_height=shown(expression.brow_height, 0.007),
            brow_tilt=shown(expression.brow_tilt, 0.03),
            eye_opening=_per_frame(opening * blink),
            gaze_x=_per_frame(np.full(frames, random.normal(0, 0.018))),
            gaze_y=shown(expression.gaze, 0.008),
            mouth_curve=shown(expression.mouth_curve, 0.006),
            mouth_opening=_per_frame(strength * expression.mouth_opening + speaking),
            mouth_width=_per_frame(1 + strength * (expression.mouth_width - 1) + random.normal(0, 0.03)),
            nose_wrinkle=_per_frame(np.clip(strength * expression.nose_wrinkle, 0, 1)),
            cheek=_per_frame(np.clip(strength * expression.cheek, 0, 1)),
            yaw=random.normal(0, 0.03),
        )


def _per_frame(values: npt.NDArray[np.float64]) -> Array:
    return values.astype(np.float32)[:, None, None]


def _soft(distance: Array, softness: float = _PIXEL) -> Array:
    """1 where ``distance`` is well below 0, 0 where well above, ``softness`` wide in between."""
    mask: Array = np.clip(0.5 - distance / (2 * softness), 0.0, 1.0)
    return mask


def _ellipse(
    x: Array, y: Array, width: float | Array, height: float | Array, softness: float = _PIXEL
) -> Array:
    """Filled ellipse of the given half axes around (0, 0)."""
    distance = np.sqrt((x / width) ** 2 + (y / height) ** 2) - 1
    return _soft(distance * np.minimum(width, height), softness)


def _blob(x: Array, y: Array, width: float, height: float) -> Array:
    """A Gaussian bump, for shading."""
    bump: Array = np.exp(-((x / width) ** 2) - (y / height) ** 2)
    return bump


def _paint(image: Array, mask: Array, colour: Array) -> None:
    """Blend ``colour`` (3,) or (3, ...) into ``image`` (3, ...) in place with the opacity ``mask`` (...)."""
    image += mask * (colour.reshape(3, *(1,) * mask.ndim) - image if colour.ndim == 1 else colour - image)


def _between(low: float, high: float) -> slice:
    """The patch's rows or columns between two face coordinates."""
    return slice(round((low + _REACH) / _PIXEL), round((high + _REACH) / _PIXEL))


_AXIS = ((np.arange(_PATCH) + 0.5) * _PIXEL - _REACH).astype(np.float32)
_X, _Y = _AXIS[None, :], _AXIS[:, None]
_EYES = _between(-0.45, 0.06), _between(-0.48, 0.48)
_MOUTH = _between(0.08, 0.62), _between(-0.48, 0.48)


@dataclass(frozen=True)
class _Person:
    """A person in a clip's light, as layers of RGB multiplied by opacity, colour planes first.

    Attributes:
        head: (4, _PATCH, _PATCH), the parts that do not move in face coordinates, and the opacity.
        eyes: (T, 3, rows, columns), the layer over the head at ``_EYES``.
        mouth: (T, 3, rows, columns), the layer over the head at ``_MOUTH``.
    """

    head: Array
    eyes: Array
    mouth: Array

    @classmethod
    def draw(cls, random: np.random.Generator, face: Face, moment: "_Moment") -> "_Person":
        frames = len(moment.brow_height)
        head = _draw_head(face, moment.yaw)
        # Interpolating colours that are not multiplied by the opacity would give the edges a dark rim.
        light = _light(random) * head[3]
        layers = []
        for draw, (rows, columns) in ((_draw_eyes, _EYES), (_draw_mouth, _MOUTH)):
            layer = np.repeat(head[:3, None, rows, columns], frames, axis=1)
            draw(layer, face, moment)
            layers.append((layer * light[:, None, rows, columns]).transpose(1, 0, 2, 3))
        head[:3] *= light
        return cls(head, *layers)

    def patch(self, frame: int) -> Array:
        """The person in one frame, (4, _PATCH, _PATCH)."""
        patch: Array = self.head.copy()
        for layer, (rows, columns) in ((self.eyes, _EYES), (self.mouth, _MOUTH)):
            patch[:3, rows, columns] = layer[frame]
        return patch


def _light(random: np.random.Generator) -> Array:
    """Brightness, colour and direction of the light: (3, _PATCH, _PATCH) factors."""
    direction = random.uniform(0, 2 * np.pi)
    slope = random.uniform(0.0, 0.25)
    fall = 1 + slope * (np.cos(direction) * _X + 0.6 * np.sin(direction) * _Y)
    tint = random.uniform(0.72, 1.08) * random.uniform(0.94, 1.06, 3)
    return np.asarray(tint[:, None, None] * fall, np.float32)


def _draw_head(face: Face, yaw: float) -> Array:
    """The still part of a person: (4, _PATCH, _PATCH) colours, not multiplied by the opacity, and opacity."""
    picture = np.empty((3, _PATCH, _PATCH), np.float32)
    picture[:] = face.clothes[:, None, None]
    opacity = _ellipse(_X, _Y - 1.35, 0.95, 0.50)

    volume = face.hair_volume
    hair = _ellipse(_X, _Y + 0.08, face.head_width + volume, face.head_height + volume)
    if face.long_hair:
        sides = _soft(np.abs(_X) - face.head_width - volume * 0.8) * _soft(-_Y) * _soft(_Y - 0.75, 0.1)
        hair = np.maximum(hair, sides)
    else:
        hair = hair * _soft(_Y - 0.05, 0.1)
    _paint(picture, hair, face.hair)
    opacity = np.maximum(opacity, hair)

    neck = _soft(np.abs(_X) - 0.27) * _soft(0.3 - _Y) * _soft(_Y - 0.98)
    _paint(picture, neck, face.skin * 0.72)
    ears = _ellipse(np.abs(_X) - face.head_width, _Y - 0.02, 0.06, 0.13)
    if not face.long_hair:
        _paint(picture, ears, face.skin * 0.82)
        opacity = np.maximum(opacity, ears)
    opacity = np.maximum(opacity, neck)

    # The jaw narrows the ellipse towards the chin.
    width = face.head_width * (1 - face.jaw * np.clip(_Y / face.head_height, 0, 1) ** 2)
    skull = _ellipse(_X, _Y, width, face.head_height)
    _paint(picture, skull, face.skin[:, None, None] * _shading(face, yaw))
    opacity = np.maximum(opacity, skull)

    above = _ellipse(_X, _Y, width + 0.03, face.head_height + 0.03)
    fringe = above * _soft(_Y - face.hairline - 0.10 * (_X / face.head_width) ** 2, 0.03)
    _paint(picture, fringe, face.hair)
    return np.concatenate([picture, opacity[None]]).astype(np.float32)


def _shading(face: Face, yaw: float) -> Array:
    """Brightness of the skin: a lit forehead, nose bridge and cheeks, dark eye sockets and edges."""
    x, from_middle = _X - yaw, np.abs(_X - yaw)
    nose_tip = face.eye_height + face.nose_length
    shade = (
        1.04 - 0.38 * np.clip((_X / face.head_width) ** 2 + 0.5 * (_Y / face.head_height) ** 2, 0, 1.6) ** 2
    )
    shade = shade - 0.34 * _blob(from_middle - face.eye_distance, _Y - face.eye_height + 0.015, 0.15, 0.085)
    shade = shade + 0.14 * _blob(x, _Y - face.eye_height - 0.06, 0.045, 0.20)
    shade = shade + 0.10 * _blob(x, _Y + 0.33, 0.26, 0.10)
    shade = shade + 0.13 * _blob(from_middle - 0.27, _Y - 0.13, 0.12, 0.11)
    shade = shade + 0.10 * _blob(x, _Y - nose_tip + 0.03, 0.05, 0.04)
    # Flanks of the nose, the nostrils and the shadow under its tip.
    shade = shade - 0.10 * _blob(from_middle - face.nose_width, _Y - nose_tip + 0.10, 0.022, 0.10)
    shade = shade - 0.16 * _blob(x, _Y - nose_tip - 0.035, face.nose_width, 0.022)
    shade = shade - 0.35 * _blob(from_middle - 0.5 * face.nose_width, _Y - nose_tip - 0.012, 0.022, 0.014)
    # Under the lower lip and along the chin.
    shade = shade - 0.12 * _blob(x, _Y - face.mouth_height - 0.11, 0.12, 0.022)
    return np.asarray(shade, np.float32)


def _draw_eyes(image: Array, face: Face, moment: _Moment) -> None:
    """Draw lids, eyeballs, brows and the folds between them on (3, T, rows, columns) in place."""
    x = (_X[:, _EYES[1]] - moment.yaw)[None]
    y = _Y[None, _EYES[0]] - face.eye_height
    side = np.sign(x)
    # The distance from the middle of either eye, positive outwards: both eyes are drawn at once.
    outward = np.abs(x) - face.eye_distance

    opening = 0.047 * (face.eye_size / 0.105) * moment.eye_opening
    along = np.clip(1 - (outward / face.eye_size) ** 2, 0, None)
    upper = -opening * along
    lower = 0.75 * opening * along
    inside = _soft(np.maximum(upper - y, y - lower)) * (along > 0)
    eyeball = np.broadcast_to(_EYEBALL[:, None, None, None], (3, *inside.shape)).copy()
    centre = outward - side * moment.gaze_x
    radius = 0.44 * face.eye_size
    _paint(eyeball, _ellipse(centre, y - moment.gaze_y, radius, radius), face.iris)
    _paint(eyeball, _ellipse(centre, y - moment.gaze_y, 0.45 * radius, 0.45 * radius), _PUPIL)
    # The upper lid shades the eyeball.
    eyeball *= 0.62 + 0.38 * np.clip((y - upper) / 0.04, 0, 1)

    crease = np.abs(outward) < face.eye_size * 1.15
    _paint(image, 0.45 * _soft(np.abs(y - upper + 0.028) - 0.004, 0.014) * crease, face.skin * 0.55)
    _paint(image, inside, eyeball)
    lashes = _soft(np.abs(y - upper) - 0.011, 0.012) * (np.abs(outward) < face.eye_size)
    _paint(image, 0.9 * lashes, _LASHES)
    lower_line = _soft(np.abs(y - lower) - 0.003, 0.012) * (np.abs(outward) < face.eye_size * 0.9)
    _paint(image, 0.35 * lower_line, face.skin * 0.45)

    position = outward / (face.eye_size * 1.25)
    arch = 0.025 * (1 - position**2)
    brow_y = -face.brow_gap - moment.brow_height - arch + moment.brow_tilt * outward
    thickness = face.brow_thickness * (1 - 0.35 * np.clip(position, 0, 1))
    brow = _soft(np.abs(y - brow_y) - thickness, 0.014) * _soft(np.abs(position) - 1, 0.12)
    _paint(image, 0.92 * brow, face.hair * 0.6)

    frown = moment.nose_wrinkle * _soft(np.abs(np.abs(x) - 0.035) - 0.006, 0.012)
    _paint(image, 0.5 * frown * _soft(np.abs(y + 0.09) - 0.06, 0.03), face.skin * 0.45)
    wrinkle = moment.nose_wrinkle * _soft(np.abs(np.abs(y - 0.05 - 0.3 * np.abs(x)) - 0.02) - 0.004, 0.012)
    _paint(image, 0.45 * wrinkle * _soft(np.abs(x) - 0.06, 0.02), face.skin * 0.5)


def _draw_mouth(image: Array, face: Face, moment: _Moment) -> None:
    """Draw lips, teeth, throat, cheeks and the folds beside the nose on (3, T, rows, columns) in place."""
    x = (_X[:, _MOUTH[1]] - moment.yaw)[None]
    rows = _Y[None, _MOUTH[0]]
    from_middle = np.abs(x)

    fold = face.nose_width + 0.05 + 0.35 * (rows - 0.18)
    strength = 0.10 + 0.35 * np.maximum(moment.cheek, moment.nose_wrinkle)
    _paint(
        image,
        strength * _soft(np.abs(from_middle - fold) - 0.006, 0.02) * _soft(np.abs(rows - 0.27) - 0.10, 0.05),
        face.skin * 0.5,
    )
    cheek = 0.30 * moment.cheek * np.exp(-(((from_middle - 0.28) / 0.09) ** 2) - ((rows - 0.16) / 0.05) ** 2)
    _paint(image, cheek, np.minimum(face.skin * _BLUSH, 1.0))

    half = face.mouth_width * moment.mouth_width
    along = np.clip(1 - (x / half) ** 2, 0, None)
    # The line between the lips is a parabola whose corners rise by mouth_curve.
    y = rows - face.mouth_height + moment.mouth_curve * ((x / half) ** 2 - 0.4)
    gap = 0.5 * moment.mouth_opening * np.sqrt(along)
    lip = face.lip_thickness * np.sqrt(along) * (along > 0)
    lips = _soft(np.abs(y - 0.2 * gap) - 1.1 * gap - lip, 0.012) * (along > 0)
    _paint(image, lips, face.lips)
    _paint(image, 0.35 * lips * (y < 0), face.lips * 0.7)
    inside = _soft(np.abs(y - 0.2 * gap) - gap - 0.006, 0.010) * (along > 0.02)
    _paint(image, inside, _THROAT)
    teeth = inside * _soft(y - 0.2 * gap + 0.15 * moment.mouth_opening, 0.012) * (moment.mouth_opening > 0.03)
    _paint(image, 0.85 * teeth, _TEETH)


@dataclass(frozen=True)
class _Camera:
    """How strong the noise of a clip's camera is, for colours in 0 to 1."""

    noise: float

    @classmethod
    def draw(cls, random: np.random.Generator) -> "_Camera":
        return cls(random.uniform(0.004, 0.02))

    def picture(self, random: np.random.Generator, scene: Array) -> npt.NDArray[np.uint8]:
        """(3, size, size) colours as a noisy (size, size, 3) picture."""
        noisy = scene + self.noise * random.standard_normal(scene.shape[1:], np.float32)
        pixels: npt.NDArray[np.uint8] = (np.clip(noisy, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
        return pixels


def _background(random: np.random.Generator, size: int) -> Array:
    """A blurred room: (3, size, size)."""
    coarse = (random.uniform(0.15, 0.75, 3) + random.normal(0, 0.07, (5, 5, 3))).astype(np.float32)
    smooth = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    planes: Array = np.clip(smooth, 0, 1).transpose(2, 0, 1).copy()
    return planes


def _film(
    random: np.random.Generator, person: _Person, background: Array, rate: float
) -> npt.NDArray[np.uint8]:
    """Film the swaying ``person`` in front of ``background``: (T, size, size, 3)."""
    frames, size = len(person.eyes), background.shape[-1]
    time = np.arange(frames) / rate

    def sway(spread: float, swing: float) -> npt.NDArray[np.float64]:
        """A random position with a slow movement around it, per frame."""
        phase = random.uniform(0.2, 0.7) * time + random.random()
        path: npt.NDArray[np.float64] = random.normal(0, spread) + swing * np.sin(2 * np.pi * phase)
        return path

    # The head is about 1.1 wide in face coordinates, half a patch: it takes up some 60 % of the frame.
    scale = size / _PATCH * random.uniform(1.20, 1.40) * (1 + sway(0.0, 0.015))
    roll = np.radians(np.clip(sway(3.0, 2.0), -9, 9))
    shift = size * np.stack([sway(0.025, 0.012), 0.02 + sway(0.02, 0.008)], axis=1)
    camera = _Camera.draw(random)
    film = np.empty((frames, size, size, 3), np.uint8)
    for i in range(frames):
        cosine, sine = scale[i] * np.cos(roll[i]), scale[i] * np.sin(roll[i])
        turn = np.array([[cosine, -sine], [sine, cosine]])
        offset = size / 2 + shift[i] - turn @ [_PATCH / 2, _PATCH / 2]
        pose = np.hstack([turn, offset[:, None]])
        posed = np.stack([cv2.warpAffine(plane, pose, (size, size)) for plane in person.patch(i)])
        film[i] = camera.picture(random, posed[:3] + (1 - posed[3]) * background)
    return film
