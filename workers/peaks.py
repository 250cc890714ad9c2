"""The maximum of every map of a batch and its place, in one pass over memory.

For maps on CPUs that lie with their channels last: then many channels are compared at a time, and a
map is read once, where a maximum and a later look for its place would read it twice, and for the
place by single values.  Compiled when first called (``workers.loops``).
"""

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from workers import loops

TYPES = (torch.float32, torch.float64)


def can_find(maps: Tensor) -> bool:
    """Whether maps (image, unit, row, col) lie so in memory."""
    return (
        maps.ndim == 4
        and loops.serve(maps.device)
        and maps.dtype in TYPES
        and maps.permute(0, 2, 3, 1).is_contiguous()
    )


def peaks(
    maps: Float[Tensor, "image unit row col"], rectify: bool = False
) -> tuple[Float[Tensor, "image unit"], Int64[Tensor, "image unit"]]:
    """The maxima, NaN where a map has one, and their places, counted row by row; of equals the
    first.

    Args:
        rectify: set what is below zero to zero first, in place.
    """
    images, units = maps.shape[:2]
    pixels = maps.permute(0, 2, 3, 1).reshape(images, -1, units)
    highest = maps.new_empty(images, units)
    place = torch.empty(images, units, dtype=torch.int32)
    _find(pixels.numpy(), rectify, highest.numpy(), place.numpy())
    return highest, place.long()


@loops.compiled
@no_type_check
def _find(pixels, rectify, highest, place):
    """Pixels are (image, place, unit)."""
    images, places, units = pixels.shape
    invalid = np.zeros(units, np.int32)
    zero = pixels.dtype.type(0)
    for image in range(images):
        best, where = highest[image], place[image]
        best[:] = -np.inf
        where[:] = 0
        invalid[:] = 0
        for at in range(places):
            here = pixels[image, at]
            for unit in range(units):
                value = here[unit]
                if rectify:
                    value = zero if value <= 0 else value  # NaN stays
                    here[unit] = value
                before = best[unit]
                higher = value > before
                best[unit] = value if higher else before
                where[unit] = at if higher else where[unit]
                invalid[unit] |= value != value
        for unit in range(units):
            if invalid[unit]:
                best[unit] = np.nan
