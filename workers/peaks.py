"""The maximum of every map of a batch and its place, in one pass over memory.

For maps on CPUs that lie with their channels last: then many channels are compared at a time, and a
map is read once, where a maximum and a later look for its place would read it twice, and for the
place by single values.  Compiled when first called (``workers.compiled``).
"""

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from workers.compiled import compiled

TYPES = (torch.float32, torch.float64)


def can_find(maps: Tensor) -> bool:
    """Whether maps (image, unit, row, col) lie so in memory."""
    return (
        maps.ndim == 4
        and maps.device.type == "cpu"
        and maps.dtype in TYPES
        and maps.permute(0, 2, 3, 1).is_contiguous()
    )


def peaks(
    maps: Float[Tensor, "image unit row col"],
) -> tuple[Float[Tensor, "image unit"], Int64[Tensor, "image unit"]]:
    """The maxima, NaN where a map has one, and their places, counted row by row; of equals the
    first."""
    images, units = maps.shape[:2]
    pixels = maps.permute(0, 2, 3, 1).reshape(images, -1, units)
    highest = maps.new_empty(images, units)
    place = torch.empty(images, units, dtype=torch.int32)
    _find(pixels.numpy(), highest.numpy(), place.numpy())
    return highest, place.long()


@compiled
@no_type_check
def _find(pixels, highest, place):
    """Pixels are (image, place, unit)."""
    images, places, units = pixels.shape
    invalid = np.zeros(units, np.int32)
    for image in range(images):
        best, where = highest[image], place[image]
        best[:] = pixels[image, 0]
        where[:] = 0
        invalid[:] = 0
        for at in range(places):
            here = pixels[image, at]
            for unit in range(units):
                value = here[unit]
                before = best[unit]
                higher = value > before
                best[unit] = value if higher else before
                where[unit] = at if higher else where[unit]
                invalid[unit] |= value != value
        for unit in range(units):
            if invalid[unit]:
                best[unit] = np.nan
