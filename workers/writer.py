"""Write a run: its group, the tables of a layer, and whole Zarr shards of pictures.

A Zarr shard has one owner, and every array is created by the driver before an actor writes into it.
Layout and meaning come from ``deconvoy.schema``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from jaxtyping import Float32, Int32, Int64
from zarr.codecs import ZstdCodec

from deconvoy.schema import (
    LAYER_ARRAYS,
    OUTLIER_ARRAYS,
    ArrayField,
    histogram_edges,
    layer_path,
)
from deconvoy.spec import Method, StorageSpec
from deconvoy.store import RunStore
from workers.examples import Ranking
from workers.graph import Layer
from workers.outliers import LeftOut
from workers.pictures import stored_size
from workers.tables import Arrays, example_fields, outlier_arrays, outlier_limit, sum_arrays
from workers.topk import BINS, UnitSums

ITEM_BYTES = 16 * 2**20
"""Pictures of one work item before compression: a Zarr shard is read and written whole."""

ITEM_UNITS = 64
"""At most so many units an item, so that a layer of tiny pictures still is shared among workers."""

CODEC = ZstdCodec(level=3, checksum=True)


def units_per_item(layer: Layer, k: int, storage: StorageSpec) -> int:
    """Units in one Zarr shard of pictures; from the layer and the spec alone."""
    height, width = stored_size(layer.field.window_size, storage.max_side)
    bytes_each = k * height * width * 3 * (1 + projection_dtype(storage).itemsize)
    return max(1, min(ITEM_UNITS, ITEM_BYTES // bytes_each, layer.units))


def projection_dtype(storage: StorageSpec) -> np.dtype[Any]:
    return np.dtype(storage.projection)


def create_layer(run: RunStore, layer: Layer, k: int) -> None:
    """Make the group of a layer and its tables, without pictures."""
    group = run.zarr("r+").require_group(layer_path(layer.name))
    group.attrs.update(layer_attributes(layer))
    sizes = {"unit": layer.units, "rank": k, "yx": 2, "y0x0y1x1": 4, "bin": BINS}
    for field in LAYER_ARRAYS:
        if field.pictures or field.name in ("scale", "projected"):
            continue
        shape = tuple(sizes[dim] for dim in field.dims)
        attributes = {"edges": _finite(histogram_edges())} if field.name == "histogram" else {}
        create_array(group, field, shape, shape, None, attributes)


def create_pictures(
    run: RunStore, layer: Layer, k: int, storage: StorageSpec, method: Method
) -> None:
    """Make the arrays the projection's work items write: one unit a chunk, an item a shard."""
    group = run.zarr("r+")[layer_path(layer.name)]
    assert isinstance(group, zarr.Group)
    height, width = stored_size(layer.field.window_size, storage.max_side)
    item = units_per_item(layer, k, storage)
    for field in LAYER_ARRAYS:
        if field.pictures:
            chunk = (1, k, height, width, 3)
            shape, shard = (layer.units, *chunk[1:]), (item, *chunk[1:])
            dtype, attributes = None, {}
            if field.name == "projection":
                dtype, attributes = projection_dtype(storage), {"method": method}
            create_array(group, field, shape, chunk, shard, attributes, dtype)
    by_name = {field.name: field for field in LAYER_ARRAYS}
    create_array(group, by_name["scale"], (layer.units, k), (item, k), None, {})
    create_array(group, by_name["projected"], (layer.units,), (item,), None, {})


def create_array(
    group: zarr.Group,
    field: ArrayField,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None,
    attributes: Mapping[str, Any],
    dtype: np.dtype[Any] | None = None,
) -> None:
    """Make an array of the schema, over an older one if there is one."""
    group.create_array(
        field.name,
        shape=shape,
        chunks=chunks,
        shards=shards,
        dtype=dtype or field.dtype,
        fill_value=field.fill,
        compressors=CODEC,
        dimension_names=field.dims,
        attributes={"unit": field.unit, "meaning": field.meaning, **attributes},
        overwrite=True,
    )


def _finite(edges: np.ndarray) -> list[Any]:
    """JSON has no infinity."""
    return [str(edge) if np.isinf(edge) else float(edge) for edge in edges]


