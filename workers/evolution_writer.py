"""Write the group ``evolution``: tables of every layer, whole Zarr shards of pictures over time.

The driver makes the arrays; a shard of pictures has one owner.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from jaxtyping import Float32, Int32, Int64

from deconvoy.schema import EVOLUTION_ARRAYS, EVOLUTION_GROUP, evolution_path
from deconvoy.spec import Method, StorageSpec
from deconvoy.store import RunStore
from workers.graph import Layer
from workers.pictures import stored_size
from workers.writer import create_array, kept_whole, projection_dtype, units_per_item

FIELDS = {field.name: field for field in EVOLUTION_ARRAYS}


@dataclass(frozen=True)
class Table:
    """What is known of a layer's units over time; the last checkpoint is the end."""

    score: Float32[np.ndarray, "unit checkpoint"]
    image: Int64[np.ndarray, "unit checkpoint"]
    position: Int32[np.ndarray, "unit checkpoint yx"]
    overlap: Float32[np.ndarray, "unit checkpoint"]
    cosine: Float32[np.ndarray, "unit checkpoint"]


def create_evolution(run: RunStore) -> None:
    run.zarr("r+").create_group(EVOLUTION_GROUP, overwrite=True)


def create_layer_evolution(run: RunStore, layer: Layer, table: Table) -> None:
    """Make a layer's group with its tables, one chunk each."""
    group = run.zarr("r+").create_group(evolution_path(layer.name), overwrite=True)
    group.attrs.update({"layer": layer.name, "units": layer.units})
    for name, values in vars(table).items():
        create_array(group, FIELDS[name], values.shape, values.shape, None, {})
        kept_whole(group, name)[...] = values


def create_pictures(
    run: RunStore, layer: Layer, columns: int, storage: StorageSpec, method: Method
) -> None:
    """Make the arrays that work items fill: one unit a chunk, an item a shard."""
    group: Any = run.zarr("r+")[evolution_path(layer.name)]
    assert isinstance(group, zarr.Group)
    height, width = stored_size(layer.field.window_size, storage.max_side)
    item = units_per_item(layer, columns, storage)
    chunk = (1, columns, height, width, 3)
    for name in ("patch", "projection"):
        dtype, told = None, {}
        if name == "projection":
            dtype, told = projection_dtype(storage), {"method": method}
        create_array(
            group, FIELDS[name], (layer.units, *chunk[1:]), chunk, (item, *chunk[1:]), told, dtype
        )
    create_array(group, FIELDS["scale"], (layer.units, columns), (item, columns), None, {})
    create_array(group, FIELDS["projected"], (layer.units,), (item,), None, {})
