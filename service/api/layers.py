"""Layers of a run, their units, and one unit with its hits."""

from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Depends, Query, Request, Response
from jaxtyping import Int64
from starlette.concurrency import run_in_threadpool

from deconvoy import queries
from deconvoy.errors import RunNotFound
from deconvoy.schema import histogram_edges
from service import problems
from service.api.answers import (
    Answer,
    ClassCount,
    HistogramBin,
    Hit,
    LayerList,
    LayerRow,
    Pictures,
    UnitDetails,
    UnitPage,
    UnitRow,
)
from service.api.asking import (
    KNOWN_PARAMETERS,
    Layer,
    Limit,
    Offset,
    RunId,
    UnitNumber,
    link,
    next_page,
    opened,
    page_size,
)
from service.api.routing import Routes
from service.auth import Scope, requires
from service.hits import LayerHits
from service.shelf import Shelf, Shelved

router = Routes(
    prefix="/v1/runs/{run_id}/layers",
    tags=["layers"],
    dependencies=[Depends(requires(Scope.read)), KNOWN_PARAMETERS],
)

Order = Literal["unit", "score", "density", "purity"]


@router.get("")
def list_layers(request: Request, run_id: RunId) -> LayerList:
    """All layers of a run, in execution order."""
    rows = opened(request, run_id).layers.rows()
    return LayerList(layers=[LayerRow(**row) for row in rows])


@router.get("/{layer:path}/units", response_model=UnitPage)
def list_units(
    request: Request,
    run_id: RunId,
    layer: Layer,
    dead: Annotated[
        bool | None,
        Query(description="Only units that no image activates, or only others.", examples=[False]),
    ] = None,
    projected: Annotated[
        bool | None, Query(description="Only units with pictures, or only others.", examples=[True])
    ] = None,
    label: Annotated[
        str | None,
        Query(
            max_length=200,
            description="Only units whose commonest class this is: its name or index.",
            examples=["tabby"],
        ),
    ] = None,
    order: Annotated[
        Order,
        Query(
            description="By number, or first those that are strongest, that most images activate, "
            "or whose hits agree most in class.",
            examples=["score"],
        ),
    ] = "unit",
    offset: Offset = 0,
    limit: Limit = None,
) -> Response:
    """A page of a layer's units: what a grid of them needs."""
    size = page_size(request, limit)
    shelved = opened(request, run_id)
    hits = layer_hits(shelved, layer)
    wanted = None
    if label is not None:
        with problems.about("label"):
            wanted = queries.class_index(shelved.run, label)
    units = _chosen(hits, dead, projected, wanted, order)
    shown = units[offset : offset + size].tolist()
    page = UnitPage(
        layer=layer,
        total=len(units),
        offset=offset,
        next=next_page(request, offset, size, len(units)),
        units=[_row(request, shelved, hits, unit) for unit in shown],
    )
    return _sent(page)


@router.get("/{layer:path}/units/{unit}", response_model=UnitDetails)
async def show_unit(request: Request, run_id: RunId, layer: Layer, unit: UnitNumber) -> Response:
    """One unit with its strongest hits."""
    shelf: Shelf = request.app.state.shelf
    shelved = shelf.at_hand(run_id)
    hits = None if shelved is None else shelved.layers.at_hand(layer)
    if shelved is not None and hits is not None:
        # Under load the way to another thread and back takes longer than this.
        return _unit(request, run_id, shelved, hits, unit)
    return await run_in_threadpool(_read_unit, request, run_id, layer, unit)


@router.get("/{layer:path}")
def show_layer(request: Request, run_id: RunId, layer: Layer) -> LayerRow:
    """One layer."""
    shelved = opened(request, run_id)
    with problems.about("layer"):
        shelved.run.layer_group(layer)
        for row in shelved.layers.rows():
            if row["layer"] == layer:
                return LayerRow(**row)
        raise RunNotFound(f"Layer {layer!r} of {shelved.url!r} has no results yet.")


# -- parts -----------------------------------------------------------------------------------------


def _read_unit(request: Request, run_id: str, layer: str, unit: int) -> Response:
    shelved = opened(request, run_id)
    return _unit(request, run_id, shelved, layer_hits(shelved, layer), unit)


