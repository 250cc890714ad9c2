"""Write and read the group ``probe``: some images a chunk, the fits of one layer a chunk, what one
network came to that was trained from scratch a chunk."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from jaxtyping import Bool, Float32, Float64, Int64

from deconvoy.arrays import read
from deconvoy.schema import (
    MISSING_LABEL,
    PROBE_ARRAYS,
    PROBE_FEATURES,
    PROBE_GROUP,
    PROBE_SCRATCH,
    features_path,
)
from deconvoy.spec import ScratchSpec
from deconvoy.store import RunStore
from workers.folds import ProbeFits
from workers.graph import Layer
from workers.pooling import cells, count, told
from workers.writer import create_array, kept_whole

WEIGHTS = ("trained", "random")


def create_probe(
    run: RunStore,
    layers: Sequence[Layer],
    label: Int64[np.ndarray, " image"],
    classes: Sequence[str],
    fits: ProbeFits,
    weights: int,
    shard_size: int,
    pool: str | int,
    features: int,
    scratch: ScratchSpec | None = None,
) -> None:
    """Make the group.

    Args:
        weights: 1, or 2 with random ones.
        shard_size: images of a work item.
        scratch: how the whole network is trained, where it is.
    """
    group = run.zarr("r+").create_group(PROBE_GROUP, overwrite=True)
    images = len(label)
    lengths = {"weights": weights, "image": images, "layer": len(layers)}
    lengths |= dict(zip(("classifier", "size", "fold"), fits.shape, strict=True))
    for field in PROBE_ARRAYS:
        shape = tuple(lengths[dim] for dim in field.dims)
        chunks: tuple[int, ...] = (1, 1, *shape[2:])
        if field.name == "read":
            chunks = (1, min(shard_size, images))
        if field.name == "label":
            chunks = shape
        create_array(group, field, shape, chunks, None, {})
    kept_whole(group, "label")[...] = label
    for name in WEIGHTS[:weights]:
        for layer in layers:
            own = run.zarr("r+").create_group(features_path(name, layer.name), overwrite=True)
            grid = cells(layer, pool, features)
            shape = images, count(layer, grid)
            chunks = min(shard_size, images), shape[1]
            create_array(own, PROBE_FEATURES, shape, chunks, None, {"pooled": told(layer, grid)})
    if scratch:
        create_array(group, PROBE_SCRATCH, fits.shape[1:], (1, 1), None, {})
    # Last: a group that has them is whole.
    group.attrs.update(
        {
            "weights": list(WEIGHTS[:weights]),
            "layers": [layer.name for layer in layers],
            "pooled": [told(layer, cells(layer, pool, features)) for layer in layers],
            "classes": list(classes),
            "classifiers": list(fits.classifiers),
            "train": list(fits.train),
            "test": fits.test,
            "c": fits.c,
            **({"recipe": scratch.model_dump(mode="json")} if scratch else {}),
        }
    )


def write_features(
    run: RunStore, place: str | None, start: int, rows: np.ndarray, weights: int = 0
) -> None:
    """Write the rows of some images; without a place, whether they could be read."""
    root = run.zarr("r+")
    stop = start + len(rows)
    if place is None:
        kept_whole(root, f"{PROBE_GROUP}/read")[weights, start:stop] = rows
    else:
        kept_whole(root, f"{place}/{PROBE_FEATURES.name}")[start:stop] = rows


def read_features(run: RunStore, place: str) -> Float32[np.ndarray, "image feature"]:
    return np.asarray(read(_group(run, place), PROBE_FEATURES.name))


def read_labels(run: RunStore, weights: int) -> Int64[np.ndarray, " image"]:
    """−1 of images that could not be read."""
    group = _group(run, PROBE_GROUP)
    label, there = read(group, "label"), read(group, "read")[weights]
    return np.where(there, label, MISSING_LABEL)


def write_fits(
    run: RunStore,
    weights: int,
    layer: int,
    accuracy: Float64[np.ndarray, "classifier size fold"],
    converged: Bool[np.ndarray, "classifier size fold"],
) -> None:
    root = run.zarr("r+")
    for name, values in (("converged", converged), ("accuracy", accuracy)):
        kept_whole(root, f"{PROBE_GROUP}/{name}")[weights, layer] = values


def write_scratch(run: RunStore, size: int, fold: int, accuracy: float) -> None:
    kept_whole(run.zarr("r+"), f"{PROBE_GROUP}/{PROBE_SCRATCH.name}")[size, fold] = accuracy


def _group(run: RunStore, place: str) -> zarr.Group:
    group: Any = run.zarr()[place]
    assert isinstance(group, zarr.Group)
    return group
