"""Pictures: of a unit, of a layer (Fig. 2), of an image and of one under a square (Fig. 7).

They are drawn when asked for, a few at a time: drawing takes a core, and must not keep the rest of
the service waiting.
"""

import io
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import Depends, Path, Query, Request, Response
from PIL import Image

from deconvoy import figure7, figures, study_figure
from deconvoy.kept import Kept
from service import caching, drawing, photographs, problems
from service.api.asking import (
    KNOWN_PARAMETERS,
    Layer,
    RunId,
    UnitNumber,
    Version,
    opened,
)
from service.api.images import ImageId, image_row
from service.api.layers import layer_hits
from service.api.routing import Routes
from service.auth import Scope, requires
from service.problems import refused
from service.shelf import Shelved

router = Routes(
    prefix="/v1/runs/{run_id}",
    tags=["pictures"],
    dependencies=[Depends(requires(Scope.read)), KNOWN_PARAMETERS],
    default_response_class=Response,
)

PAGE_UNITS = 64
"""Of one figure, at most: the pictures of all are in memory at once."""

Kind = Literal["png", "jpg"]
Suffix = Annotated[Kind, Path(description="Format of the picture.", examples=["png"])]
Smooth = Annotated[
    float | None,
    Query(
        ge=0, le=20, description="Blur by so many pixels; default: 1 in deep layers.", examples=[1]
    ),
]
Zoom = Annotated[
    bool | None,
    Query(description="Zoom to what carries signal; default: in deep layers.", examples=[True]),
]
Grey = Annotated[bool, Query(description="Signed grey instead of colours.", examples=[False])]
Tile = Annotated[
    int, Query(ge=16, le=512, description="Side of a hit's tile in pixels.", examples=[64])
]

Responses = dict[int | str, dict[str, Any]]

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_KEPT: Responses = {304: {"description": "The caller has it already."}}
BOTH: Responses = {200: {"content": {"image/png": _BINARY, "image/jpeg": _BINARY}}, **_KEPT}
PNG: Responses = {200: {"content": {"image/png": _BINARY}}, **_KEPT}
JPEG: Responses = {200: {"content": {"image/jpeg": _BINARY}}, **_KEPT}


@router.get("/layers/{layer:path}/units/{unit}.{suffix}", responses=BOTH)
async def draw_unit(
    request: Request,
    run_id: RunId,
    layer: Layer,
    unit: UnitNumber,
    suffix: Suffix,
    show: Annotated[
        figures.Show,
        Query(description="Projections, the patches they explain, or both.", examples=["both"]),
    ] = "both",
    smooth: Smooth = None,
    zoom: Zoom = None,
    grey: Grey = False,
    tile: Tile = 64,
    v: Version = None,
) -> Response:
    """One unit's strongest hits as a grid of tiles."""

    def draw(shelved: Shelved) -> Image.Image:
        hits = layer_hits(shelved, layer)
        with problems.about("unit"):
            hits.require(unit)
            _require_fitting(request, 1, int(hits.window.shape[1]), tile)
            pictures = shelved.run.unit(layer, unit).pictures
        look = _look(shelved, layer, zoom, smooth)
        return figures.unit_picture(pictures, show=show, tile=tile, grey=grey, **look)

    return await _drawn(request, run_id, draw, suffix, v)


@router.get("/evolution/{layer:path}/units/{unit}.{suffix}", responses=BOTH)
async def draw_evolution(
    request: Request,
    run_id: RunId,
    layer: Layer,
    unit: UnitNumber,
    suffix: Suffix,
    show: Annotated[
        figures.Show,
        Query(description="Projections, the patches they explain, or both.", examples=["both"]),
    ] = "both",
    smooth: Smooth = None,
    zoom: Zoom = None,
    grey: Grey = False,
    tile: Tile = 64,
    v: Version = None,
) -> Response:
    """What one unit saw at every checkpoint of training, as a grid of tiles, the last one the
    end."""

    def draw(shelved: Shelved) -> Image.Image:
        with problems.about("layer"):
            found = shelved.run.evolution(layer)
        with problems.about("unit"):
            _require_fitting(request, 1, len(found.checkpoints), tile)
            pictures = found.pictures(unit)
        look = _look(shelved, layer, zoom, smooth)
        return figures.unit_picture(pictures, show=show, tile=tile, grey=grey, **look)

    return await _drawn(request, run_id, draw, suffix, v)


@router.get("/study/{network}.png", responses=PNG)
async def draw_filters(
    request: Request,
    run_id: RunId,
    network: Annotated[int, Path(ge=0, description="Of a study, from 0.", examples=[0])],
    repeat: Annotated[int, Query(ge=0, description="Which training of it.", examples=[0])] = 0,
    tile: Annotated[int, Query(ge=8, le=64, description="Side of a filter.", examples=[28])] = 28,
    v: Version = None,
) -> Response:
    """The filters of the first layer of a network of a study (Fig. 6)."""

    def draw(shelved: Shelved) -> Image.Image:
        with problems.about("run_id"):
            found = shelved.run.study()
        with problems.about("network"):
            layer = found.first_layer(network)
        with problems.about("repeat"):
            filters = layer.of_repeat(repeat)
        return Image.fromarray(study_figure.filter_wall(filters, tile))

    return await _drawn(request, run_id, draw, "png", v)


