"""The command ``figure``: Fig. 2 of layers, Fig. 7 of images, and those of further analyses."""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from PIL import Image
from rich.markup import escape

import deconvoy
from deconvoy import figure4, figure5, figure7, figures, panels, probe_figure, queries, study_figure
from deconvoy.errors import RequestError, RunNotFound
from deconvoy.evolution import evolved_layers
from deconvoy.occlusion import Occlusion
from deconvoy.run import FIGURE_UNITS
from service import launcher
from service.console import Url, out, say

Analysis = Literal["projection", "occlusion", "invariance", "evolution", "probe", "study"]

SHOWN_IMAGES = 3
"""Rows of a Fig. 7 whose images nobody named."""

MOST_UNITS = 4096
"""On one page: more would be higher than a picture can be."""

TILE, PANEL = 64, 176
"""Sides of a tile and of a panel, unless told."""


def figure(
    url: Url,
    layer: Annotated[
        str | None,
        typer.Argument(help="Name of a layer; default: a few units of every layer, or the last."),
    ] = None,
    path: Annotated[
        Path | None, typer.Option("-o", "--out", help="PNG or JPEG file.", show_default=False)
    ] = None,
    units: Annotated[
        str | None,
        typer.Option(
            help="Which, as in 0-15 or 3,7,12; default: of those that the run projected, the first "
            f"{FIGURE_UNITS}."
        ),
    ] = None,
    zoom: Annotated[
        bool | None,
        typer.Option("--zoom/--no-zoom", help="Zoom to what carries signal; default: deep layers."),
    ] = None,
    smooth: Annotated[
        float | None,
        typer.Option(min=0, max=20, help="Blur by so many pixels; default: 1 in deep layers."),
    ] = None,
    grey: Annotated[bool, typer.Option("--grey", help="Signed grey instead of colours.")] = False,
    tile: Annotated[
        int | None,
        typer.Option(min=16, max=512, help="Side of a tile (64), or of a panel (176), in pixels."),
    ] = None,
    analysis: Annotated[
        Analysis | None,
        typer.Option(
            help="Fig. 2 (projection), 7 (occlusion), 5 (invariance), 4 (evolution); a probe; a "
            "study."
        ),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID|PATH",
            help="Occlude this image: of the run, or a file that nobody scanned. May be repeated; "
            "default: the three of the run whose probability falls most.",
        ),
    ] = None,
    patch: Annotated[
        int | None, typer.Option(min=1, help="Side of the square in pixels, computed now.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Pixels from one position to the next.")
    ] = None,
) -> None:
    """Fig. 2 of the paper: each map's projections beside its patches. Fig. 7: --image. Others:
    --analysis."""
    if analysis in ("invariance", "probe", "study"):
        given = {
            "--units": units, "--zoom": zoom, "--smooth": smooth, "--grey": grey or None,
            "--tile": tile, "--image": image or None, "--patch": patch, "--stride": stride,
        }  # fmt: skip
        _require_none(given, analysis)
        path = path or Path(f"{layer or analysis}.png")
        opened = deconvoy.open(url)
        if analysis == "invariance":
            figures.save(figure5.figure5(opened.invariance(), layer), path)
        elif layer is not None:
            raise RequestError(f"--analysis {analysis} draws all there is: leave LAYER out.")
        elif analysis == "study":
            figures.save(study_figure.study_figure(opened.study()), path)
        else:
            figures.save(probe_figure.probe_figure(opened.probe()), path)
        out.print(escape(str(path)), soft_wrap=True)
        return
    if analysis == "evolution":
        _require_none({"--image": image or None, "--patch": patch, "--stride": stride}, analysis)
        opened = deconvoy.open(url)
        if layer is None:
            raise RequestError(
                f"--analysis evolution draws one layer: name it, as in `deconvoy figure {url} "
                f"{evolved_layers(opened)[-1]} --analysis evolution`."
            )
        path = path or Path(f"{layer}-evolution.png")
        look = {"tile": tile or TILE, "grey": grey, **_look_of(opened, layer, zoom, smooth)}
        figures.save(figure4.figure4(opened.evolution(layer), numbers(units), **look), path)
        out.print(escape(str(path)), soft_wrap=True)
        return
    occlusion = analysis == "occlusion" or (analysis is None and bool(image))
    _require_fitting(
        occlusion,
        of_maps={"--units": units, "--zoom": zoom, "--grey": grey or None},
        of_images={"--image": image or None, "--patch": patch, "--stride": stride},
    )
    opened = deconvoy.open(url)
    if path is None:
        path = Path(f"{layer or ('occlusion' if occlusion else 'overview')}.png")
    if occlusion:
        look = {"side": tile or PANEL, "sigma": 1.0 if smooth is None else smooth}
        picture = draw_images(opened, image, layer, patch, stride, **look)
    elif layer is None:
        if units is not None:
            raise RequestError("--units needs a LAYER: name the layer they are units of.")
        picture = _overview(opened, grey=grey, tile=tile or TILE)
    else:
        picture = draw_layer(
            opened, layer, numbers(units), zoom=zoom, sigma=smooth, grey=grey, tile=tile or TILE
        )
    figures.save(picture, path)
    out.print(escape(str(path)), soft_wrap=True)


