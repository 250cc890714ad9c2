"""Where the grey square stands: the positions of an occlusion sweep, over an image or over a field.

Along each axis the square stands at 0, s, 2s, … and once more flush with the end, so that every
pixel is covered and every square is whole (Zeiler & Fergus 2013, section 4.2 slide it over the
image).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from deconvoy.errors import RequestError
from deconvoy.occlusion import square_starts


@dataclass(frozen=True)
class Squares:
    """Grey squares in pixels of the preprocessed image; near the end of a small field, oblongs."""

    top: Int[np.ndarray, " position"]
    left: Int[np.ndarray, " position"]
    height: Int[np.ndarray, " position"]
    width: Int[np.ndarray, " position"]

    def __len__(self) -> int:
        return len(self.top)

    def take(self, which: Int[np.ndarray, " taken"]) -> "Squares":
        return Squares(self.top[which], self.left[which], self.height[which], self.width[which])


@dataclass(frozen=True)
class Grid:
    """All positions of one square: each of ``y`` with each of ``x``, counted in reading order."""

    y: Int[np.ndarray, " gy"]
    """Top rows of the square, in pixels of the preprocessed image."""
    x: Int[np.ndarray, " gx"]
    patch: tuple[int, int]
    """Height and width of the square: equal, but in a field that is smaller than it."""
    stride: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.y), len(self.x)

    def squares(self) -> Squares:
        """Those of all positions, in reading order."""
        count = len(self.y) * len(self.x)
        height, width = (np.full(count, side, dtype=np.int64) for side in self.patch)
        return Squares(np.repeat(self.y, len(self.x)), np.tile(self.x, len(self.y)), height, width)


def grid_over_image(height: int, width: int, patch: int, stride: int) -> Grid:
    """The grid over an image of ``height`` × ``width`` pixels.

    Raises:
        RequestError: no square fits, or it would not move.
    """
    _require_positive(patch, stride)
    if patch > min(height, width):
        raise RequestError(
            f"patch is {patch}, but images are {height}×{width} pixels, and every square must lie "
            f"within the image: give a patch of at most {min(height, width)}."
        )
    y, x = (square_starts(0, length, patch, stride) for length in (height, width))
    return Grid(y, x, (patch, patch), stride)


def grid_over_box(box: tuple[int, int, int, int], patch: int, stride: int) -> Grid:
    """The grid over a receptive field, (y0, x0, y1, x1) half-open; a square larger than the field
    is cut to it.

    Raises:
        RequestError: the square has no size, would not move, or the field is empty.
    """
    _require_positive(patch, stride)
    y0, x0, y1, x1 = box
    if y0 >= y1 or x0 >= x1:
        raise RequestError(
            f"The receptive field {box} is empty: this position sees padding only, and no square "
            "can change it. Take another position."
        )
    sides = min(patch, y1 - y0), min(patch, x1 - x0)
    y, x = square_starts(y0, y1, sides[0], stride), square_starts(x0, x1, sides[1], stride)
    return Grid(y, x, sides, stride)


def _require_positive(patch: int, stride: int) -> None:
    for name, value in (("patch", patch), ("stride", stride)):
        if value < 1:
            raise RequestError(f"{name} is {value}, but must be at least 1 pixel.")
