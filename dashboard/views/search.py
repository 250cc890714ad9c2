"""What words lead to in a run: a unit by ``layer:unit``, else layers, classes and images."""

import re
from collections.abc import Iterator

import streamlit as st

from dashboard import addresses, going, library, pieces
from dashboard.addresses import view
from dashboard.library import Json
from dashboard.pieces import element, heading, link, text
from dashboard.views import asked, images
from deconvoy.errors import RunNotFound

MOST = 24
"""Of a kind."""

CLASSES = 6
UNITS = 12
TILE = 44

UNIT = re.compile(r"(?P<layer>.*[^\s:])(?:\s*:\s*|\s+)(?P<unit>\d+)")


def show() -> None:
    run, words = asked.run(), asked.required("q").strip()
    st.set_page_config(page_title=f"{words} · Deconvoy")
    layers = library.layers(run)
    unit = _unit(layers, words)
    if unit is not None:
        going.to(view("unit", run=run["id"], layer=unit[0]["layer"], unit=unit[1]))
    back = pieces.way(("/", "Runs"), (view("run", run=run["id"]), run["name"] or run["id"]))
    pieces.put(heading(f"“{words}”", "", back))
    folded = words.casefold()
    found = [_layers(run, [row for row in layers if folded in row["layer"].casefold()])]
    pieces.put(found[0])
    named = sorted(
        (name for name in dict.fromkeys(run["classes"]) if folded in name.casefold()),
        key=lambda name: (name.casefold() != folded, len(name)),
    )
    with st.spinner("Classes and images are looked up …", show_time=False):
        for part in _classes_and_images(run, words, named):
            pieces.put(part)
            found.append(part)
    if any(found):
        return
    none = (
        f"Nothing in this run is called {text(words)}: no layer, no class, and no image has it in "
        "its path. A unit is written as <code>layer:unit</code>."
    )
    pieces.put(element("p", none, class_="empty"))


def _classes_and_images(run: Json, words: str, named: list[str]) -> Iterator[str]:
    """Each as soon as it is known."""
    for name in named[:CLASSES]:
        yield _class(run, name)
    if len(named) > CLASSES:
        yield element("p", _more(run, named[CLASSES:]), class_="told")
    yield _images(run, words)


def _unit(layers: list[Json], words: str) -> tuple[Json, int] | None:
    """The unit that is meant, of a layer by its whole name or the only one with that in it."""
    match = UNIT.fullmatch(words)
    if match is None:
        return None
    name, number = match["layer"].casefold(), int(match["unit"])
    exact = [row for row in layers if row["layer"].casefold() == name]
    near = exact or [row for row in layers if name in row["layer"].casefold()]
    if len(near) != 1 or number >= near[0]["units"]:
        return None
    return near[0], number


def _layers(run: Json, rows: list[Json]) -> str:
    if not rows:
        return ""
    shown = "".join(
        link(
            view("layer", run=run["id"], layer=row["layer"]),
            text(row["layer"]) + element("small", f"{row['units']:,}"),
            class_="pill",
        )
        for row in rows[:MOST]
    )
    return element("h2", "Layers", class_="part") + element("div", shown, class_="pills")


def _class(run: Json, name: str) -> str:
    rows = library.about(run, "query", "selective", **{"class": name}, limit=UNITS)["rows"]
    tiles = "".join(_selective(run, row) for row in rows)
    images_ = link(view("images", run=run["id"], **{"class": name}), "its images", class_="pill")
    head = element("h2", text(name) + " " + images_, class_="part")
    none = element("p", "No unit has most of its hits on this class.", class_="told")
    return head + (element("div", tiles, class_="wall") if tiles else none)


def _selective(run: Json, row: Json) -> str:
    layer, unit = row["layer"], row["unit"]
    told = f"{round(row['purity'] * row['hits'])} of {row['hits']} hits"
    drawn = ""
    if library.has_pictures(run, layer, unit):
        address = addresses.unit_picture(
            run["id"], run["commit"], layer, unit, "jpg", show="patch", tile=TILE
        )
        drawn = pieces.picture(address, f"{layer}:{unit}, {told} are {row['class']}")
    line = element("b", str(unit)) + element("span", told, class_="told")
    content = drawn + element("div", line, class_="line") + element("div", text(layer),
                                                                    class_="class")  # fmt: skip
    return link(view("unit", run=run["id"], layer=layer, unit=unit), content, class_="tile")


def _more(run: Json, names: list[str]) -> str:
    shown = ", ".join(
        link(view("search", run=run["id"], q=name), text(name)) for name in names[:MOST]
    )
    return f"Also: {shown}" + (" …" if len(names) > MOST else "")


def _by_id(run: Json, words: str) -> list[Json]:
    """The image of this number, if the words are one."""
    if not words.isdecimal() or len(words) > 18:
        return []
    try:
        return [library.about(run, "images", int(words))]
    except RunNotFound:
        return []


def _images(run: Json, words: str) -> str:
    page = library.about(run, "images", text=words, limit=MOST)
    named = _by_id(run, words)
    rows = named + [row for row in page["images"] if row["id"] not in [n["id"] for n in named]]
    if not rows:
        return ""
    tiles = "".join(images.tile(run, row) for row in rows)
    every = link(view("images", run=run["id"], text=words), f"all {page['total']:,}", class_="pill")
    head = "Images " + (every if page["total"] > MOST else "")
    return element("h2", head, class_="part") + element("div", tiles, class_="wall")
