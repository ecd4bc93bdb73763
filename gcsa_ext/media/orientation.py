"""The orientation of frames: a container's display matrix says how to turn and mirror the stored frames."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]
"""(H, W, 3) uint8 RGB, upright."""

Matrix = npt.NDArray[np.int32]


def display_matrix(frame: Any) -> Matrix | None:
    """The frame's 2x2 display matrix: display (x, y) = stored (x, y) @ matrix, up to a positive scale."""
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return None
    matrix: Matrix = np.frombuffer(bytes(side_data), dtype=np.int32)[:9].reshape(3, 3)[:2, :2]
    return matrix


def turn(pixels: Frame, matrix: Matrix | None) -> Frame:
    """Apply the quarter turns and mirrorings of a display matrix to (H, W, 3) pixels."""
    if matrix is None:
        return pixels
    (a, b), (c, d) = matrix.tolist()
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    turned: Frame = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return turned


def clockwise_degrees(matrix: Matrix | None) -> int:
    """The quarter turn in a display matrix: 0, 90, 180 or 270. A mirrored frame is mirrored left to right
    first."""
    if matrix is None:
        return 0
    (a, b), (c, d) = matrix.tolist()
    if a * d < b * c:
        a, b = -a, -b
    return round(math.degrees(math.atan2(b, a)) / 90) % 4 * 90
