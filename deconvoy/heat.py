"""Numbers on a grid of squares become pixels: one cell a position, where the square's centre is.

A map of an occlusion is per position and is not smeared over the pixels a square covers, so a cell
reaches half way to the next centre, and nothing is drawn where no centre can be.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int64, UInt8
from numpy import ndarray

Colour = tuple[int, int, int]

# Viridis at ten even steps, by Smith and van der Walt: lightness grows evenly from low to high, so
# it reads alike in grey and to the colour-blind.
_VIRIDIS = np.array(
    [
        (68, 1, 84),
        (72, 40, 120),
        (62, 74, 137),
        (49, 104, 142),
        (38, 130, 142),
        (31, 158, 137),
        (53, 183, 121),
        (110, 206, 88),
        (181, 222, 43),
        (253, 231, 37),
    ],
    dtype=np.float64,
)

TARGET: Colour = (86, 156, 235)
OTHERS: Colour = (92, 97, 110)
CLASS_COLOURS: tuple[Colour, ...] = (
    (240, 140, 60),
    (90, 190, 110),
    (220, 95, 100),
    (165, 125, 215),
    (225, 200, 80),
    (90, 200, 205),
    (230, 140, 195),
    (190, 195, 205),
)
"""Of the classes that win besides the one watched."""


def shaded(share: Float[ndarray, "*place"]) -> UInt8[ndarray, "*place rgb"]:
    """Colours from dark (0) to light (1); beyond both, the nearest."""
    at = np.clip(share, 0, 1) * (len(_VIRIDIS) - 1)
    steps = np.arange(len(_VIRIDIS))
    channels = [np.interp(at, steps, _VIRIDIS[:, channel]) for channel in range(3)]
    colours: UInt8[ndarray, "*place rgb"] = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return colours


def cells(
    starts: Int[ndarray, " position"], patch: int, length: int, pixels: int
) -> Int64[ndarray, " pixel"]:
    """Which position each pixel of an axis shows; −1 where none.

    Args:
        starts: first pixel of the square at each position, increasing.
        length: of the axis in input pixels.
        pixels: it is drawn with.
    """
    centres = starts + patch / 2
    between = (centres[1:] + centres[:-1]) / 2
    if len(centres) > 1:
        first = centres[0] - (between[0] - centres[0])
        last = centres[-1] + (centres[-1] - between[-1])
    else:
        first, last = centres[0] - patch / 2, centres[0] + patch / 2
    middle = (np.arange(pixels) + 0.5) * length / pixels
    found = np.searchsorted(between, middle, side="right").astype(np.int64)
    inside: Bool[ndarray, " pixel"] = (middle >= first) & (middle < last)
    return np.where(inside, found, -1)


def placed(
    colours: UInt8[ndarray, "gy gx rgb"],
    rows: Int64[ndarray, " row"],
    cols: Int64[ndarray, " col"],
    empty: Colour,
) -> UInt8[ndarray, "row col rgb"]:
    """A picture of the grid; ``rows`` and ``cols`` from ``cells``."""
    picture: UInt8[ndarray, "row col rgb"] = colours[rows[:, None], cols[None, :]]
    picture[(rows < 0)[:, None] | (cols < 0)[None, :]] = empty
    return picture


@dataclass(frozen=True)
class Key:
    """One entry of the legend of classes."""

    label: int | None
    """None: all classes that have no entry of their own."""
    colour: Colour
    share: float
    """Of the positions at which it is the most probable one."""
    classes: int = 1
    """How many it stands for."""


def legend(label: Int64[ndarray, "gy gx"], target: int, most: int = 8) -> tuple[Key, ...]:
    """Classes by how many positions they win, most first (of equals the lower number), each with a
    colour; the one watched has the same colour in every figure.  Those beyond ``most`` are one."""
    counts = Counter(label.flatten().tolist())
    ranked = sorted(counts, key=lambda one: (-counts[one], one))
    shown, rest = ranked[:most], ranked[most:]
    if target in rest:  # it is what the figure is about
        rest = [*rest, shown.pop()]
        rest.remove(target)
        shown.append(target)
    free = iter(CLASS_COLOURS)
    total = label.size
    keys = [
        Key(one, TARGET if one == target else next(free, OTHERS), counts[one] / total)
        for one in shown
    ]
    if rest:
        keys.append(Key(None, OTHERS, sum(counts[one] for one in rest) / total, len(rest)))
    return tuple(keys)


def coloured(label: Int64[ndarray, "gy gx"], keys: Sequence[Key]) -> UInt8[ndarray, "gy gx rgb"]:
    """The colour of each position's class."""
    found = np.empty((*label.shape, 3), np.uint8)
    found[:] = OTHERS
    for key in keys:
        if key.label is not None:
            found[label == key.label] = key.colour
    return found