def _require_none(given: dict[str, Any], analysis: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise RequestError(f"{name} does not go with --analysis {analysis}: leave it out.")


def _require_fitting(occlusion: bool, of_maps: dict[str, Any], of_images: dict[str, Any]) -> None:
    wrong = of_maps if occlusion else of_images
    given = [name for name, value in wrong.items() if value is not None]
    if not given:
        return
    if occlusion:
        raise RequestError(
            f"{given[0]} is for figures of feature maps, not for those of --image or --analysis "
            "occlusion: leave it out."
        )
    raise RequestError(
        f"{given[0]} is for figures of an occluded image: add --analysis occlusion or --image, and "
        "leave --analysis projection out."
        if given[0] != "--image"
        else "--image is for --analysis occlusion: --analysis projection draws feature maps; leave "
        "one of the two out."
    )


# -- images ----------------------------------------------------------------------------------------


def draw_images(
    run: deconvoy.Run,
    images: list[str] | None,
    layer: str | None = None,
    patch: int | None = None,
    stride: int | None = None,
    **look: Any,
) -> Image.Image:
    """Fig. 7, a row an image.

    Args:
        images: ids, paths in the data set, or files; none: ``most_moved``.
        patch: with it, or with ``stride``, what the run has of another square is computed anew.
    """
    images = images or most_moved(run)
    found = _occlusions(run, images, layer, patch, stride)
    others = [other_projections(run, one, layer) for one in found]
    return figure7.figure7_page(found, layer, others=others, **look)


def most_moved(run: deconvoy.Run) -> list[str]:
    """Of the images that the run occluded, those whose probability falls most under a square, the
    largest fall first; of equals the first one."""
    table = run.occluded()
    fall = table["probability"].to_numpy() - table["lowest"].to_numpy()
    order = np.argsort(-fall, kind="stable")[:SHOWN_IMAGES]
    return [str(one) for one in table["image_id"].take(order).to_pylist()]


def _occlusions(
    run: deconvoy.Run, images: list[str], layer: str | None, patch: int | None, stride: int | None
) -> list[Occlusion]:
    """From the run where it has them, else computed now, for which the model is loaded once."""
    known = [_known(run, image) for image in images]  # what is not there is told first
    found = [_stored(run, image, patch, stride) for image in known]
    missing = [image for image, one in zip(known, found, strict=True) if one is None]
    looked = launcher.occlude(run.url, missing, patch=patch, stride=stride, layer=layer)
    for row, one in enumerate(found):
        if one is None:
            say(f"sliding a square over {images[row]} …")
            found[row] = next(looked)
    return [one for one in found if one is not None]


def _known(run: deconvoy.Run, image: str) -> int | str:
    """Id of an image of the run, or a file."""
    try:
        return queries.image_id_of(run, image)
    except RunNotFound as error:
        if image.isdecimal():
            raise
        if "://" not in image and not Path(image).is_file():
            raise RunNotFound(f"{error} Nor is it a file here.") from None
        return image


def _stored(
    run: deconvoy.Run, image: int | str, patch: int | None, stride: int | None
) -> Occlusion | None:
    """What the run has of an image under such a square."""
    if isinstance(image, str):
        return None
    try:
        stored = run.occlusion(image)
    except RunNotFound:
        return None
    same = patch in (None, stored.patch) and stride in (None, stored.stride)
    return stored if same else None


def other_projections(run: deconvoy.Run, one: Occlusion, layer: str | None) -> panels.Projections:
    """The same map's projections in other images, where the run has them by the same method."""
    if run.spec.method != "deconvnet":
        return ()
    name = layer or one.default_layer()
    if name not in run.layer_names or one.unit.get(name) not in run.projected_units(name):
        return ()
    unit = run.unit(name, one.unit[name])
    ranks = [rank for rank, image in enumerate(unit.image.tolist()) if image not in (-1, one.image)]
    return [unit.projections[rank] for rank in ranks[: panels.OTHER_TILES]]


# -- layers ----------------------------------------------------------------------------------------


def draw_layer(
    run: deconvoy.Run,
    layer: str,
    units: list[int] | None,
    zoom: bool | None = None,
    sigma: float | None = None,
    **look: Any,
) -> Any:
    """Fig. 2; deep layers are zoomed and smoothed unless told."""
    return run.figure(layer, units, **_look_of(run, layer, zoom, sigma), **look)


def _look_of(
    run: deconvoy.Run, layer: str, zoom: bool | None, sigma: float | None
) -> dict[str, Any]:
    told = {"zoom": zoom, "sigma": sigma}
    return {**run.look(layer), **{key: value for key, value in told.items() if value is not None}}


def _overview(run: deconvoy.Run, **look: Any) -> Any:
    """Four units of every projected layer, those with the strongest ninth hit."""
    chosen = []
    layers = projected(run)
    if not layers:
        raise RunNotFound(
            f"No layer of {run.url!r} has projections to draw: {run.projected_told()}"
        )
    for layer in layers:
        last: Any = run.layer_group(layer)["score"]
        ninth = last[:, -1]  # −inf where there are fewer
        best = sorted(run.projected_units(layer), key=lambda unit: -ninth[unit])[:4]
        best.sort()
        chosen += [run.unit(layer, u).pictures for u in best]
    return figures.figure2(chosen, title="Overview", zoom=True, sigma=0.0, **look)


def projected(run: deconvoy.Run) -> list[str]:
    """Layers that have projections."""
    return [name for name in run.layer_names if run.projected_units(name)]


def numbers(text: str | None, name: str = "--units", most: int = MOST_UNITS) -> list[int] | None:
    """``0-3,7`` → [0, 1, 2, 3, 7].

    Args:
        name: of what is given, for people.
        most: numbers that a page can have.

    Raises:
        RequestError: no such list, or too long a one.
    """
    if text is None:
        return None
    found: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        numbered = first.isdecimal() and (last.isdecimal() or not dash)
        if not numbered or int(last or first) < int(first):
            raise RequestError(f"{name} {text!r}: give numbers and ranges, as in 0-15 or 3,7,12.")
        if int(last or first) - int(first) < most:
            found |= dict.fromkeys(range(int(first), int(last or first) + 1))
        if int(last or first) - int(first) >= most or len(found) > most:
            raise RequestError(f"{name} {text!r}: a page has {most} units at most; name fewer.")
    return list(found)
