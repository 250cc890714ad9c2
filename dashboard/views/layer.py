"""One layer: all its feature maps as a wall of small tiles."""

import streamlit as st

from dashboard import addresses, library, pieces
from dashboard.addresses import changed, view
from dashboard.library import Json
from dashboard.pieces import bar, element, heading, link, number, percent, pills, text
from dashboard.views import asked
from dashboard.views.images import choose_class

PAGE = 48
TILE = 44
"""Side of a hit in a tile, in pixels."""

SHOWS = {"projection": "Projections", "patch": "Patches", "both": "Both"}
ORDERS = {
    "unit": "number",
    "score": "strength",
    "density": "density",
    "purity": "class selectivity",
}

DEAD = {"hide": "false", "only": "true"}
"""What the address says of dead units, as the API has it."""


def show() -> None:
    run = asked.run()
    layer = asked.layer(run)
    name, state = layer["layer"], asked.state()
    st.set_page_config(page_title=f"{name} · Deconvoy")
    back = pieces.way(("/", "Runs"), (view("run", run=run["id"]), run["name"] or run["id"]))
    pieces.put(heading(name, text(_told(layer)), back))
    shown = state.get("show", "projection")
    offset = asked.number("offset") or 0
    order = state.get("order", "unit")
    page = library.about(
        run,
        "layers",
        name,
        "units",
        order=order,
        label=state.get("class"),
        dead=DEAD.get(state.get("dead", "")),
        offset=offset,
        limit=PAGE,
    )
    controls, classes = st.columns([4, 1], vertical_alignment="center")
    with controls:
        pieces.put(_controls(state, layer, shown, order))
    with classes:
        choose_class(run, state, "layer")
    pages = pieces.pages("layer", state, offset, PAGE, page["total"])
    tiles = "".join(_tile(run, layer, row, shown) for row in page["units"])
    kind = "wall wide" if shown == "both" else "wall"
    none = element("p", "No unit of this layer is like that.", class_="empty")
    pieces.put(pages, element("div", tiles, class_=kind) if tiles else none)


def _told(layer: Json) -> str:
    size = layer["height"] * layer["width"]
    what = f"{layer['units']:,} " + ("feature maps" if size > 1 else "neurons")
    maps = f"{layer['height']} × {layer['width']}" if size > 1 else ""
    field, stride = layer["field_size"], layer["field_stride"]
    sees = (
        "sees the whole image"
        if layer["whole_image"] or not field
        else f"receptive field {field[0]} × {field[1]} px, stride {number((stride or [0])[0])}"
    )
    dead = f"{layer['dead_units']:,} dead" if layer["dead_units"] else ""
    missing = layer["units"] - layer["projected_units"]
    drawn = f"{layer['projected_units']:,} with pictures" if missing else ""
    return " · ".join(filter(None, (what, maps, sees, dead, drawn)))


def _controls(state: dict[str, str], layer: Json, shown: str, order: str) -> str:
    kept = {key: value for key, value in state.items() if key != "offset"}

    def options(key: str, names: dict[str, str], now: str) -> list[tuple[str, str, bool]]:
        first = next(iter(names))
        return [
            (told, changed("layer", kept, **{key: None if name == first else name}), name == now)
            for name, told in names.items()
        ]

    dead: dict[str, str] = (
        {"": "all", "hide": "alive", "only": "dead"} if layer["dead_units"] else {}
    )
    return bar(
        pills("Show", options("show", SHOWS, shown)),
        pills("Sort by", options("order", ORDERS, order)),
        pills("Dead units", options("dead", dead, state.get("dead", ""))) if dead else "",
    )


def _tile(run: Json, layer: Json, row: Json, shown: str) -> str:
    name, unit = layer["layer"], row["unit"]
    commonest = row["classes"][0] if row["classes"] else None
    said = f"{commonest['class']} {commonest['count']}/{row['hits']}" if commonest else ""
    told = row["name"] or said
    if row["pictures"] is None:
        why = "dead" if row["dead"] else "not projected"
        drawn = element("div", why, class_="none")
    else:
        address = addresses.unit_picture(
            run["id"], run["commit"], name, unit, "jpg", show=shown, tile=TILE
        )
        drawn = pieces.picture(address, f"Strongest hits of unit {unit} of {name}: {told}")
    strength = element("span", number(row["score"]), class_="told")
    fires = f"{percent(row['density'])} of the images activate it"
    content = (
        drawn
        + element("div", element("b", str(unit)) + strength, class_="line")
        + element("div", text(told), class_="class")
    )
    address = view("unit", run=run["id"], layer=name, unit=unit)
    return link(address, content, class_="tile", title=f"{name}:{unit} · {told} · {fires}")
