"""Write the group ``correspondence``: some draws of a part a chunk, each with one owner."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from deconvoy.schema import CORRESPONDENCE_ARRAYS, CORRESPONDENCE_GROUP
from deconvoy.store import RunStore
from workers.correspondence_items import DRAWS_AN_ITEM, Corresponding
from workers.writer import create_array, kept_whole


def create_correspondence(
    run: RunStore,
    corresponding: Corresponding,
    layers: Sequence[str],
    side: int,
    images: Int64[np.ndarray, " image"],
) -> None:
    """Make the group, with the images.

    Args:
        side: of the preprocessed images, in pixels.
    """
    group = run.zarr("r+").create_group(CORRESPONDENCE_GROUP, overwrite=True)
    draws = corresponding.spec.random + 1
    shape = (len(corresponding.parts), draws, len(layers))
    for field in CORRESPONDENCE_ARRAYS:
        if field.name == "image":
            create_array(group, field, images.shape, images.shape, None, {})
            kept_whole(group, "image")[...] = images
        else:
            chunk = (1, min(DRAWS_AN_ITEM, draws), len(layers))
            create_array(group, field, shape, chunk, None, {})
    # Last: a group that has them is whole.
    group.attrs.update(
        {
            "parts": list(corresponding.parts),
            "layers": list(layers),
            "fill": list(corresponding.fill),
            "size": [side, side],
        }
    )


def write_draws(
    run: RunStore,
    part: int,
    start: int,
    delta: Float64[np.ndarray, "draw layer"],
    deviation: Float64[np.ndarray, "draw layer"],
) -> None:
    """Write the whole chunk of some draws of a part."""
    group = run.zarr("r+")
    for name, values in (("delta", delta), ("deviation", deviation)):
        array = kept_whole(group, f"{CORRESPONDENCE_GROUP}/{name}")
        array[part, start : start + len(values)] = values
