"""Two runs of one layout side by side: what became of the first in the other."""

from typing import Annotated

from fastapi import Depends, Path, Query, Request
from pydantic import Field

from deconvoy import queries
from service import problems
from service.api.answers import LAYER, Answer, example_of
from service.api.asking import (
    KNOWN_PARAMETERS,
    Layer,
    Limit,
    Offset,
    RunId,
    next_page,
    opened,
    page_size,
)
from service.api.routing import Routes
from service.auth import Scope, requires

router = Routes(
    prefix="/v1/runs/{run_id}/diff",
    tags=["tables"],
    dependencies=[Depends(requires(Scope.read)), KNOWN_PARAMETERS],
)

OtherId = Annotated[
    str, Path(description="Id of the run after.", examples=["squeeze-photos-tuned"])
]

_LAYER = {
    "layer": LAYER["layer"],
    "units": 256,
    "kept": 0.42,
    "units_changed": 250,
    "dead_before": 0,
    "dead_after": 1,
    "score_change": -0.31,
}
_UNIT = {"unit": 42, "kept": 0.0, "score_before": 31.5, "score_after": 12.25}


class LayerChange(Answer):
    """What became of a layer."""

    model_config = example_of(**_LAYER)

    layer: str
    units: int
    kept: float | None
    """Share of the hits before that are there after, too."""
    units_changed: int
    """Units whose images are not the same in both."""
    dead_before: int
    dead_after: int
    score_change: float | None
    """Of the units alive in both: by how much their mean score changed, in the mean."""


class Diff(Answer):
    """What became of one run in another."""

    model_config = example_of(
        before="squeeze-photos",
        after="squeeze-photos-tuned",
        differing=["weights"],
        top1_before=0.5624,
        top1_after=0.6112,
        layers=[_LAYER],
    )

    before: str
    after: str
    differing: list[str]
    """Of weights, images and transform, what is not the same."""
    top1_before: float | None
    top1_after: float | None
    layers: list[LayerChange]


class UnitChange(Answer):
    """What became of a unit."""

    model_config = example_of(**_UNIT)

    unit: int
    kept: float | None
    """Share of its hits before whose images it has after, too; null where it had none."""
    score_before: float | None
    """Its mean score over its hits."""
    score_after: float | None


class UnitChanges(Answer):
    """Units of a layer, those that changed most first."""

    model_config = example_of(layer=LAYER["layer"], total=256, offset=0, next=None, units=[_UNIT])

    layer: str
    total: int
    offset: int
    next: str | None = Field(description="Where the next page is.")
    units: list[UnitChange]


@router.get("/{other_id}")
def show_diff(request: Request, run_id: RunId, other_id: OtherId) -> Diff:
    """What became of a run, layer by layer; hits are matched by the paths of their images."""
    before, after = opened(request, run_id).run, opened(request, other_id, "other_id").run
    with problems.about("other_id"):
        layers = queries.diff(before, after).to_pylist()
        overall = queries.overall(before, after)
    return Diff(
        before=run_id,
        after=other_id,
        layers=[LayerChange(**row) for row in layers],
        **overall,
    )


@router.get("/{other_id}/{layer:path}")
def show_unit_diff(
    request: Request,
    run_id: RunId,
    other_id: OtherId,
    layer: Layer,
    changed: Annotated[
        bool | None,
        Query(
            description="Only units whose images are not the same, or only others.",
            examples=[True],
        ),
    ] = None,
    offset: Offset = 0,
    limit: Limit = None,
) -> UnitChanges:
    """What became of the units of one layer."""
    size = page_size(request, limit)
    before, after = opened(request, run_id).run, opened(request, other_id, "other_id").run
    with problems.about("layer"):
        before.layer_group(layer)
    with problems.about("other_id"):
        rows = queries.diff_units(before, after, layer).to_pylist()
    if changed is not None:
        rows = [row for row in rows if (row["kept"] not in (None, 1.0)) == changed]
    return UnitChanges(
        layer=layer,
        total=len(rows),
        offset=offset,
        next=next_page(request, offset, size, len(rows)),
        units=[UnitChange(**row) for row in rows[offset : offset + size]],
    )
