"""Take over projections from the run that is extended, where hits have not changed."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from deconvoy.schema import LAYER_ARRAYS, layer_path
from deconvoy.store import RunStore
from workers.job import Job, ProjectionItem
from workers.parts import number_of
from workers.topk import Fold

HITS = ("score", "image", "position")

BY_ITEM = ("patch", "projection", "scale", "projected")
"""Arrays of which a work item writes whole shards or chunks."""


def digest_of(run: RunStore) -> str | None:
    """sha256 of all a run says of itself: what it was made from, and what came out.  None where it
    cannot be read."""
    try:
        attributes = json.loads(run.read("zarr.json"))["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return hashlib.sha256(json.dumps(attributes, sort_keys=True).encode()).hexdigest()


def unchanged(
    job: Job, items: Iterable[ProjectionItem], fold: Fold, old: RunStore, new: RunStore
) -> Iterator[ProjectionItem]:
    """Those whose units all have the hits they had in the old run, and whose arrays are stored
    alike, so that the old bytes can be taken as they are."""
    group = old.zarr()
    tables: dict[str, list[Any]] = {}
    alike = False
    for item in items:
        name = item.layer.name
        if name not in tables:
            stored: Any = group[layer_path(name)]
            tables = {name: [np.asarray(stored[hit][:]) for hit in HITS]}
            alike = _layout(old, name) == _layout(new, name)
        if not alike:
            continue
        rows = job.index.units_of(job.layers.index(item.layer)).start + item.units
        now = fold.score[rows], fold.image[rows], fold.position[rows]
        if all(np.array_equal(t[item.units], n) for t, n in zip(tables[name], now, strict=True)):
            yield item


def _layout(run: RunStore, layer: str) -> list[dict[str, Any]]:
    """Shapes, types, chunks and codecs; a newer Zarr may choose others."""
    group: Any = run.zarr()[layer_path(layer)]
    found = [dict(group[name].metadata.to_dict()) for name in BY_ITEM]
    return [{key: each for key, each in fields.items() if key != "attributes"} for fields in found]


def take_over(item: ProjectionItem, old: RunStore, new: RunStore) -> None:
    """Copy the Zarr shards of an item."""
    number = number_of(item.name)
    for field in LAYER_ARRAYS:
        if field.name in BY_ITEM:
            chunk = "/".join(["c", str(number), *["0"] * (len(field.dims) - 1)])
            path = f"{layer_path(item.layer.name)}/{field.name}/{chunk}"
            if old.exists(path):  # one that holds nothing but fill values is not stored
                new.write(path, old.read(path))
