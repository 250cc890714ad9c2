"""One unit: its nine projections beside the nine patches they explain."""

import math

import streamlit as st

from dashboard import addresses, library, pieces, unit_occlusion
from dashboard.addresses import changed, view
from dashboard.library import Json
from dashboard.pieces import (
    bar,
    bars,
    card,
    cut,
    element,
    facts,
    heading,
    link,
    number,
    percent,
    pills,
    text,
)
from dashboard.views import asked
from deconvoy.errors import RequestError
from deconvoy.methods import METHODS

TILE = 160
"""Side of a hit in pixels."""

NEAR_TILE = 32
NEAR = 9


def show() -> None:
    run = asked.run()
    layer = asked.layer(run)
    number_ = asked.number("unit")
    if number_ is None:
        raise RequestError("The address of this view names no unit: add unit=0 to it.")
    unit = library.about(run, "layers", layer["layer"], "units", number_)
    state = asked.state()
    st.set_page_config(page_title=f"{layer['layer']} : {number_} · Deconvoy")
    pieces.put(_head(run, layer, unit, state))
    if unit["pictures"] is not None:
        pieces.put(_looks(run, layer, unit, state))
    near = _near(run, layer, unit)
    side = element("div", _strength(run, unit) + _facts(unit) + near, class_="side")
    pieces.put(element("div", _halves(run, layer, unit, state) + side, class_="unit"))
    patches = addresses.unit_picture(
        run["id"],
        run["commit"],
        layer["layer"],
        number_,
        "jpg",
        show="patch",
        tile=unit_occlusion.TILE,
        zoom=False,
    )
    if unit["pictures"] is not None:
        pieces.put(unit_occlusion.section(run, layer["layer"], unit, patches))
    st.code(_code(run, layer, unit), language="python")


def _head(run: Json, layer: Json, unit: Json, state: dict[str, str]) -> str:
    name, n = layer["layer"], unit["unit"]
    back = pieces.way(
        ("/", "Runs"),
        (view("run", run=run["id"]), run["name"] or run["id"]),
        (view("layer", run=run["id"], layer=name), name),
    )
    beside = []
    for other, sign, rel in ((n - 1, "‹ {}", "prev"), (n + 1, "{} ›", "next")):
        if 0 <= other < unit["units"]:
            address = changed("unit", state, unit=other)
            beside.append(link(address, sign.format(other), class_="pill", rel=rel))
    told = [f"unit {n} of {unit['units']:,}", text(unit["name"])]
    if unit["classes"]:
        most = unit["classes"][0]
        kind = "predicted as " if unit["labels"] == "predicted" else ""
        told.append(f"{most['count']} of {len(unit['hits'])} hits are {kind}{text(most['class'])}")
    if unit["dead"]:
        told.append("dead: no image activates it")
    steps = element("span", "".join(beside), class_="pills")
    return heading(f"{name} : {n}", steps + " ".join(_joined(told)), back)


def _joined(parts: list[str]) -> list[str]:
    return [" · ".join(filter(None, parts))]


def _look(layer: Json, state: dict[str, str]) -> dict[str, str | bool | None]:
    """As the address says, else as it suits the layer."""
    return {
        "zoom": state.get("zoom"),
        "smooth": state.get("smooth"),
        "grey": state.get("grey"),
    }


def _looks(run: Json, layer: Json, unit: Json, state: dict[str, str]) -> str:
    usual = layer["look"]
    grey = state.get("grey") == "true"
    smooth = asked.decimal("smooth", float(usual["sigma"])) > 0
    zoom = state.get("zoom", str(usual["zoom"]).lower()) == "true"

    def to(**changes: str | None) -> str:
        return changed("unit", state, **changes)

    drawn = addresses.unit_picture(
        run["id"], run["commit"], layer["layer"], unit["unit"], "png", **_look(layer, state)
    )
    saved = f"{run['id']}-{layer['layer']}-{unit['unit']}"
    data = addresses.unit_data(run["id"], layer["layer"], unit["unit"])
    downloads = (
        element("a", "↓ PNG", href=drawn, download=f"{saved}.png", class_="pill")
        + element("a", "↓ JSON", href=data, download=f"{saved}.json", class_="pill")
    )  # fmt: skip
    return bar(
        pills("Colours", [("Colour", to(grey=None), not grey),
                          ("Signed grey", to(grey="true"), grey)]),
        pills("Sharpness", [("Sharp", to(smooth="0"), not smooth),
                            ("Smooth", to(smooth="1"), smooth)]),
        pills("Part", [("Whole field", to(zoom="false"), not zoom),
                       ("Zoom to support", to(zoom="true"), zoom)]),
        element("div", downloads, class_="pills end"),
    )  # fmt: skip


