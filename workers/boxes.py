"""Where objects are: boxes of the data, in the file's pixels, and in those of the model's input."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32

from deconvoy.spec import Transform


@dataclass(frozen=True)
class Boxes:
    """Boxes by image."""

    known: Mapping[str, Float64[np.ndarray, "box x0y0x1y1"]]

    def of(self, uri: str) -> Float64[np.ndarray, "box x0y0x1y1"]:
        """In the file's pixels; none where the image has none."""
        return self.known.get(uri, np.zeros((0, 4)))


def in_input(
    boxes: Float64[np.ndarray, "box x0y0x1y1"], file_size: tuple[int, int], transform: Transform
) -> Int32[np.ndarray, "box y0x0y1x1"]:
    """In the preprocessed image, half-open, clipped to it; those without area are dropped.

    Args:
        file_size: height and width.
    """
    height, width = file_size
    short, long = min(height, width), max(height, width)
    longer = int(transform.resize * long / short)  # cut, not rounded, as the image is
    resized = (transform.resize, longer) if height <= width else (longer, transform.resize)
    placed = []
    for axis, (length, now) in enumerate(zip((height, width), resized, strict=True)):
        side = transform.crop
        before = max(side - now, 0) // 2  # a smaller image is padded
        offset = before if now <= side else -round((now - side) / 2.0)
        ends = boxes[:, [1 - axis, 3 - axis]] * (now / length) + offset
        placed.append(np.clip(np.stack([np.floor(ends[:, 0]), np.ceil(ends[:, 1])], 1), 0, side))
    rows, cols = placed
    found = np.stack([rows[:, 0], cols[:, 0], rows[:, 1], cols[:, 1]], 1).astype(np.int32)
    return found[(found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])]
