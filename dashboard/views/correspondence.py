"""Whether parts of objects correspond (Table 1): a table by layer, the parts beside chance."""

import streamlit as st

from dashboard import library, pieces
from dashboard.addresses import changed
from dashboard.library import Json
from dashboard.pieces import element, pills, text
from dashboard.views import asked, images
from deconvoy.correspondence import Correspondence
from deconvoy.errors import RequestError, RunNotFound

TOLD = "The same part of several images covered: whether the network changes alike in all of them"

MOST = 24
"""Images shown."""

LOW = 0.05
"""A p at or below it is marked."""

EXPLAINED = (
    "Δ is the share of features whose change has another sign, over all pairs of images: the "
    "lower, the more alike. Beside it Δ of boxes of the same sizes at random, and p, how often "
    "chance is as low."
)


def show(run: Json) -> None:
    state = asked.state()
    try:
        found = library.opened(run).correspondence()
    except RunNotFound as error:
        pieces.put(element("p", text(error), class_="empty"))
        return
    part = state.get("part", found.parts[0])
    if part not in found.parts:
        raise RequestError(
            f"The address says part={part!r}, but the parts that were covered are "
            f"{', '.join(found.parts)}: mend it."
        )
    ways = [
        (name.replace("_", " "), changed("analysis", state, part=name), name == part)
        for name in found.parts
    ]
    pieces.put(
        pieces.bar(pills("Part", ways)),
        element("p", text(EXPLAINED), class_="told"),
        _table(found, found.parts.index(part)),
    )
    rows = [library.about(run, "images", image) for image in found.image.tolist()[:MOST]]
    tiles = "".join(images.tile(run, row) for row in rows)
    pieces.put(element("h2", "The images", class_="part"), element("div", tiles, class_="wall"))
    st.caption(f"{len(found.image)} images, {found.random.shape[1]} draws at random a part")


def _table(found: Correspondence, part: int) -> str:
    names = ("Layer", "Δ of the part", "Δ at random", "p")
    head = "".join(element("th", text(name)) for name in names)
    body = ""
    for number, layer in enumerate(found.layers):
        random = found.random[part, :, number]
        p = float(found.p[part, number])
        cells = (
            text(layer),
            f"{found.delta[part, number]:.4f} ± {found.deviation[part, number]:.4f}",
            f"{random.mean():.4f} ± {random.std():.4f}",
            element("b", f"{p:.3f}") if p <= LOW else f"{p:.3f}",
        )
        body += element("tr", "".join(element("td", cell) for cell in cells))
    table = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return element("div", element("table", table, class_="rows"), class_="scroll")
