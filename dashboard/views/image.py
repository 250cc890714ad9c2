"""One image: what is known of it, which units it excites most, and what a square hides of it."""

from itertools import groupby

import streamlit as st

from dashboard import addresses, library, overlay, pieces
from dashboard.addresses import changed, view
from dashboard.library import Json
from dashboard.pieces import (
    Markup,
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

SIDE = 512
TILE = 44
SHOWN = 12
"""Hits of a layer, unless it is chosen."""


def show() -> None:
    run, state = asked.run(), asked.state()
    id_ = asked.number("image")
    if id_ is None:
        raise RequestError("The address of this view names no image: add image=0 to it.")
    only = state.get("layer")
    image = library.about(run, "images", id_, layer=only, each=library.PAGE_ROWS if only else SHOWN)
    name = run["name"] or run["id"]
    st.set_page_config(page_title=f"Image {id_} · {name} · Deconvoy")
    back = pieces.way(
        ("/", "Runs"),
        (view("run", run=run["id"]), name),
        (view("images", run=run["id"]), "Images"),
    )
    title = image["class"] or image["predicted_class"] or f"image {id_}"
    pieces.put(heading(title, text(image["uri"]), back))
    if image["skipped"]:
        told = f"This image was left out: {image['skipped']}"
        pieces.put(element("p", text(told), class_="refusal"))
    pieces.put(element("div", _picture(run, image) + _about(run, image), class_="image"))
    if image["occluded"]:
        _occlusion(run, image, state)
    pieces.put(_hits(run, image, state))


def _picture(run: Json, image: Json) -> str:
    if not image["picture"]:
        told = (
            "The run keeps no whole picture of this image, and the service may not read its file: "
            "below are the patches of it that units respond to."
        )
        return element("p", told, class_="empty")
    address = addresses.image_picture(run["id"], run["commit"], image["id"], SIDE)
    return pieces.picture(address, f"Image {image['id']}: {image['uri']}", class_="photograph")


def _about(run: Json, image: Json) -> str:
    right = image["predicted"] == image["label"]
    size = f"{image['width']} × {image['height']} px" if image["width"] else ""
    rows = [
        ("class", _class(run, image["class"])),
        ("predicted", _class(run, image["predicted_class"])),
        ("probability", percent(image["probability"])),
        ("right", ("yes" if right else "no") if image["label"] is not None else ""),
        ("size", size),
        ("number", number(image["id"])),
        ("among the strongest of", f"{sum(row['units'] for row in image['layers']):,} units"),
    ]
    return card("This image", facts(rows))


def _class(run: Json, name: str) -> Markup:
    return Markup(
        link(view("images", run=run["id"], **{"class": name}), text(name)) if name else ""
    )


def _occlusion(run: Json, image: Json, state: dict[str, str]) -> None:
    found = library.about(run, "occlusion", image["id"])
    layer = state.get("map")
    pieces.put(
        element("h2", "What a grey square hides", class_="part"),
        element("p", _square(found), class_="told"),
    )
    shown = addresses.image_picture(run["id"], run["commit"], image["id"], max(found["size"]), True)
    overlay.show(found, run["classes"], shown, layer)
    panels = addresses.occlusion_picture(run["id"], run["commit"], image["id"], layer)
    drawn = pieces.picture(
        panels, f"Five panels of Fig. 7 for image {image['id']}", class_="panels"
    )
    layers = [("the last of maps", changed("image", state, map=None), layer is None)]
    layers += [(name, changed("image", state, map=name), name == layer) for name in found["layers"]]
    saved = f"{run['id']}-image-{image['id']}.png"
    get = element("a", "↓ PNG", href=panels, download=saved, class_="pill")
    pieces.put(
        element(
            "details",
            element("summary", "As in Fig. 7 of the paper")
            + pieces.bar(pills("Layer", layers), get)
            + element("div", drawn, class_="scroll"),
            open="",
        )
    )


def _square(found: Json) -> str:
    values = [value for row in found["probability"] for value in row]
    return text(
        f"A square of {found['patch']} px moved in steps of {found['stride']} px: the probability "
        f"of {found['class']} is {percent(found['clean_probability'])} without it, and "
        f"{percent(min(values))} at the least."
    )


def _hits(run: Json, image: Json, state: dict[str, str]) -> str:
    if not image["hits"]:
        told = "No unit has this image among its strongest."
        return element("p", told, class_="empty")
    only, counts = state.get("layer"), {row["layer"]: row["units"] for row in image["layers"]}
    parts = []
    for name, group in groupby(image["hits"], key=lambda hit: str(hit["layer"])):
        hits = list(group)
        title = link(view("layer", run=run["id"], layer=name), text(name))
        count = f" {counts[name]:,} " + ("units " if counts[name] > 1 else "unit ")
        more = ""
        if only == name:
            more = link(changed("image", state, layer=None), "all layers", class_="pill")
            if counts[name] > len(hits):
                told = (
                    f" the first {len(hits):,} of them; all by deconvoy query "
                    f"image {image['id']} {name}"
                )
                more = element("span", text(told), class_="told") + more
        elif counts[name] > len(hits):
            more = link(changed("image", state, layer=name), f"all {counts[name]:,}", class_="pill")
        tiles = "".join(_hit(run, hit) for hit in hits)
        head = element("h3", title + element("span", count, class_="told") + more)
        parts.append(head + element("div", tiles, class_="wall hits"))
    return element("h2", "Units it excites most", class_="part") + "".join(parts)


def _hit(run: Json, hit: Json) -> str:
    name, unit, rank = hit["layer"], hit["unit"], hit["rank"]
    told = f"{name}:{unit}, rank {rank + 1}, activation {hit['score']:.4g}"
    if hit["projected"]:
        sheet = addresses.unit_picture(
            run["id"], run["commit"], name, unit, "jpg", show="projection", tile=TILE
        )
        ranks = library.top_ranks(run)
        drawn = element("span", cut(sheet, TILE, rank, ranks, told), class_="box")
    else:
        drawn = ""
    line = element("b", str(unit)) + element("span", number(hit["score"]), class_="told")
    content = drawn + element("div", line, class_="line")
    below = element("div", f"rank {rank + 1}", class_="class")
    address = view("unit", run=run["id"], layer=name, unit=unit)
    return link(address, content + below, class_="tile hit", title=told)
