"""The pictures of the panels of Fig. 7: arrays of one image in, RGB out.  ``figure7`` lays them
out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw

from deconvoy import heat
from deconvoy.figures import BRIGHT, EMPTY, MUTED, signed_colours, smoothed
from deconvoy.lettering import draw_lines, text_height, wrapped
from deconvoy.occlusion import Occlusion

OTHER_TILES = 4
"""Projections in other images that stand beside the one in this."""

SMALL, WORDS = 11, 13
TITLE, HEADING, BOTTOM_TICKS = 20, 36, 18
"""Pixels of the title, of the two lines above a panel, and of the ticks below it."""

FLAT = 0.01
"""Probabilities that differ by less are told in words: colours would draw patterns from nothing."""

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


@dataclass(frozen=True)
class Scale:
    """What the colours of a panel mean."""

    low: float
    high: float
    clean: float
    """Of the image without a square; between the two."""
    number: Callable[[float], str]
    """A value as the scale shows it."""

    def shares(self, values: Float32[np.ndarray, "*place"]) -> Float32[np.ndarray, "*place"]:
        """0 at the lower end, 1 at the upper one."""
        width = self.high - self.low if self.high > self.low else 1.0
        found: Float32[np.ndarray, "*place"] = ((values - self.low) / width).astype(np.float32)
        return found


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
    return _in_words(row, "cannot be projected", MUTED)


def activity_of(row: Row) -> UInt8[np.ndarray, "row col rgb"]:
    activity = row.occlusion.activity[row.layer]
    return map_of(row, heat.shaded(activity_scale(row).shares(activity)))


def probability_of(row: Row) -> UInt8[np.ndarray, "row col rgb"]:
    words = flat_words(row.occlusion)
    if words:
        return _in_words(row, words, BRIGHT)
    probability = row.occlusion.probability
    return map_of(row, heat.shaded(probability_scale(row.occlusion).shares(probability)))


def _in_words(row: Row, words: str, colour: heat.Colour) -> UInt8[np.ndarray, "row col rgb"]:
    """A panel that says what it has no colours for."""
    height, width = row.shape
    empty = Image.new("RGB", (width, height), EMPTY)
    draw = ImageDraw.Draw(empty)
    lines = wrapped(words, WORDS if width >= 96 else SMALL, colour, width - 4)
    y = (height - text_height(lines)) // 2
    for line in lines:
        draw_lines(draw, [line], (width - line.width) // 2, y)
        y += line.height
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


def activity_scale(row: Row) -> Scale:
    """From zero, or below where the layer goes below, to the largest: a scale that began at the
    smallest would make any drop look deep."""
    activity = row.occlusion.activity[row.layer]
    clean = row.occlusion.clean_activity[row.layer]
    low, high = float(activity.min()), float(activity.max())
    return Scale(min(0.0, low, clean), max(0.0, high, clean), clean, _number)


def probability_scale(one: Occlusion) -> Scale:
    """From the smallest to the largest, that without a square among them: one from 0 to 1 would
    show nothing of a class that is nearly sure, or hardly thought of."""
    low, high = float(one.probability.min()), float(one.probability.max())
    clean = one.clean_probability
    return Scale(min(low, clean), max(high, clean), clean, probability_text)


def flat_words(one: Occlusion) -> str:
    """What the panel of the probability says where there is next to nothing to see; else ""."""
    low, high = float(one.probability.min()), float(one.probability.max())
    if high - low >= FLAT:
        return ""
    ends = dict.fromkeys(map(probability_text, (low, high)))  # once where they look alike
    return f"{' to '.join(ends)} everywhere"


def probability_text(value: float) -> str:
    return f"{value:.3f}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 or value in (0, 1) else f"{value:.3g}"