def layer_attributes(layer: Layer) -> dict[str, Any]:
    """What the attributes of a layer's group say."""
    rows, cols = layer.field.rows.nominal, layer.field.cols.nominal
    window = layer.field.window_size
    whole = window == layer.field.image
    return {
        "layer": layer.name,
        "op": layer.op,
        "units": layer.units,
        "height": layer.height,
        "width": layer.width,
        "rectified": layer.rectified,
        "receptive_field": {
            "size": list(window) if whole or not rows or not cols else [rows.size, cols.size],
            "nominal_size": [rows.size, cols.size] if rows and cols else None,
            "stride": [rows.stride, cols.stride] if rows and cols else None,
            "offset": [rows.offset, cols.offset] if rows and cols else None,
            "whole_image": whole,
        },
        "projectable": layer.obstacle is None,
        "obstacle": layer.obstacle,
    }


def write_hits(
    run: RunStore,
    layer: Layer,
    score: Float32[np.ndarray, "unit rank"],
    image: Int64[np.ndarray, "unit rank"],
    label: Int64[np.ndarray, "unit rank"],
    position: Int32[np.ndarray, "unit rank yx"],
    sums: UnitSums,
    images: int,
) -> None:
    """Write the tables of a layer; ``images`` is the number of readable ones."""
    found = image >= 0
    places = np.where(found[..., None], position, 0).reshape(-1, 2).astype(np.int64)
    shape = (*image.shape, 4)
    none = ~found[..., None]
    box = np.where(none, 0, layer.field.boxes(places).reshape(shape))
    window = np.where(none, 0, layer.field.windows(places).reshape(shape))
    values = {
        "score": score,
        "image": image,
        "label": label,
        "position": position,
        "box": box,
        "window": window,
        **sum_arrays(sums, images),
    }
    group = run.zarr("r+")
    for name, value in values.items():
        _array(group, layer.name, name)[...] = value


def write_examples(run: RunStore, layer: Layer, ranking: Ranking, arrays: Arrays) -> None:
    """Write what a ranking has kept for a layer."""
    _write_new(run, layer, example_fields(ranking), arrays)


def write_outliers(run: RunStore, layer: Layer, outliers: LeftOut, at_most: int) -> None:
    """Write which images a layer's hits leave out."""
    _write_new(run, layer, OUTLIER_ARRAYS, outlier_arrays(outliers, at_most))
    run.zarr("r+")[layer_path(layer.name)].attrs.update({"outlier_limit": outlier_limit(outliers)})


def _write_new(run: RunStore, layer: Layer, fields: Sequence[ArrayField], arrays: Arrays) -> None:
    group = run.zarr("r+")[layer_path(layer.name)]
    assert isinstance(group, zarr.Group)
    for field in fields:
        values = arrays[field.name]
        create_array(group, field, values.shape, values.shape, None, {})
        _array(run.zarr("r+"), layer.name, field.name)[...] = values


def empty_pictures(
    layer: Layer, units: int, ranks: int, storage: StorageSpec
) -> dict[str, np.ndarray]:
    """Room for the pictures of so many units: patch, projection, scale, projected."""
    size = stored_size(layer.field.window_size, storage.max_side)
    shape = (units, ranks, *size, 3)  # grey fills all three alike
    return {
        "patch": np.zeros(shape, np.uint8),
        "projection": np.zeros(shape, projection_dtype(storage)),
        "scale": np.zeros(shape[:2], np.float32),
        "projected": np.zeros(units, bool),
    }


def write_pictures(
    run: RunStore, path: str, start: int, stop: int, arrays: Mapping[str, np.ndarray]
) -> None:
    """Write the whole shards of units ``start`` to ``stop`` of a group."""
    group = run.zarr("r+")
    for name, values in arrays.items():
        kept_whole(group, f"{path}/{name}")[start:stop] = values


def _array(group: zarr.Group, layer: str, name: str) -> zarr.Array[Any]:
    return kept_whole(group, f"{layer_path(layer)}/{name}")


def kept_whole(group: zarr.Group, path: str) -> zarr.Array[Any]:
    """An array to write to."""
    array = group[path]
    assert isinstance(array, zarr.Array)
    # Zarr leaves out chunks that are all fill; then "nothing" and "lost" would look the same.
    return array.with_config({"write_empty_chunks": True})
