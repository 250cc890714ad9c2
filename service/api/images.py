"""Images of a run's data set: what is known of each, and which units it excites most."""

from collections.abc import Iterator
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from fastapi import Depends, Path, Query, Request

from deconvoy import queries
from service import photographs, problems
from service.api.asking import (
    KNOWN_PARAMETERS,
    Limit,
    Offset,
    RunId,
    link,
    next_page,
    opened,
    page_size,
)
from service.api.image_answers import ImageDetails, ImageHit, ImagePage, ImageRow, LayerCount
from service.api.routing import Routes
from service.auth import Scope, requires
from service.shelf import Shelved

router = Routes(
    prefix="/v1/runs/{run_id}/images",
    tags=["images"],
    dependencies=[Depends(requires(Scope.read)), KNOWN_PARAMETERS],
)

ImageId = Annotated[
    int, Path(ge=0, lt=2**63, description="Id of an image of the run.", examples=[1203])
]


@router.get("")
def list_images(
    request: Request,
    run_id: RunId,
    text: Annotated[
        str | None,
        Query(
            max_length=2000, description="Only those with this in their path.", examples=["n021"]
        ),
    ] = None,
    label: Annotated[
        str | None,
        Query(
            max_length=200,
            description="Only those of this class: its name or index.",
            examples=["tabby"],
        ),
    ] = None,
    skipped: Annotated[
        bool | None,
        Query(description="Only those left out as unreadable, or only others.", examples=[False]),
    ] = None,
    offset: Offset = 0,
    limit: Limit = None,
) -> ImagePage:
    """A page of the images, in reading order."""
    size = page_size(request, limit)
    shelved = opened(request, run_id)
    run = shelved.run
    images = run.images()
    if text is not None:
        images = images.filter(pc.match_substring(images["uri"], text))
    if label is not None:
        with problems.about("label"):
            wanted = queries.class_index(run, label)
        images = images.filter(pc.equal(images["label"], wanted))
    if skipped is not None:
        left_out = pc.is_valid(images["skipped"])
        images = images.filter(left_out if skipped else pc.invert(left_out))
    total = images.num_rows
    return ImagePage(
        total=total,
        offset=offset,
        next=next_page(request, offset, size, total),
        images=_rows(request, shelved, images.slice(offset, size).to_pylist()),
    )


@router.get("/{image}")
def show_image(
    request: Request,
    run_id: RunId,
    image: ImageId,
    layer: Annotated[
        str | None,
        Query(
            description="Only hits of this layer.", examples=["features.12.expand3x3_activation"]
        ),
    ] = None,
    each: Annotated[
        int | None,
        Query(
            ge=1,
            le=2**31,
            description="Hits of a layer at most; default: a page of them.",
            examples=[9],
        ),
    ] = None,
) -> ImageDetails:
    """One image, and the units that have it among their strongest."""
    shelved = opened(request, run_id)
    row = image_row(shelved, image)
    size = page_size(request, each, "each")
    if layer is not None:
        with problems.about("layer"):
            shelved.run.layer_group(layer)
    names = shelved.run.layer_names if layer is None else (layer,)
    by_layer = {name: queries.image(shelved.run, image, name) for name in names}
    there = {name: found for name, found in by_layer.items() if found.num_rows}
    return ImageDetails(
        **_rows(request, shelved, [row])[0].model_dump(),
        hits=[hit for name, found in there.items() for hit in _hits(shelved, name, found, size)],
        layers=[LayerCount(layer=name, units=found.num_rows) for name, found in there.items()],
        occluded=image in photographs.occluded(shelved.run),
    )


def _hits(shelved: Shelved, layer: str, found: pa.Table, size: int) -> Iterator[ImageHit]:
    projected = shelved.run.projected_flags(layer)
    for hit in found.slice(0, size).select(["layer", "unit", "rank", "score"]).to_pylist():
        there = projected is not None and bool(projected[hit["unit"]])
        yield ImageHit(**hit, projected=there)


def image_row(shelved: Shelved, image: int) -> dict[str, Any]:
    """An image's row in the images table.  Raises Problem: there is none of that id."""
    with problems.about("image"):
        found = queries.image_id_of(shelved.run, image)
        row: dict[str, Any] = shelved.run.images_of(pa.array([found]).to_numpy()).to_pylist()[0]
    return row


def _rows(request: Request, shelved: Shelved, rows: list[dict[str, Any]]) -> list[ImageRow]:
    run, settings = shelved.run, request.app.state.settings
    images = [(row["id"], row["uri"]) for row in rows]
    drawable = photographs.drawable(run, images, settings)

    def picture(image: int) -> str:
        return link(request, "runs", shelved.id, "images", f"{image}.jpg", v=shelved.commit)

    return [
        ImageRow(
            **row,
            name=run.class_name(row["label"]),
            predicted_class=run.class_name(row["predicted"]),
            picture=picture(row["id"]) if row["id"] in drawable else None,
        )
        for row in rows
    ]
