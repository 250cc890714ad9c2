"""A unit's hits under a square of their own: its activation at each place, over the patch."""

import base64
import io

import numpy as np
from PIL import Image

from dashboard import library
from dashboard.library import Json
from dashboard.pieces import cut, element, number
from deconvoy import heat
from deconvoy.errors import RunNotFound
from deconvoy.occlusion import UnitOcclusion

TILE = 160


def section(run: Json, layer: str, unit: Json, sheet: str) -> str:
    """Markup; empty where the run has covered no hits of the unit.

    Args:
        sheet: address of the unit's patches, whole and with tiles of ``TILE``.
    """
    analyses = [a for a in run["spec"]["analyses"] if a["kind"] == "occlusion"]
    if not analyses or analyses[0].get("units") is None:
        return ""
    try:
        found = {one.rank: one for one in library.opened(run).unit(layer, unit["unit"]).occlusion}
    except RunNotFound:
        return ""
    hits = [hit for hit in unit["hits"] if found[hit["rank"]].activation.size]
    tiles = "".join(_hit(sheet, hit, unit["ranks"], found[hit["rank"]]) for hit in hits)
    told = (
        "Its activation while a square covers a part of the patch: dark where the unit needs what "
        "is there."
    )
    columns = "--columns:9"
    return (
        element("h2", "Under a square", class_="part")
        + element("p", told, class_="told")
        + element("div", tiles, class_="nine covered", style=columns)
    )


def _hit(sheet: str, hit: Json, ranks: int, one: UnitOcclusion) -> str:
    least, clean = float(one.activation.min()), hit["score"]
    told = f"rank {hit['rank'] + 1}: {number(clean)}, under a square {number(least)} at the least"
    patch = cut(sheet, TILE, hit["rank"], ranks, told)
    box = element("span", patch + _map(hit, one), class_="box")
    line = element("span", number(least), title=told) + element("span", f"of {number(clean)}")
    return element("div", box + element("div", line, class_="line"), class_="hit")


def _map(hit: Json, one: UnitOcclusion) -> str:
    """The map as pixels of its grid, over the part of the tile where the field lies."""
    low, high = min(float(one.activation.min()), 0.0), max(hit["score"], 1e-12)
    colours = heat.shaded((one.activation.astype(np.float64) - low) / (high - low))
    buffer = io.BytesIO()
    Image.fromarray(colours).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    y0, x0, y1, x1 = hit["window"]
    longer = max(y1 - y0, x1 - x0)
    above, left = (longer - (y1 - y0)) / 2 - y0, (longer - (x1 - x0)) / 2 - x0
    top, bottom, begin, end = hit["box"][0], hit["box"][2], hit["box"][1], hit["box"][3]
    style = (
        f"left:{100 * (begin + left) / longer:.2f}%;top:{100 * (top + above) / longer:.2f}%;"
        f"width:{100 * (end - begin) / longer:.2f}%;height:{100 * (bottom - top) / longer:.2f}%"
    )
    return f'<img class="over" alt="" src="data:image/png;base64,{data}" style="{style}">'
