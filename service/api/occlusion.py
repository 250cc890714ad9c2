"""What a grey square hides from the model: the images it was slid over, and the panels of each."""

from typing import Annotated

from fastapi import Depends, Query, Request

from deconvoy.errors import RequestError
from deconvoy.likeness import nearest
from service import problems
from service.api.asking import KNOWN_PARAMETERS, RunId, link, opened
from service.api.image_answers import OcclusionDetails, OcclusionList, OcclusionRow, Watched
from service.api.images import ImageId
from service.api.routing import Routes
from service.auth import Scope, requires

router = Routes(
    prefix="/v1/runs/{run_id}/occlusion",
    tags=["occlusion"],
    dependencies=[Depends(requires(Scope.read)), KNOWN_PARAMETERS],
)


@router.get("")
def list_occluded(request: Request, run_id: RunId) -> OcclusionList:
    """The images a square was slid over, and how far each class's probability fell."""
    shelved = opened(request, run_id)
    with problems.about("run_id"):
        rows = shelved.run.occluded().to_pylist()
    return OcclusionList(
        occlusion=[
            OcclusionRow(
                image=row["image_id"],
                uri=row["uri"],
                target=row["target"],
                name=shelved.run.class_name(row["target"]),
                probability=row["probability"],
                lowest=row["lowest"],
                y=row["y"],
                x=row["x"],
                picture=link(
                    request, "runs", run_id, "occlusion", f"{row['image_id']}.png", v=shelved.commit
                ),
            )
            for row in rows
        ]
    )


@router.get("/{image}")
def show_occlusion(
    request: Request,
    run_id: RunId,
    image: ImageId,
    layer: Annotated[
        str | None,
        Query(
            description="Only this layer's activity; default: that of all layers.",
            examples=["features.12.expand3x3_activation"],
        ),
    ] = None,
) -> OcclusionDetails:
    """One image under the square at every position: Fig. 7 as numbers."""
    shelved = opened(request, run_id)
    with problems.about("image"):
        one = shelved.run.occlusion(image)
    names = list(one.unit) if layer is None else [layer]
    with problems.about("layer"):
        if names[0] not in one.unit:
            there = nearest(names[0], list(one.unit))
            raise RequestError(
                f"The occlusion of image {image} watches no layer {names[0]!r}; {there}."
            )
    return OcclusionDetails(
        image=one.image,
        uri=one.uri,
        size=list(one.size),
        patch=one.patch,
        stride=one.stride,
        fill=list(one.fill),
        y=one.y.tolist(),
        x=one.x.tolist(),
        target=one.target,
        name=one.name_of(one.target),
        clean_probability=one.clean_probability,
        clean_label=one.clean_label,
        probability=one.probability.tolist(),
        label=one.label.tolist(),
        layers={
            name: Watched(
                unit=one.unit[name],
                clean=one.clean_activity[name],
                activity=one.activity[name].tolist(),
            )
            for name in names
        },
        boxes=one.boxes.tolist(),
        picture=link(request, "runs", run_id, "occlusion", f"{image}.png", v=shelved.commit),
    )
