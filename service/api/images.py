"""Images of a run's data set: what is known of each, and which units it excites most."""

from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from fastapi import Depends, Path, Query, Request

from deconvoy import queries
from deconvoy.errors import RunNotFound
from service import problems
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
from service.api.image_answers import ImageDetails, ImageHit, ImagePage, ImageRow
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
    run = opened(request, run_id).run
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
        images=[_row(run, row) for row in images.slice(offset, size).to_pylist()],
    )


@router.get("/{image}")
def show_image(request: Request, run_id: RunId, image: ImageId) -> ImageDetails:
    """One image, and the units that have it among their strongest."""
    shelved = opened(request, run_id)
    row = image_row(shelved, image)
    found = queries.image(shelved.run, image).slice(0, page_size(request, None))
    hits = found.select(["layer", "unit", "rank", "score"]).to_pylist()
    return ImageDetails(
        **_row(shelved.run, row).model_dump(),
        hits=[ImageHit(**hit) for hit in hits],
        occluded=image in _occluded(shelved),
        picture=link(request, "runs", run_id, "images", f"{image}.jpg", v=shelved.commit),
    )


def image_row(shelved: Shelved, image: int) -> dict[str, Any]:
    """An image's row in the images table.  Raises Problem: there is none of that id."""
    with problems.about("image"):
        found = queries.image_id_of(shelved.run, image)
        row: dict[str, Any] = shelved.run.images_of(pa.array([found]).to_numpy()).to_pylist()[0]
    return row


def _row(run: Any, row: dict[str, Any]) -> ImageRow:
    return ImageRow(
        **row,
        name=run.class_name(row["label"]),
        predicted_class=run.class_name(row["predicted"]),
    )


def _occluded(shelved: Shelved) -> list[int]:
    try:
        ids: list[int] = shelved.run.occluded()["image_id"].to_pylist()
    except RunNotFound:
        return []
    return ids
