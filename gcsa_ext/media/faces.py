"""From a frame to a square picture of the face in it."""

import threading
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from gcsa_ext.extra import import_extra

cv2 = import_extra("cv2")

FaceMode = Literal["detect", "frame"]

# The cascade's window is 20 pixels, so in a picture of this side it finds faces down to 1/12 of the side or
# so. The cost of the search grows with the picture's area.
_SEARCH_SIDE = 320
_SMALLEST_FACE = 20
_SAME_PERSON_OVERLAP = 0.2
# The cascade's box ends at the outer ends of the eyebrows and above the chin. The enlarged box includes the
# mouth.
_ENLARGEMENT = 1.15

_per_thread = threading.local()


class Box(NamedTuple):
    """A square in pixels: left and top edge and side, possibly reaching over the frame's border."""

    left: float
    top: float
    side: float

    def overlap(self, other: "Box") -> float:
        """Intersection over union of the two squares."""
        width = min(self.left + self.side, other.left + other.side) - max(self.left, other.left)
        height = min(self.top + self.side, other.top + other.side) - max(self.top, other.top)
        intersection = max(width, 0.0) * max(height, 0.0)
        return intersection / (self.side**2 + other.side**2 - intersection)


class FaceCropper:
    """Cuts the face out of each frame of one clip.

    With ``mode="detect"`` OpenCV's frontal-face Haar cascade looks for faces. Of several faces, the crop
    shows the one that overlaps the face of the last frame, so that a clip shows one person; without such a
    face, the largest. With ``mode="frame"`` the crop is the centred square of the frame, for footage that is
    cropped already. Call :meth:`reset` before another clip. Instances may be pickled; use one per thread.

    Args:
        size: side of the crops in pixels.
        mode: see above.

    Raises:
        ValueError: ``size`` < 1 or an unknown ``mode``.
    """

    def __init__(self, size: int, mode: FaceMode = "detect") -> None:
        if size < 1:
            raise ValueError(f"size is {size}; expected at least 1 pixel")
        if mode not in ("detect", "frame"):
            raise ValueError(f"mode is {mode!r}; expected 'detect' or 'frame'")
        self.size = size
        self.mode: FaceMode = mode
        self._last: Box | None = None

    def reset(self) -> None:
        """Forget where the last face was."""
        self._last = None

    def __call__(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8] | None:
        """Cut the face out of ``frame``, (H, W, 3) uint8 RGB.

        Returns:
            (size, size, 3) uint8 RGB, border pixels repeated where the square leaves the frame; None where no
            face is found.

        Raises:
            ValueError: ``frame`` has another shape or dtype, or no pixels.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
            raise ValueError(
                f"frame is {frame.dtype} of shape {frame.shape}; expected uint8 (H, W, 3) with pixels"
            )
        if self.mode == "frame":
            height, width = frame.shape[:2]
            side = min(height, width)
            return _cut(frame, Box((width - side) / 2, (height - side) / 2, side), self.size)
        box = _find(frame, self._last)
        if box is None:
            return None
        self._last = box
        margin = (_ENLARGEMENT - 1) / 2 * box.side
        return _cut(frame, Box(box.left - margin, box.top - margin, box.side + 2 * margin), self.size)


def _cascade() -> Any:
    """The detector of the calling thread. Loading one takes long, and two threads must not share one."""
    cascade = getattr(_per_thread, "cascade", None)
    if cascade is None:
        # Clips are processed in parallel, so OpenCV needs no threads. They would not survive a fork
        # (DataLoader).
        cv2.setNumThreads(1)
        file = Path(cv2.data.haarcascades) / "haarcascade_frontalface_alt2.xml"
        cascade = cv2.CascadeClassifier(str(file))
        if cascade.empty():
            raise ImportError(
                f'{file} cannot be loaded; OpenCV 4 ships it in its wheel: pip install ".[train]"'
            )
        _per_thread.cascade = cascade
    return cascade


def _find(frame: npt.NDArray[np.uint8], last: Box | None) -> Box | None:
    """The face that overlaps ``last``, or the largest."""
    scale = min(1.0, _SEARCH_SIDE / max(frame.shape[:2]))
    if scale < 1.0:
        frame = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    gray = cv2.equalizeHist(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
    if last is not None:
        # Between two frames a face hardly changes its size. A search in a small range of sizes is much
        # faster.
        expected = Box(last.left * scale, last.top * scale, last.side * scale)
        again = _detect(gray, round(expected.side / 1.35), round(expected.side * 1.35))
        found = max(again, key=expected.overlap, default=None)
        if found is not None and found.overlap(expected) >= _SAME_PERSON_OVERLAP:
            return Box(found.left / scale, found.top / scale, found.side / scale)
    found = max(_detect(gray, min(gray.shape) // 12, max(gray.shape)), key=lambda box: box.side, default=None)
    return None if found is None else Box(found.left / scale, found.top / scale, found.side / scale)


def _detect(gray: npt.NDArray[np.uint8], smallest: int, largest: int) -> list[Box]:
    """All faces in (H, W) ``gray`` with sides between the two, in pixels."""
    smallest = max(smallest, _SMALLEST_FACE)
    found = _cascade().detectMultiScale(
        gray, scaleFactor=1.1, minNeighbors=3, minSize=(smallest, smallest), maxSize=(largest, largest)
    )
    return [Box(float(left), float(top), float(side)) for left, top, side, _ in found]


def _cut(frame: npt.NDArray[np.uint8], box: Box, size: int) -> npt.NDArray[np.uint8]:
    """The pixels of ``box``, scaled to (size, size, 3); border pixels are repeated outside the frame."""
    height, width = frame.shape[:2]
    side = max(1, round(box.side))
    rows = np.clip(round(box.top) + np.arange(side), 0, height - 1)
    columns = np.clip(round(box.left) + np.arange(side), 0, width - 1)
    patch = frame[rows[:, None], columns]
    method = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    crop: npt.NDArray[np.uint8] = cv2.resize(patch, (size, size), interpolation=method)
    return crop
