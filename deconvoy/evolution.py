"""How features come about in training: what each unit saw at every checkpoint, and when it settled.

Zeiler & Fergus (2013, arXiv:1311.2901), Fig. 4: the strongest activation of a map over the data,
projected, at some epochs of training.  That lower layers converge first they find by eye; here two
curves tell it of every layer: how many of a unit's final strongest images it has already, and how
far its filter has turned to where it ends.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import zarr
from jaxtyping import Bool, Float32, Float64, Int32, Int64
from numpy import ndarray

from deconvoy.arrays import read
from deconvoy.errors import RunNotFound
from deconvoy.figures import UnitPictures
from deconvoy.likeness import nearest
from deconvoy.schema import EVOLUTION_GROUP, evolution_path

if TYPE_CHECKING:
    from deconvoy.run import Run

SETTLED = 0.9
"""A layer has settled where its mean overlap or cosine is so high from then on."""


@dataclass(frozen=True)
class Evolution:
    """A layer's units over time; the last checkpoint is the end, the weights of the run."""

    layer: str
    checkpoints: tuple[str, ...]
    """Weights files, in training order."""
    score: Float32[ndarray, "unit checkpoint"]
    """The strongest activation; −inf where there is none."""
    image: Int64[ndarray, "unit checkpoint"]
    """Its image; −1 where there is none."""
    position: Int32[ndarray, "unit checkpoint yx"]
    overlap: Float32[ndarray, "unit checkpoint"]
    """Share of the final strongest images that are among the strongest now; NaN where there is
    none at the end."""
    cosine: Float32[ndarray, "unit checkpoint"]
    """Between the filter now and at the end; NaN where the layer has no filter of its own."""
    projected: Bool[ndarray, " unit"]
    """Whether it has pictures."""
    _run: "Run"

    @property
    def names(self) -> tuple[str, ...]:
        """Of the checkpoints, in short."""
        return short_names(self.checkpoints)

    @property
    def curves(self) -> dict[str, Float64[ndarray, " checkpoint"]]:
        """``overlap`` and ``cosine``, each the mean over the units that have one; NaN where none
        has."""
        return {name: _means(getattr(self, name)) for name in ("overlap", "cosine")}

    def pictures(self, unit: int) -> UnitPictures:
        """What a unit saw at each checkpoint: patches and projections, in units of the normalised
        input.

        Raises:
            RunNotFound: there is no such unit, or it was not projected.
        """
        units = len(self.score)
        if not 0 <= unit < units:
            raise RunNotFound(
                f"Layer {self.layer!r} has units 0 to {units - 1}, so there is no unit {unit}."
            )
        if not self.projected[unit]:
            raise RunNotFound(
                f"Unit {unit} of layer {self.layer!r} has no pictures over time in "
                f"{self._run.url!r}: analyses.evolution of the spec says which have, by its layers "
                "and its units."
            )
        group = _layer_group(self._run, self.layer)
        scale = read(group, "scale", unit).astype(np.float32)
        projections = read(group, "projection", unit).astype(np.float32)
        return UnitPictures(
            self.layer,
            unit,
            self.score[unit],
            (),
            read(group, "patch", unit),
            projections * scale[:, None, None, None],
            self._run.output_name(self.layer, unit),
        )


def short_names(checkpoints: Sequence[str]) -> tuple[str, ...]:
    """Names of files without folders and suffixes, where they still differ."""
    stems = tuple(PurePosixPath(path).stem for path in checkpoints)
    return stems if len(set(stems)) == len(stems) else tuple(checkpoints)


def _means(values: Float32[ndarray, "unit checkpoint"]) -> Float64[ndarray, " checkpoint"]:
    known = ~np.isnan(values)
    counted = known.sum(0)
    total = np.where(known, values, 0).sum(0, dtype=np.float64)
    return np.where(counted > 0, total / np.maximum(1, counted), np.nan)


def settled(curve: Sequence[float], share: float = SETTLED) -> int | None:
    """The checkpoint from which on a curve stays at ``share`` or above; None where it is not known
    (NaN)."""
    found = None
    for checkpoint in reversed(range(len(curve))):
        if not curve[checkpoint] >= share:
            break
        found = checkpoint
    return found


def evolution_of(run: "Run", layer: str) -> Evolution:
    """One layer's.

    Raises:
        RunNotFound: the run has no such analysis, or not of this layer.
    """
    group, told = _layer_group(run, layer), _told(run)
    tables = {
        name: read(group, name) for name in ("score", "image", "position", "overlap", "cosine")
    }
    projected = np.zeros(len(tables["score"]), bool)
    if "projected" in group:
        projected = read(group, "projected")
    return Evolution(layer, tuple(told["checkpoints"]), projected=projected, _run=run, **tables)


def evolved_layers(run: "Run") -> tuple[str, ...]:
    """Those the evolution is known of, in execution order.

    Raises:
        RunNotFound: the run has no such analysis.
    """
    return tuple(_told(run)["layers"])


def curves_of(run: "Run", layers: Sequence[str]) -> pa.Table:
    """One row a layer and checkpoint: layer, number, checkpoint, overlap, cosine (means over the
    units)."""
    rows = []
    for layer in layers:
        found = evolution_of(run, layer)
        curves = found.curves
        rows += [
            {
                "layer": layer,
                "number": number,
                "checkpoint": name,
                "overlap": _known(float(curves["overlap"][number])),
                "cosine": _known(float(curves["cosine"][number])),
            }
            for number, name in enumerate(found.names)
        ]
    return pa.Table.from_pylist(
        rows,
        pa.schema(
            {
                "layer": pa.string(),
                "number": pa.int64(),
                "checkpoint": pa.string(),
                "overlap": pa.float64(),
                "cosine": pa.float64(),
            }
        ),
    )


def settling_of(run: "Run", share: float = SETTLED) -> pa.Table:
    """One row a layer: the checkpoints from which on overlap and cosine stay at ``share`` or
    above."""
    rows = []
    for layer in evolved_layers(run):
        found = evolution_of(run, layer)
        row: dict[str, Any] = {"layer": layer}
        for name, curve in found.curves.items():
            number = settled(curve.tolist(), share)
            row |= {name: None if number is None else found.names[number], f"{name}_at": number}
        rows.append(row)
    fields = {"layer": pa.string()}
    for name in ("overlap", "cosine"):
        fields |= {name: pa.string(), f"{name}_at": pa.int64()}
    return pa.Table.from_pylist(rows, pa.schema(fields))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _told(run: "Run") -> dict[str, Any]:
    group = run.group_at(EVOLUTION_GROUP)
    if group is None or "layers" not in group.attrs:
        remedy = "an analysis of kind evolution in the spec asks for it."
        if run.status != "done" and run.spec.evolution is not None:
            remedy = f"the run is {run.status}."
        raise RunNotFound(f"The run {run.url!r} has no evolution: {remedy}")
    return dict(group.attrs.asdict())


def _layer_group(run: "Run", layer: str) -> zarr.Group:
    layers = _told(run)["layers"]
    if layer not in layers:
        raise RunNotFound(f"The evolution has no layer {layer!r}; {nearest(layer, layers)}.")
    group = run.group_at(evolution_path(layer))
    assert group is not None
    return group
