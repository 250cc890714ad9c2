"""Two runs of one layout side by side: what changed, layer by layer and unit by unit."""

import streamlit as st

from dashboard import addresses, going, library, pieces
from dashboard.addresses import changed, view
from dashboard.library import Json
from dashboard.pieces import card, element, facts, heading, link, number, percent, pills, text
from dashboard.views import asked

PAGE = 24
TILE = 44
RUNS = 200
"""To choose from, at most."""

SHOWS = {"projection": "Projections", "patch": "Patches"}


def show() -> None:
    run, state = asked.run(), asked.state()
    name = run["name"] or run["id"]
    st.set_page_config(page_title=f"Compare {name} · Deconvoy")
    back = pieces.way(("/", "Runs"), (view("run", run=run["id"]), name))
    pieces.put(heading("Compare", "Two models or two checkpoints, the same units", back))
    _choose(run, state)
    if "with" not in state:
        told = "Choose a run of the same architecture and layers: what became of this one in it."
        pieces.put(element("p", told, class_="empty"))
        return
    other = library.summary(state["with"])
    diff = library.between(run, other)
    pieces.put(_overall(run, other, diff))
    layer = state.get("layer")
    if layer is None:
        pieces.put(_layers(state, diff))
    else:
        _units(run, other, layer, state)


def _choose(run: Json, state: dict[str, str]) -> None:
    found = library.ask("runs", limit=RUNS)["runs"]
    names = {each["id"]: each["name"] or each["id"] for each in found if _like(run, each)}
    now = state.get("with")
    if now is not None and now not in names:
        names[now] = now
    if not names:
        told = "No other run here has as many units as this one: compute another of these layers."
        pieces.put(element("p", told, class_="empty"))
        st.stop()
    ids = list(names)
    chosen = st.selectbox(
        "With",
        ids,
        index=ids.index(now) if now in ids else None,
        format_func=lambda id_: f"{names[id_]}  ({id_})" if names[id_] != id_ else id_,
        placeholder="choose a run",
        key=f"compare-{now}",
    )
    if chosen != now and chosen is not None:
        going.to(view("compare", run=run["id"], **{"with": chosen}))


def _like(run: Json, other: Json) -> bool:
    """Whether a run is another one that may be of the same layout."""
    return bool(other["id"] != run["id"] and other["units"] == run["units"] is not None)


def _overall(run: Json, other: Json, diff: Json) -> str:
    differing = ", ".join(diff["differing"]) or "nothing: weights, images and transform are one"
    names = [each["name"] or each["id"] for each in (run, other)]
    before, after = (percent(diff[key]) or "unknown" for key in ("top1_before", "top1_after"))
    swapped = link(
        view("compare", run=other["id"], **{"with": run["id"]}), "⇄ the other way", class_="pill"
    )
    rows = [
        ("before", names[0]),
        ("after", names[1]),
        ("differing", differing),
        ("top-1", f"{before} → {after}"),
    ]
    return element("div", card("Both runs", facts(rows)) + element("p", swapped), class_="cards")


def _layers(state: dict[str, str], diff: Json) -> str:
    names = ("Layer", "Hits kept", "Units changed", "Dead", "Mean score")
    kinds = ("", "bar-cell", "n", "n wide-only", "n")
    head = "".join(
        element("th", name, class_=kind) for name, kind in zip(names, kinds, strict=True)
    )
    rows = []
    for row in diff["layers"]:
        cells = (
            link(changed("compare", state, layer=row["layer"]), text(row["layer"])),
            _share(row["kept"]),
            f"{row['units_changed']:,} of {row['units']:,}",
            f"{row['dead_before']:,} → {row['dead_after']:,}",
            "" if row["score_change"] is None else f"{row['score_change']:+.3g}",
        )
        shown = (element("td", cell, class_=kind) for cell, kind in zip(cells, kinds, strict=True))
        rows.append(element("tr", "".join(shown)))
    table = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return element("div", element("table", table, class_="rows"), class_="scroll")


def _share(kept: float | None) -> str:
    if kept is None:
        return "no hits before"
    bar = element("i", "", style=f"width:{100 * kept:.0f}%")
    return element("span", bar, class_="share") + f" {percent(kept)}"


def _units(run: Json, other: Json, layer: str, state: dict[str, str]) -> None:
    offset, shown = asked.number("offset") or 0, state.get("show", "projection")
    page = library.between(
        run, other, layer, changed=state.get("changed"), offset=offset, limit=PAGE
    )
    kept = {key: value for key, value in state.items() if key != "offset"}
    only = state.get("changed") == "true"
    title = text(layer) + " " + link(changed("compare", kept, layer=None), "all layers",
                                      class_="pill")  # fmt: skip
    shows = [
        (told, changed("compare", kept, show=None if key == "projection" else key), key == shown)
        for key, told in SHOWS.items()
    ]
    which = [
        ("All units", changed("compare", kept, changed=None), not only),
        ("Changed only", changed("compare", kept, changed="true"), only),
    ]
    pairs = "".join(_pair(run, other, layer, row, shown) for row in page["units"])
    pieces.put(
        element("h2", title, class_="part"),
        pieces.bar(pills("Show", shows), pills("Which", which)),
        pieces.pages("compare", state, offset, PAGE, page["total"]),
        element("div", pairs, class_="wall wide")
        if pairs
        else element("p", "No unit of this layer is like that.", class_="empty"),
    )


def _pair(run: Json, other: Json, layer: str, row: Json, shown: str) -> str:
    unit = row["unit"]
    halves = "".join(
        _half(each, layer, unit, row[score], shown, when)
        for each, score, when in (
            (run, "score_before", "before"),
            (other, "score_after", "after"),
        )
    )
    told = "new" if row["kept"] is None else f"{percent(row['kept'])} kept"
    line = element("b", str(unit)) + element("span", told, class_="told")
    return element(
        "div", element("div", line, class_="line") + element("div", halves, class_="pair"),
        class_="tile",
    )  # fmt: skip


def _half(run: Json, layer: str, unit: int, score: float | None, shown: str, when: str) -> str:
    if score is None or not library.has_pictures(run, layer, unit):
        why = "no hits" if score is None else "not projected"
        drawn = element("div", why, class_="none")
    else:
        address = addresses.unit_picture(
            run["id"], run["commit"], layer, unit, "jpg", show=shown, tile=TILE
        )
        drawn = pieces.picture(address, f"{layer}:{unit} {when}")
    below = element("div", f"{when} {number(score)}", class_="class")
    return link(view("unit", run=run["id"], layer=layer, unit=unit), drawn + below)