def _unit(request: Request, run_id: str, shelved: Shelved, hits: LayerHits, unit: int) -> Response:
    layer = hits.layer
    with problems.about("unit"):
        hits.require(unit)
    details = UnitDetails(
        run=run_id,
        layer=layer,
        unit=unit,
        units=hits.units,
        ranks=int(hits.window.shape[1]),
        name=shelved.run.output_name(layer, unit),
        dead=hits.dead(unit),
        mean=float(hits.mean[unit]),
        density=float(hits.density[unit]),
        histogram=_histogram(hits, unit),
        labels=shelved.run.labels,
        classes=_classes(shelved, hits, unit),
        hits=[_hit(shelved, hits, row) for row in hits.rows(unit)],
        pictures=_pictures(request, shelved, hits, unit),
    )
    return _sent(details)


def _sent(answer: Answer) -> Response:
    """As FastAPI would send it, but that checks every answer once more, in another thread: a third
    of the time of what is asked for most often."""
    return Response(answer.model_dump_json(by_alias=True), media_type="application/json")


def layer_hits(shelved: Shelved, layer: str) -> LayerHits:
    """The tables of a layer.  Raises Problem: there is no such layer."""
    with problems.about("layer"):
        return shelved.layers.hits(layer)


def _chosen(
    hits: LayerHits, dead: bool | None, projected: bool | None, label: int | None, order: Order
) -> Int64[np.ndarray, " unit"]:
    wanted = np.ones(hits.units, bool)
    if dead is not None:
        silent = (hits.first[:-1] == hits.first[1:]) & (hits.density == 0)
        wanted &= silent == dead
    if projected is not None:
        wanted &= hits.projected == projected
    if label is not None:
        wanted &= hits.commonest[:, 0] == label
    units = np.flatnonzero(wanted)
    if order == "unit":
        return units
    by = {"score": hits.scores, "density": hits.density, "purity": hits.purity}[order]
    return units[np.argsort(-by[units], kind="stable")]


def _row(request: Request, shelved: Shelved, hits: LayerHits, unit: int) -> UnitRow:
    empty = hits.empty(unit)
    return UnitRow(
        unit=unit,
        name=shelved.run.output_name(hits.layer, unit),
        dead=hits.dead(unit),
        score=None if empty else float(hits.scores[unit]),
        hits=int(hits.first[unit + 1] - hits.first[unit]),
        density=float(hits.density[unit]),
        classes=_classes(shelved, hits, unit),
        pictures=_pictures(request, shelved, hits, unit),
    )


def _classes(shelved: Shelved, hits: LayerHits, unit: int) -> list[ClassCount]:
    name = shelved.run.class_name
    return [ClassCount(label=n, name=name(n), count=count) for n, count in hits.classes(unit)]


def _histogram(hits: LayerHits, unit: int) -> list[HistogramBin]:
    """The bins from the first to the last that has an image."""
    counts, edges = hits.histogram[unit], histogram_edges()
    there = np.flatnonzero(counts)
    first, last = (int(there[0]), int(there[-1])) if len(there) else (0, -1)
    bounds = [bound if np.isfinite(bound) else None for bound in edges.tolist()]
    return [
        HistogramBin(low=bounds[n], high=bounds[n + 1], images=int(counts[n]))
        for n in range(first, last + 1)
    ]


def _hit(shelved: Shelved, hits: LayerHits, row: dict[str, Any]) -> Hit:
    return Hit(
        rank=row["rank"],
        score=row["score"],
        image=row["image_id"],
        uri=row["uri"],
        label=row["label"],
        name=shelved.run.class_name(row["label"]),
        y=row["y"],
        x=row["x"],
        box=[row[side] for side in ("y0", "x0", "y1", "x1")],
        window=hits.window[row["unit"], row["rank"]].tolist(),
    )


def _pictures(request: Request, shelved: Shelved, hits: LayerHits, unit: int) -> Pictures | None:
    if not hits.projected[unit]:
        return None
    place = link(request, "runs", shelved.id, "layers", hits.layer, "units", f"{unit}.png")
    shown = ("both", "projection", "patch")
    return Pictures(**{show: f"{place}?show={show}&v={shelved.commit}" for show in shown})