def _halves(run: Json, layer: Json, unit: Json, state: dict[str, str]) -> str:
    if unit["pictures"] is None:
        told = (
            "No image activates this unit, so there is nothing to show."
            if unit["dead"]
            else "The pictures of this unit were not computed: the run's projection analysis says "
            "for which units they are."
        )
        rows = "".join(_listed(run, hit) for hit in unit["hits"])
        hits = element("ol", rows, class_="hits") if rows else ""
        return element("div", element("p", told, class_="empty") + hits, class_="half both")
    look, method = _look(layer, state), library.method_of(run)
    projections = "Projections"
    if method != "deconvnet":
        projections += f": {METHODS[method].name}"
    return "".join(
        _half(run, layer, unit, half, title, look)
        for half, title in (("projection", projections), ("patch", "Image patches"))
    )


def _half(
    run: Json, layer: Json, unit: Json, half: str, title: str, look: dict[str, str | bool | None]
) -> str:
    address = addresses.unit_picture(
        run["id"], run["commit"], layer["layer"], unit["unit"], "jpg", show=half, tile=TILE, **look
    )
    hits = "".join(
        _hit(run, unit, hit, half, cut(address, TILE, hit["rank"], unit["ranks"], _described(hit)))
        for hit in unit["hits"]
    )
    columns = math.ceil(math.sqrt(unit["ranks"]))
    head = element("h2", text(title))
    return element(
        "section",
        head + element("div", hits, class_="nine", style=f"--columns:{columns}"),
        class_="half",
    )


def _described(hit: Json) -> str:
    return f"rank {hit['rank'] + 1}, {hit['class'] or hit['uri']}, activation {hit['score']:.4g}"


def _hit(run: Json, unit: Json, hit: Json, half: str, drawn: str) -> str:
    address = view("image", run=run["id"], image=hit["image"])
    score = element("span", number(hit["score"]))
    if half == "projection":
        line = element("span", f"{hit['rank'] + 1}") + score
    else:
        line = element("span", text(hit["class"] or hit["uri"])) + score
    title = f"{hit['uri']} · row {hit['y']}, column {hit['x']} of the map"
    box = link(address, drawn, class_="box", title=title)
    return element("div", box + element("div", line, class_="line"), class_="hit")


def _listed(run: Json, hit: Json) -> str:
    address = view("image", run=run["id"], image=hit["image"])
    return element("li", link(address, text(hit["class"] or hit["uri"])) + " " +
                   element("span", number(hit["score"]), class_="told"))  # fmt: skip


def _strength(run: Json, unit: Json) -> str:
    bins = unit["histogram"]
    counts = [each["images"] for each in bins]
    told = f"Strongest activation in each of {run['images']:,} images"
    if not bins:
        return ""
    low, high = bins[0]["low"], bins[-1]["high"]
    axis = element("div", f"<span>{_bound(low)}</span><span>{_bound(high)}</span>", class_="axis")
    return card(f"Strength over {run['images']:,} images", bars(counts, told) + axis)


def _bound(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _facts(unit: Json) -> str:
    hits, classes = unit["hits"], unit["classes"]
    purity = f"{classes[0]['count'] / len(hits):.2f} {classes[0]['class']}" if classes else ""
    rows = [
        ("strongest", number(hits[0]["score"]) if hits else ""),
        ("weakest kept", number(hits[-1]["score"]) if len(hits) > 1 else ""),
        ("mean over images", number(unit["mean"])),
        ("fires in", f"{percent(unit['density'])} of images"),
        ("class purity", purity),
    ]
    return card("This unit", facts(rows))


def _near(run: Json, layer: Json, unit: Json) -> str:
    if not unit["hits"]:
        return ""
    found = library.about(
        run, "query", "nearest", layer=layer["layer"], unit=unit["unit"], limit=NEAR
    )
    rows = found["rows"]
    if not rows:
        return ""
    tiles = "".join(_neighbour(run, row) for row in rows)
    return card("Nearest units (shared images)", element("div", tiles, class_="near"))


def _neighbour(run: Json, row: Json) -> str:
    name, unit = row["layer"], row["unit"]
    address = addresses.unit_picture(
        run["id"], run["commit"], name, unit, "jpg", show="projection", tile=NEAR_TILE
    )
    told = f"{name}:{unit} shares {row['shared']} images"
    drawn = pieces.picture(address, told) if library.has_pictures(run, name, unit) else ""
    line = element("b", str(unit)) + element("span", f"{row['jaccard']:.2f}", class_="told")
    content = drawn + element("div", line, class_="line") + element("div", text(name),
                                                                    class_="class")  # fmt: skip
    return link(view("unit", run=run["id"], layer=name, unit=unit), content,
                class_="tile", title=told)  # fmt: skip


def _code(run: Json, layer: Json, unit: Json) -> str:
    return (
        f"{library.opening(run)}"
        f"unit = run.unit({layer['layer']!r}, {unit['unit']})\n"
        "unit.projections   # rank × height × width × 3, float32, signed\n"
        "unit.patches       # rank × height × width × 3, uint8\n"
        "unit.figure()      # as in Fig. 2"
    )