@router.get("/figures/{layer:path}.png", responses=PNG)
async def draw_layer(
    request: Request,
    run_id: RunId,
    layer: Layer,
    units: Annotated[
        str | None,
        Query(
            max_length=2000,
            description="Which, as in 0-15 or 3,7,12; default: the first sixteen.",
            examples=["0-15"],
        ),
    ] = None,
    smooth: Smooth = None,
    zoom: Zoom = None,
    grey: Grey = False,
    tile: Tile = 64,
    v: Version = None,
) -> Response:
    """Fig. 2 of the paper: units of a layer, projections beside patches."""

    def draw(shelved: Shelved) -> Image.Image:
        hits = layer_hits(shelved, layer)
        with problems.about("units"):
            chosen = drawing.numbers(units, "The parameter units", PAGE_UNITS)
            for unit in chosen or ():
                hits.require(unit)
            drawn = 16 if chosen is None else len(chosen)
            ranks = int(hits.window.shape[1])
            _require_fitting(request, drawn, ranks, tile)
            return shelved.run.figure(
                layer, chosen, tile=tile, grey=grey, **_look(shelved, layer, zoom, smooth)
            )

    return await _drawn(request, run_id, draw, "png", v)


@router.get("/images/{image}.jpg", responses=JPEG)
async def draw_image(
    request: Request,
    run_id: RunId,
    image: ImageId,
    side: Annotated[
        int, Query(ge=16, le=1024, description="Longer side in pixels, at most.", examples=[256])
    ] = photographs.LONGER_SIDE,
    preprocessed: Annotated[
        bool,
        Query(description="As the model sees it: resized and cropped.", examples=[False]),
    ] = False,
    v: Version = None,
) -> Response:
    """An image: from its file, where that may be read, else as the run keeps it."""

    def draw(shelved: Shelved) -> Image.Image:
        row = image_row(shelved, image)
        with problems.about("image"):
            return photographs.of(
                shelved.run, image, row["uri"], side, preprocessed, request.app.state.settings
            )

    return await _drawn(request, run_id, draw, "jpg", v)


@router.get("/occlusion/{image}.png", responses=PNG)
async def draw_occlusion(
    request: Request,
    run_id: RunId,
    image: ImageId,
    layer: Annotated[
        str | None,
        Query(
            description="Whose strongest map is shown; default: the last of feature maps.",
            examples=["features.12.expand3x3_activation"],
        ),
    ] = None,
    smooth: Smooth = None,
    side: Annotated[
        int, Query(ge=64, le=512, description="Longer side of a panel in pixels.", examples=[176])
    ] = drawing.PANEL,
    v: Version = None,
) -> Response:
    """Fig. 7 of the paper, of one image that a square was slid over."""

    def draw(shelved: Shelved) -> Image.Image:
        with problems.about("image"):
            one = shelved.run.occlusion(image)
        with problems.about("layer"):
            others = drawing.other_projections(shelved.run, one, layer)
            sigma = 1.0 if smooth is None else smooth
            return figure7.figure7(one, layer, others=others, side=side, sigma=sigma)

    return await _drawn(request, run_id, draw, "png", v)


# -- parts -----------------------------------------------------------------------------------------


async def _drawn(
    request: Request,
    run_id: str,
    draw: Callable[[Shelved], Image.Image],
    kind: Kind,
    version: str | None,
) -> Response:
    """The picture, or word that the caller has it already."""
    limiter: anyio.CapacityLimiter = request.app.state.drawers
    kept: Kept[bytes] = request.app.state.drawn

    def work() -> Response:
        shelved = opened(request, run_id)
        freshness = caching.of_run(request, shelved, version)
        if freshness.fits(request):
            return freshness.unchanged()

        def make() -> bytes:
            return encoded(draw(shelved), kind)

        content = kept.get(freshness.tag, make) if shelved.done else make()
        return Response(content, 200, dict(freshness.headers), MEDIA_TYPES[kind])

    return await anyio.to_thread.run_sync(work, limiter=limiter)


MEDIA_TYPES: dict[Kind, str] = {"png": "image/png", "jpg": "image/jpeg"}


def encoded(picture: Image.Image, kind: Kind) -> bytes:
    """The bytes of a file."""
    into = io.BytesIO()
    if kind == "jpg":
        # Chroma at half size would smear the signed colours, which change from pixel to pixel.
        picture.convert("RGB").save(into, "JPEG", quality=92, subsampling=0)
    else:
        picture.save(into, "PNG", compress_level=3)  # a third larger than 6, in half the time
    return into.getvalue()


def _look(shelved: Shelved, layer: str, zoom: bool | None, smooth: float | None) -> dict[str, Any]:
    """As asked, else as it suits the layer."""
    told = {"zoom": zoom, "sigma": smooth}
    chosen = {key: value for key, value in told.items() if value is not None}
    return {**shelved.run.look(layer), **chosen}


def _require_fitting(request: Request, units: int, ranks: int, tile: int) -> None:
    """Raises Problem: the page would be too large."""
    most: int = request.app.state.settings.picture_pixels
    side = math.ceil(math.sqrt(ranks)) * (tile + tile // 16)
    pixels = units * (2 * side + 3 * tile) * (side + 2 * tile)  # with margins and lettering
    if pixels > most:
        raise refused(
            422,
            f"{units} {'unit' if units == 1 else 'units'} with tiles of {tile} pixels have about "
            f"{pixels:,} pixels; the service draws {most:,} at most: name fewer units, or smaller "
            "tiles.",
            "tile",
        )
