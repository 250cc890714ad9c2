"""The pictures of the panels of Fig. 7: arrays of one image in, RGB out.  ``figure7`` lays them
out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw

from deconvoy import heat
from deconvoy.figures import EMPTY, MUTED, signed_colours, smoothed
from deconvoy.lettering import font
from deconvoy.occlusion import Occlusion

OTHER_TILES = 4
"""Projections in other images that stand beside the one in this."""

SMALL = 11
TITLE, HEADING, BOTTOM_TICKS = 20, 36, 18
"""Pixels of the title, of the two lines above a panel, and of the ticks below it."""

Projections = Sequence[Float32[np.ndarray, "h w 3"]]


@dataclass(frozen=True)
class Row:
    """One image's panels and how they are drawn."""

    occlusion: Occlusion
    layer: str
    others: Projections
    """The same map's projections in other images."""
    side: int
    sigma: float

    @property
    def other_side(self) -> int:
        return (self.side - 3 * (OTHER_TILES - 1)) // OTHER_TILES

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a panel; the longer one is ``side``."""
        height, width = self.occlusion.size
        longer = max(height, width)
        return round(self.side * height / longer), round(self.side * width / longer)

    @property
    def height(self) -> int:
        return TITLE + 12 + HEADING + self.side + BOTTOM_TICKS


def picture_of(row: Row) -> UInt8[np.ndarray, "row col rgb"]:
    shown = Image.fromarray(row.occlusion.picture)
    return np.asarray(shown.resize(row.shape[::-1], Image.Resampling.BICUBIC))


def map_of(row: Row, colours: UInt8[np.ndarray, "gy gx rgb"]) -> UInt8[np.ndarray, "row col rgb"]:
    one = row.occlusion
    rows, cols = (
        heat.cells(starts, one.patch, length, pixels)
        for starts, length, pixels in zip((one.y, one.x), one.size, row.shape, strict=True)
    )
    return heat.placed(colours, rows, cols, EMPTY)


def projection_of(row: Row) -> UInt8[np.ndarray, "row col rgb"]:
    projection = row.occlusion.projection.get(row.layer)
    if projection is not None:
        return signed(projection, row.sigma, row.shape)
    empty = Image.new("RGB", row.shape[::-1], EMPTY)
    middle = row.shape[1] // 2, row.shape[0] // 2
    text = "cannot be projected"
    ImageDraw.Draw(empty).text(middle, text, MUTED, font(SMALL), anchor="mm")
    return np.asarray(empty)


def signed(
    projection: Float32[np.ndarray, "h w 3"], sigma: float, shape: tuple[int, int]
) -> UInt8[np.ndarray, "row col rgb"]:
    # Resized before it is coloured: shrinking averages opposite signs, and it would pale.
    smooth = smoothed(projection, sigma)
    channels = [Image.fromarray(np.ascontiguousarray(smooth[..., c])) for c in range(3)]
    size = shape[::-1]
    resized = [np.asarray(c.resize(size, Image.Resampling.BICUBIC)) for c in channels]
    return signed_colours(np.stack(resized, axis=2))


def activity_range(row: Row) -> tuple[float, float]:
    """From zero, or below where the layer goes below, to the largest: a scale that began at the
    smallest would make any drop look deep."""
    activity = row.occlusion.activity[row.layer]
    clean = row.occlusion.clean_activity[row.layer]
    low, high = float(activity.min()), float(activity.max())
    return min(0.0, low, clean), max(0.0, high, clean)


def shares(
    values: Float32[np.ndarray, "*place"], bounds: tuple[float, float]
) -> Float32[np.ndarray, "*place"]:
    low, high = bounds
    width = high - low if high > low else 1.0
    found: Float32[np.ndarray, "*place"] = ((values - low) / width).astype(np.float32)
    return found
