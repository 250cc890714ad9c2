"""Write what occlusion finds: the group ``occlusion``, one image a chunk; of layers, one unit a
chunk.

The driver makes the arrays, then each chunk has one owner.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr

from deconvoy.schema import OCCLUSION_ARRAYS, UNIT_OCCLUSION, layer_path
from deconvoy.spec import StorageSpec
from deconvoy.store import RunStore
from workers import groups
from workers.grids import Grid
from workers.occlusion_items import UNITS_AN_ITEM, Occluding, UnitSquares
from workers.pictures import stored_size
from workers.writer import create_array, kept_whole, projection_dtype

GROUP = "occlusion"

MOST_PROBABLE = 5


def shapes(
    grid: Grid, side: int, layers: int, outputs: int, images: int, boxes: int, storage: StorageSpec
) -> dict[str, int]:
    """Length of every axis of the group's arrays."""
    height, width = stored_size((side, side), storage.max_side)
    return {
        "image": images,
        "gy": len(grid.y),
        "gx": len(grid.x),
        "layer": layers,
        "rank": min(MOST_PROBABLE, outputs),
        "y": height,
        "x": width,
        "channel": 3,
        "box": boxes,
        "y0x0y1x1": 4,
    }


def array_names(top5: bool, boxes: bool) -> tuple[str, ...]:
    """Those that a work item writes, ``image`` last."""
    names = [field.name for field in OCCLUSION_ARRAYS if field.name not in ("y", "x", "image")]
    left_out = {"box"} if not boxes else set()
    left_out |= {"top5", "top5_probability"} if not top5 else set()
    return (*(name for name in names if name not in left_out), "image")


def create_group(
    run: RunStore,
    occluding: Occluding,
    lengths: Mapping[str, int],
    layers: Sequence[str],
    side: int,
    labels: str,
    storage: StorageSpec,
) -> None:
    """Make the group with its grid, and arrays to be filled an image each.

    Args:
        lengths: of the axes, as ``shapes`` gives them; without boxes where that of ``box`` is 0.
        labels: what targets are, as in the attributes of the run.
    """
    grid = occluding.grid
    names = (*array_names(occluding.spec.top5, bool(lengths["box"])), "y", "x")
    groups.create_group(
        run,
        GROUP,
        [field for field in OCCLUSION_ARRAYS if field.name in names],
        lengths,
        {"y": grid.y, "x": grid.x},
        {
            "patch": grid.patch[0],
            "stride": grid.stride,
            "fill": list(occluding.fill),
            "size": [side, side],
            "layers": list(layers),
            "labels": labels,
            "boxes": lengths["box"],
        },
        {"projection": projection_dtype(storage)},
        # Whatever the method of the hits' projections is.
        {"projection": {"method": "deconvnet"}},
    )


def create_unit_array(
    run: RunStore, layer: str, units: int, k: int, squares: UnitSquares, fill: Sequence[float]
) -> None:
    """Make a layer's array: one unit a chunk, an item a shard."""
    chunk = (1, k, *squares.shape)
    shard = (min(UNITS_AN_ITEM, units), *chunk[1:])
    told = {"patch": squares.patch, "stride": squares.stride, "fill": list(fill)}
    group = _group(run, layer_path(layer))
    create_array(group, UNIT_OCCLUSION, (units, *chunk[1:]), chunk, shard, told)


def write_units(run: RunStore, layer: str, start: int, values: np.ndarray) -> None:
    """Write the whole shard of the units from ``start`` on."""
    array = kept_whole(_group(run, layer_path(layer)), UNIT_OCCLUSION.name)
    array[start : start + len(values)] = values


def _group(run: RunStore, path: str) -> zarr.Group:
    group: Any = run.zarr("r+")[path]
    assert isinstance(group, zarr.Group)
    return group
