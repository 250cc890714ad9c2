"""Tables of a run, a row a hit: the strongest, and what is kept besides them.

``Run.table``, ``Run.examples`` and ``Run.outliers`` say what they hold.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from deconvoy.arrays import read
from deconvoy.errors import RequestError, RunNotFound
from deconvoy.schema import EXAMPLE_KINDS, MISSING_LABEL

if TYPE_CHECKING:
    from deconvoy.run import Run

HIT_TABLES = ("score", "image", "position", "box", "window")
"""A unit's own, but for its labels."""


def hits_of(run: "Run", layer: str) -> pa.Table:
    """The strongest hits of a layer."""
    tables = {name: run.hit_table(layer, name) for name in HIT_TABLES}
    unit, rank = (tables["image"] >= 0).nonzero()
    image = tables["image"][unit, rank]
    label = run.hit_table(layer, "label")[unit, rank]
    position, box = tables["position"][unit, rank], tables["box"][unit, rank]
    columns = {
        "layer": pa.array([layer] * len(unit), pa.string()),
        "unit": unit.astype(np.int32),
        "rank": rank.astype(np.int32),
        "score": tables["score"][unit, rank],
        "image_id": image,
        "uri": run.images_of(image).column("uri"),
        "label": pa.array(label, mask=label == MISSING_LABEL),
        "y": position[:, 0],
        "x": position[:, 1],
        "y0": box[:, 0],
        "x0": box[:, 1],
        "y1": box[:, 2],
        "x1": box[:, 3],
    }
    return pa.table(columns)


def examples_of(run: "Run", layer: str, kind: str) -> pa.Table:
    """Images of one kind that are kept besides."""
    if kind not in EXAMPLE_KINDS:
        raise RequestError(
            f"There are no examples of kind {kind!r}: give one of {', '.join(EXAMPLE_KINDS)}."
        )
    group = run.layer_group(layer)
    if f"{kind}_image" not in group:
        raise RunNotFound(
            f"Layer {layer!r} of {run.url!r} has no examples of kind {kind!r}: ask for them "
            f"with {EXAMPLE_KINDS[kind]} of the top analysis."
        )
    image, score = (read(group, f"{kind}_{name}") for name in ("image", "score"))
    if image.ndim == 2:
        image, score = image[:, None], score[:, None]
    unit, number, rank = (image >= 0).nonzero()
    found = image[unit, number, rank]
    images = run.images_of(found)
    return pa.table(
        {
            "layer": pa.array([layer] * len(unit), pa.string()),
            "unit": unit.astype(np.int32),
            "group": number.astype(np.int32),
            "rank": rank.astype(np.int32),
            "score": score[unit, number, rank],
            "image_id": found,
            "uri": images.column("uri"),
            "label": images.column(run.class_column),
        }
    )


def outliers_of(run: "Run", layer: str) -> pa.Table:
    """Images that a layer's hits leave out."""
    group = run.layer_group(layer)
    asked = run.spec.top.outliers
    if "outlier_image" not in group or asked is None:
        raise RunNotFound(
            f"Layer {layer!r} of {run.url!r} leaves no outliers out: ask for it with outliers "
            "of the top analysis."
        )
    image, norm = read(group, "outlier_image"), read(group, "outlier_norm")
    found = image >= 0
    limit: Any = group.attrs["outlier_limit"]
    images = run.images_of(image[found])
    count = int(found.sum())
    return pa.table(
        {
            "layer": pa.array([layer] * count, pa.string()),
            "rank": np.arange(count, dtype=np.int32),
            "norm": norm[found],
            "median": pa.array([limit and limit / asked.multiple] * count, pa.float64()),
            "image_id": image[found],
            "uri": images.column("uri"),
            "label": images.column(run.class_column),
        }
    )
