"""How far features move when images do (Fig. 5), as curves."""

import numpy as np
import streamlit as st

from dashboard import curves, library, pieces
from dashboard.addresses import changed
from dashboard.library import Json
from dashboard.pieces import element, pills, text
from dashboard.views import asked, images
from deconvoy.errors import RequestError, RunNotFound
from deconvoy.invariance import UNITS, Invariance, layer_number

TOLD = "Images shifted, scaled and turned: how far features move, and what becomes of the class"

MOST = 24
"""Images shown."""


def show(run: Json) -> None:
    state = asked.state()
    try:
        found = library.opened(run).invariance()
    except RunNotFound as error:
        pieces.put(element("p", text(error), class_="empty"))
        return
    if not len(found.image):
        pieces.put(element("p", "No image was moved yet.", class_="empty"))
        return
    chosen = state.get("by") or found.transformations[0]
    if chosen not in found.transformations:
        raise RequestError(
            f"The address says by={chosen!r}, but the images of this run were moved by "
            f"{', '.join(found.transformations)}: mend it."
        )
    layer = state.get("layer")
    number = None if layer is None else layer_number(found, layer)
    by = [(name.capitalize(), changed("analysis", state, by=name), name == chosen)
          for name in found.transformations]  # fmt: skip
    pieces.put(pieces.bar(pills("Moved by", by)), _layers(found, state))
    left, right = st.columns(2)
    with left:
        whose = "each layer, mean over the images" if layer is None else f"{layer}, each image"
        pieces.put(element("h2", f"Distance ÷ norm: {text(whose)}", class_="part"))
        _distances(found, chosen, number)
    with right:
        true = "predicted" if found.predicted else "true"
        pieces.put(element("h2", f"Probability of the {true} class", class_="part"))
        _probabilities(found, chosen)
    pieces.put(_images(run, found))


def _layers(found: Invariance, state: dict[str, str]) -> str:
    short = pieces.short_names(found.layers)
    every = [("All layers", changed("analysis", state, layer=None), "layer" not in state)]
    each = [
        (short[name], changed("analysis", state, layer=name), state.get("layer") == name)
        for name in found.layers
    ]
    return pieces.bar(pills("Layer", every + each))


def _distances(found: Invariance, chosen: str, number: int | None) -> None:
    steps = found.steps(chosen)
    relative = found.relative[:, steps]
    if number is not None:
        rows = zip(_names(found), relative[:, :, number], strict=True)
        lines = [(name, own) for name, own in rows if not np.isnan(own).any()]
        curves.draw(found.amount[steps], lines, _along(chosen), "distance ÷ norm")
        return
    silent = np.isnan(relative)
    means = np.where(silent, 0, relative).sum(0) / np.maximum(1, (~silent).sum(0))
    lines = [
        (name, means[:, place])
        for place, name in enumerate(found.layers)
        if not silent[:, :, place].all()
    ]
    curves.draw(found.amount[steps], lines, _along(chosen), "distance ÷ norm", ordered=True)


def _probabilities(found: Invariance, chosen: str) -> None:
    steps = found.steps(chosen)
    lines = list(zip(_names(found), found.probability[:, steps], strict=True))
    curves.draw(found.amount[steps], lines, _along(chosen), "probability")


def _along(chosen: str) -> str:
    return f"{chosen}, {UNITS[chosen]}"


def _names(found: Invariance) -> list[str]:
    return [
        f"{image}: {found.name_of(target)}"
        for image, target in zip(found.image.tolist(), found.target.tolist(), strict=True)
    ]


def _images(run: Json, found: Invariance) -> str:
    rows = [library.about(run, "images", image) for image in found.image.tolist()[:MOST]]
    shown = "".join(images.tile(run, row) for row in rows)
    more = len(found.image) - MOST
    rest = element("p", f"and {more:,} more", class_="told") if more > 0 else ""
    title = element("h2", "The images", class_="part")
    return title + element("div", shown, class_="wall") + rest
