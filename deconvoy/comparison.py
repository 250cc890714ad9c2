"""Compare two runs of one layout: which hits were kept, which units changed, how scores moved.

Images are matched by their path in the data set, not by their id, so runs of two versions of a data
set compare as well as two sets of weights do.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from deconvoy.errors import RequestError
from deconvoy.run import Run

BASIS = {
    "model_sha256": "weights",
    "listing_fingerprint": "images",
    "transform": "transform",
}
"""What the results of a run depend on most, by its key in the provenance."""


def diff(a: Run, b: Run) -> pa.Table:
    """One row a layer: what became of run ``a`` in run ``b``.

    - ``kept``: share of the hits of ``a``, as pairs of unit and image, that ``b`` has too; null
      where ``a`` has none.
    - ``units_changed``: units whose images are not the same in both.
    - ``dead_before``, ``dead_after``: units no image activates.
    - ``score_change``: mean over the units alive in both of the change of their mean score.

    Raises:
        RequestError: the layouts differ; says in what.
    """
    _require_same_layout(a, b)
    return pa.Table.from_pylist([_row(a, b, layer) for layer in a.layer_names], SCHEMA)


def diff_units(a: Run, b: Run, layer: str) -> pa.Table:
    """One row a unit of a layer, those that changed most first: what became of it in run ``b``.

    - ``kept``: share of its hits in ``a`` whose images it has in ``b``, too; null where it has none
      in ``a``, such units come last.
    - ``score_before``, ``score_after``: its mean score over its hits; null where it has none.

    Raises:
        RequestError: the layouts differ; says in what.
        RunNotFound: no such layer, or its scan is not done.
    """
    _require_same_layout(a, b)
    a.layer_group(layer)
    before, after = _images_by_unit(a, layer), _images_by_unit(b, layer)
    of_a, of_b = (_mean_scores(run, layer, _units(a, layer)).tolist() for run in (a, b))
    rows = [
        {
            "unit": unit,
            "kept": len(before[unit] & after[unit]) / len(before[unit]) if before[unit] else None,
            "score_before": of_a[unit] if before[unit] else None,
            "score_after": of_b[unit] if after[unit] else None,
        }
        for unit in range(_units(a, layer))
    ]
    rows.sort(key=lambda row: 2.0 if row["kept"] is None else row["kept"])
    return pa.Table.from_pylist(rows, UNIT_SCHEMA)


def overall(a: Run, b: Run) -> dict[str, Any]:
    """Accuracy of both, and what of their basis differs."""
    of_a, of_b = a.attributes["provenance"], b.attributes["provenance"]
    return {
        "top1_before": a.top1(),
        "top1_after": b.top1(),
        "differing": [name for key, name in BASIS.items() if of_a.get(key) != of_b.get(key)]
        + ["method of projection"] * (a.spec.method != b.spec.method),
    }


SCHEMA = pa.schema(
    {
        "layer": pa.string(),
        "units": pa.int64(),
        "kept": pa.float64(),
        "units_changed": pa.int64(),
        "dead_before": pa.int64(),
        "dead_after": pa.int64(),
        "score_change": pa.float64(),
    }
)

UNIT_SCHEMA = pa.schema(
    {
        "unit": pa.int32(),
        "kept": pa.float64(),
        "score_before": pa.float64(),
        "score_after": pa.float64(),
    }
)


def _row(a: Run, b: Run, layer: str) -> dict[str, Any]:
    before, after = _pairs(a, layer), _pairs(b, layer)
    units = _units(a, layer)
    alive_before, alive_after = {unit for unit, _ in before}, {unit for unit, _ in after}
    changed = {unit for unit, _ in before ^ after}
    means = _mean_scores(b, layer, units) - _mean_scores(a, layer, units)
    both = sorted(alive_before & alive_after)
    return {
        "layer": layer,
        "units": units,
        "kept": len(before & after) / len(before) if before else None,
        "units_changed": len(changed),
        "dead_before": len(a.dead_units(layer)),
        "dead_after": len(b.dead_units(layer)),
        "score_change": float(means[both].mean()) if both else None,
    }


def _pairs(run: Run, layer: str) -> set[tuple[int, str]]:
    table = run.table(layer)
    return set(zip(table["unit"].to_pylist(), table["uri"].to_pylist(), strict=True))


def _images_by_unit(run: Run, layer: str) -> list[set[str]]:
    """Paths of the images of each unit."""
    found: list[set[str]] = [set() for _ in range(_units(run, layer))]
    for unit, uri in _pairs(run, layer):
        found[unit].add(uri)
    return found


def _mean_scores(run: Run, layer: str, units: int) -> np.ndarray:
    """Mean score of each unit's hits; 0 where it has none."""
    table = run.table(layer)
    unit, score = table["unit"].to_numpy(), table["score"].to_numpy().astype(np.float64)
    hits = np.bincount(unit, minlength=units)
    return np.bincount(unit, score, minlength=units) / np.maximum(hits, 1)


def _units(run: Run, layer: str) -> int:
    return int(str(run.layer_group(layer).attrs["units"]))


def _require_same_layout(a: Run, b: Run) -> None:
    only_a = [name for name in a.layer_names if name not in b.layer_names]
    only_b = [name for name in b.layer_names if name not in a.layer_names]
    parts = [
        f"only {run.url!r} has {_listed(names)}"
        for run, names in ((a, only_a), (b, only_b))
        if names
    ]
    if not parts:
        parts = [
            f"layer {name!r} has {_units(a, name)} units in {a.url!r} and {_units(b, name)} in "
            f"{b.url!r}"
            for name in a.layer_names
            if _units(a, name) != _units(b, name)
        ][:3]
    if not parts and a.spec.top.k != b.spec.top.k:
        parts = [f"{a.url!r} keeps {a.spec.top.k} hits a unit and {b.url!r} {b.spec.top.k}"]
    if parts:
        raise RequestError(
            f"The runs are not of one layout, so they cannot be compared: {'; '.join(parts)}. "
            "Runs of one architecture and the same `layers` can."
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"layer{'s' if len(names) > 1 else ''} {shown}{more}"
