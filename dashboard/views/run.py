"""One run: what it is, and its layers from pixels to logits."""

import streamlit as st

from dashboard import library, pieces
from dashboard.addresses import view
from dashboard.library import Json
from dashboard.pieces import Markup, card, element, facts, heading, link, number, percent, text
from dashboard.views import asked, study
from deconvoy.methods import METHODS


def show() -> None:
    run = asked.any_run()
    name = run["name"] or run["id"]
    st.set_page_config(page_title=f"{name} · Deconvoy")
    state = element("span", text(run["status"]), class_=f"state {run['status']}")
    tags = "".join(" " + link(view("", tag=tag), text(tag), class_="tag") for tag in run["tags"])
    pieces.put(heading(name, state + tags, pieces.way(("/", "Runs"))))
    if run["failure"]:
        pieces.put(element("p", text(run["failure"]), class_="refusal", role="alert"))
    if run["kind"] == "study":
        study.show(run)
        _spec(run)
        st.code(f"{library.opening(run)}run.study().table()")
        return
    layers = library.layers(run)
    if layers:
        pieces.put(_strip(run, layers))
    else:
        told = f"Its layers are there once all images are scanned; it is {text(run['status'])}."
        pieces.put(element("p", told, class_="empty"))
    pieces.put(element("div", _model(run) + _data(run) + _made(run), class_="cards"))
    _spec(run)
    st.code(f"{library.opening(run)}run.layers()")


def _spec(run: Json) -> None:
    with st.expander("Spec and provenance"):
        st.json({"spec": run["spec"], "provenance": run["provenance"]}, expanded=1)
    pieces.put(heading("From code"))


def _strip(run: Json, layers: list[Json]) -> str:
    """The network, a box a layer; as high as its maps are, as bright as it has units."""
    side = run["provenance"]["transform"]["crop"]
    boxes = [element("div", element("b", "pixels") + f"<span>{side} × {side}</span>", class_="px")]
    most = max(layer["units"] for layer in layers)
    short = pieces.short_names([layer["layer"] for layer in layers])
    for layer in layers:
        size = layer["height"] * layer["width"]
        maps = f"{layer['height']} × {layer['width']}" if size > 1 else "neurons"
        sees = "whole image" if layer["whole_image"] else f"sees {_side(layer['field_size'])} px"
        dead = f"{layer['dead_units']:,} dead" if layer["dead_units"] else ""
        content = (
            element("b", text(short[layer["layer"]]), title=layer["layer"])
            + f"<span>{layer['units']:,} × {maps}</span>"
            + f"<span>{sees}</span><span>{dead}</span>"
            + f'<i style="width:{max(4, 100 * layer["units"] / most):.0f}%"></i>'
        )
        boxes.append(link(view("layer", run=run["id"], layer=layer["layer"]), content))
    return element("div", "".join(boxes), class_="strip")


def _side(size: list[int | None] | None) -> str:
    if size is None or None in size:
        return "?"
    return str(size[0]) if size[0] == size[1] else f"{size[0]} × {size[1]}"


def _model(run: Json) -> str:
    made = run["provenance"]
    rows = [
        ("model", run["model"]),
        ("weights", (run["spec"].get("model") or {}).get("weights")),
        ("weights sha256", str(made.get("model_sha256", ""))[:16]),
        ("outputs", number(made.get("outputs"))),
        ("top-1", percent(run["top1"])),
    ]
    return card("Model", facts(rows))


def _data(run: Json) -> str:
    transform = run["provenance"].get("transform") or {}
    results = run["results"] or {}
    images = link(view("images", run=run["id"]), number(run["images"]))
    rows = [
        ("data", (run["spec"].get("data") or {}).get("uri")),
        ("images", Markup(images)),
        ("skipped", number(results.get("skipped")) if results.get("skipped") else ""),
        ("labels", run["labels"]),
        ("resize, crop", f"{transform.get('resize')}, {transform.get('crop')} px"),
        ("occluded", number(run["occluded"]) if run["occluded"] else ""),
    ]
    return card("Data", facts(rows))


def _made(run: Json) -> str:
    made = run["provenance"]
    projects = any(analysis["kind"] == "projection" for analysis in run["spec"]["analyses"])
    rows = [
        ("made", (run["created"] or "").replace("T", " ")[:16]),
        ("took", "" if run["seconds"] is None else pieces.duration(run["seconds"])),
        ("precision", made.get("dtype")),
        ("projections", METHODS[library.method_of(run)].name if projects else ""),
        ("device", ", ".join(made.get("device", []))),
        ("commit", run["commit"]),
    ]
    return card("Made", facts(rows))
