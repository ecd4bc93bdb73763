"""Face crops: found faces, one person per clip, frames that are cropped already."""

import numpy as np
import pytest

from gcsa_ext.corpora.synthetic.clip import EXPRESSIONS
from gcsa_ext.corpora.synthetic.face import random_face, render_face
from gcsa_ext.media import FaceCropper


def face_picture(seed: int, size: int = 112) -> np.ndarray:
    random = np.random.default_rng(seed)
    silence = np.zeros(30, np.float32)
    return render_face(random, random_face(random), EXPRESSIONS["plain"], silence, size, 25.0)[-1]


@pytest.mark.parametrize("size", [112, 640])
def test_a_face_is_found_and_cropped(size: int) -> None:
    crop = FaceCropper(48)(face_picture(0, size))
    assert crop is not None and crop.shape == (48, 48, 3) and crop.dtype == np.uint8


def test_no_face_is_none() -> None:
    cropper = FaceCropper(32)
    assert cropper(np.full((100, 80, 3), 90, np.uint8)) is None
    assert cropper(np.zeros((1, 1, 3), np.uint8)) is None


def test_the_same_person_is_kept_until_reset() -> None:
    large, small = face_picture(5, 160), face_picture(6, 96)
    both = np.full((160, 400, 3), 110, np.uint8)
    both[:, :160] = large
    alone = both.copy()
    alone[:, :160] = 110
    both[30:126, 280:376] = alone[30:126, 280:376] = small
    cropper = FaceCropper(64)
    of_large = cropper(both)
    cropper.reset()
    of_small = cropper(alone)
    followed = cropper(both)
    assert of_large is not None and of_small is not None and followed is not None
    distance = [np.abs(followed.astype(int) - crop).mean() for crop in (of_small, of_large)]
    assert distance[0] < distance[1] / 3
    cropper.reset()
    np.testing.assert_array_equal(cropper(both), of_large)


def test_frame_mode_takes_the_centred_square() -> None:
    frame = np.zeros((40, 100, 3), np.uint8)
    frame[:, 30:70] = 200
    crop = FaceCropper(20, "frame")(frame)
    assert crop is not None and (crop == 200).all()


def test_face_cropper_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match="size is 0"):
        FaceCropper(0)
    with pytest.raises(ValueError, match="'magic'"):
        FaceCropper(8, "magic")  # type: ignore[arg-type]
    for frame in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="frame is"):
            FaceCropper(8)(frame)
