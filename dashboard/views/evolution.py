"""How features come about in training (Fig. 4): a wall of units with a slider through time."""

import numpy as np
import streamlit as st

from dashboard import addresses, curves, library, pieces
from dashboard.addresses import changed, view
from dashboard.library import Json
from dashboard.pieces import element, link, number, pills, text
from dashboard.views import asked
from deconvoy.errors import RunNotFound
from deconvoy.evolution import Evolution, curves_of, evolved_layers, settling_of
from deconvoy.run import Run

TOLD = "What units saw at each checkpoint of training, and how early each layer settled"

PAGE = 24
TILE = 88
AT = "evolution.at"


def show(run: Json) -> None:
    opened, state = library.opened(run), asked.state()
    try:
        layers = evolved_layers(opened)
    except RunNotFound as error:
        pieces.put(element("p", text(error), class_="empty"))
        return
    _curves(opened, layers)
    by_layer = {name: opened.evolution(name) for name in layers}
    projected = [name for name, found in by_layer.items() if found.projected.any()]
    if not projected:
        told = "No unit was projected over time: analyses.evolution.layers says which are."
        pieces.put(element("p", told, class_="empty"))
        return
    chosen = state.get("layer", projected[0])
    if chosen not in projected:
        opened.evolution(chosen)  # refuses what is no layer
        raise RunNotFound(f"No unit of layer {chosen!r} was projected over time.")
    short = pieces.short_names(projected)
    ways = [
        (short[name], changed("analysis", state, layer=name, offset=None), name == chosen)
        for name in projected
    ]
    pieces.put(element("h2", "Through time", class_="part"), pieces.bar(pills("Layer", ways)))
    _wall(run, by_layer[chosen], state)


def _curves(opened: Run, layers: tuple[str, ...]) -> None:
    rows = curves_of(opened, layers).to_pylist()
    left, right = st.columns(2)
    for column, name, title in (
        (left, "overlap", "Final strongest images found already"),
        (right, "cosine", "Cosine between filters and the final ones"),
    ):
        lines = []
        for layer in layers:
            own = [row[name] for row in rows if row["layer"] == layer]
            if None not in own:
                lines.append((layer, np.array(own)))
        with column:
            pieces.put(element("h2", title, class_="part"))
            along = np.arange(1, len(lines[0][1]) + 1) if lines else np.zeros(0)
            curves.draw(along, lines, "checkpoint", name, ordered=True)
    head = "".join(element("th", name) for name in ("Layer", "By images", "By filters"))
    body = "".join(
        element(
            "tr",
            "".join(
                element("td", text(value or "not known"))
                for value in (row["layer"], row["overlap"], row["cosine"])
            ),
        )
        for row in settling_of(opened).to_pylist()
    )
    told = "The checkpoint from which on the mean over the units stays at 0.9 or above."
    pieces.put(
        element("h2", "Settled", class_="part"),
        element("p", told, class_="told"),
        element(
            "div",
            element("table", f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>", class_="rows"),
            class_="scroll",
        ),
    )


def _wall(run: Json, found: Evolution, state: dict[str, str]) -> None:
    names = list(found.names)
    asked_for = asked.number("at")
    at = len(names) - 1 if asked_for is None else min(asked_for, len(names) - 1)
    if len(names) > 1:
        st.session_state[AT] = names[at]
        st.select_slider("Checkpoint", names, key=AT, on_change=_moved, args=(names,))
    units = np.flatnonzero(found.projected).tolist()
    offset = asked.number("offset") or 0
    shown = units[offset : offset + PAGE]
    tiles = "".join(_tile(run, found, unit, at) for unit in shown)
    pieces.put(
        pieces.pages("analysis", state, offset, PAGE, len(units)),
        element("div", tiles, class_="wall wide"),
    )


def _moved(names: list[str]) -> None:
    st.query_params["at"] = str(names.index(st.session_state[AT]))


def _tile(run: Json, found: Evolution, unit: int, at: int) -> str:
    halves, columns = "", len(found.checkpoints)
    score = float(found.score[unit, at])
    for half in ("projection", "patch"):
        if np.isneginf(score):
            halves += element("div", "silent", class_="none")
            continue
        address = addresses.evolution_picture(
            run["id"], run["commit"], found.layer, unit, "jpg", show=half, tile=TILE
        )
        described = f"{half.capitalize()} of unit {unit} at {found.names[at]}"
        drawn = pieces.cut(address, TILE, at, columns, described)
        halves += element("div", element("div", drawn, class_="box"), class_="hit")
    strength = "" if np.isneginf(score) else number(score)
    line = element("b", str(unit)) + element("span", strength, class_="told")
    content = element("div", halves, class_="pair") + element("div", line, class_="line")
    return link(view("unit", run=run["id"], layer=found.layer, unit=unit), content, class_="tile")
