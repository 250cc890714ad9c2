"""Runs and units as HTML: the pieces of a report, and what a notebook shows.

Self-contained: pictures are data URIs and nothing is asked of any server.  Whatever comes from data
(names of layers, classes, images) is escaped here and nowhere else.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from PIL import Image

from deconvoy.errors import RunNotFound
from deconvoy.figures import unit_picture
from deconvoy.methods import METHODS

if TYPE_CHECKING:
    from deconvoy.run import Run
    from deconvoy.unit import Unit

TILE = 48
"""Side of a tile in pixels: eighteen of them are one unit."""

JPEG = {"quality": 88, "subsampling": 0}
"""Chroma at half size would smear the signed colours, which change from pixel to pixel."""


def element(tag: str, content: str, **attributes: str) -> str:
    """An element around markup; values of attributes are escaped, the content is not.

    A trailing underscore of a name falls: ``class_`` is ``class``.
    """
    named = "".join(f' {k.rstrip("_")}="{escape(v)}"' for k, v in attributes.items())
    return f"<{tag}{named}>{content}</{tag}>"


def text(value: Any) -> str:
    """Anything as escaped text; None is empty."""
    return "" if value is None else escape(str(value))


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of texts; numbers stand right."""
    head = element("tr", "".join(element("th", text(heading)) for heading in headings))
    body = "".join(element("tr", "".join(map(_cell, row))) for row in rows)
    return element("table", f"<thead>{head}</thead><tbody>{body}</tbody>")


def _cell(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        return element("td", shown, style="text-align:right")
    return element("td", text(value), style="text-align:left")


def picture(image: Image.Image, described: str) -> str:
    """An image with its bytes inside; browsers decode it when it is scrolled to."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **JPEG)
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return (
        f'<img loading="lazy" decoding="async" {size} alt="{escape(described)}" '
        f'src="data:image/jpeg;base64,{data}">'
    )


def layer_table(run: "Run") -> str:
    """The layers of a run with their fields, as ``Run.layers`` tells them."""
    rows = []
    for row in run.layers().to_pylist():
        size, stride = row["field_size"], row["field_stride"]
        field = "image" if row["whole_image"] or not size else f"{size[0]} × {size[1]}"
        rows.append(
            (row["layer"], row["op"], row["units"], f"{row['height']} × {row['width']}", field,
             stride[0] if stride else None, row["projected_units"], row["dead_units"])
        )  # fmt: skip
    headings = ("layer", "op", "units", "size", "field", "stride", "projected", "dead")
    return table(headings, rows)


def summary(run: "Run") -> str:
    """What a run is, in a sentence."""
    told = [f"{run.attributes['provenance']['model']}, {run.status}"]
    results: dict[str, Any] = run.attributes.get("results", {})
    if not results:
        return f"{told[0]}; no results yet: the scan is not done"
    told.append(images_told(results))
    if results["skipped"]:
        told.append(f"{results['skipped']:,} unreadable ones skipped")
    if results["top1"] is not None:
        told.append(top1_told(results))
    told.append(f"{results['units']:,} units")
    if results["dead_units"]:
        told.append(f"{results['dead_units']:,} of them dead")
    return ", ".join(told)


def images_told(results: dict[str, Any]) -> str:
    """How many images were scanned."""
    # All labelled images are judged, but data.where.wrong leaves only the wrong ones in.
    wrong = results.get("labelled", 0) > results["images"]
    return f"{results['images']:,} images{' that are predicted wrongly' if wrong else ''}"


def top1_told(results: dict[str, Any]) -> str:
    """The accuracy, and of how many images where it is not that of those scanned."""
    images, labelled = results["images"], results.get("labelled", results["images"])
    every = "all " if labelled > images else ""
    of = "" if labelled == images else f" of {every}{labelled:,} labelled"
    return f"top-1 {results['top1']:.1%}{of}"


def caption(unit: "Unit") -> str:
    """Number, strongest score and commonest class of a unit, in words."""
    if unit.dead:
        return f"{unit.index} · dead: no image activates it"
    names = [name for name in unit.labels if name]
    hits = int((unit.image >= 0).sum())
    told = [str(unit.index), f"max {float(unit.score[0]):.4g}"]
    if names:
        commonest = max(names, key=names.count)  # of equally common ones that of the better rank
        told.append(f"{names.count(commonest)}/{hits} {commonest}")
    return " · ".join(told)


def unit_figure(unit: "Unit", look: dict[str, Any]) -> str:
    """A unit with its pictures: nine projections beside nine patches."""
    pictures = unit.pictures
    image = unit_picture(pictures, tile=TILE, **look)
    method = METHODS[pictures.method].name
    described = f"{unit.layer}, unit {unit.index}: {method} projections left, image patches right"
    return element("figure", element("figcaption", text(caption(unit))) + picture(image, described))


# -- notebooks ---------------------------------------------------------------------------------


def of_run(run: "Run") -> str:
    """A run in a notebook: what it is, and its layers."""
    name = text(run.spec.name or run.url)
    head = f"<div><b>{name}</b> {text(summary(run))}</div>"
    return head + (layer_table(run) if "results" in run.attributes else "")


def of_unit(unit: "Unit", run: "Run") -> str:
    """A unit in a notebook: its pictures, or where it has none the table of its hits."""
    head = f"<div><b>{text(unit.layer)}</b> : {text(caption(unit))}</div>"
    try:
        image = unit_picture(unit.pictures, tile=TILE, **run.look(unit.layer))
    except RunNotFound:
        rows = [
            (rank + 1, float(unit.score[rank]), int(image_id), unit.labels[rank])
            for rank, image_id in enumerate(unit.image)
            if image_id >= 0
        ]
        return head + table(("rank", "score", "image", "class"), rows)
    return head + picture(image, f"{unit.layer}, unit {unit.index}")
