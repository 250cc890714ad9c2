"""Beside every view: where one is, a search, and the layers of the run."""

import streamlit as st

from dashboard import going, library, pieces
from dashboard.addresses import view
from dashboard.library import Json
from dashboard.pieces import element, link, text

SEARCH = "search"

IMAGES = ("images", "image", "upload")


def show(here: str, run_id: str | None) -> None:
    """
    Args:
        here: name of the view that is shown.
        run_id: of the run that it is of.
    """
    with st.sidebar:
        pieces.put(link("/", "Deconvoy", class_="brand"))
        run = None if run_id is None else library.summary(run_id)
        if run is not None:
            pieces.put(_about(run))
        st.text_input(
            "Search",
            key=SEARCH,
            placeholder="layer:unit, class, image …" if run else "Search runs …",
            label_visibility="collapsed",
            on_change=_search,
            args=(run_id,),
        )
        pieces.put(_ways(here, run))
        asked = st.session_state.pop(SEARCH_FOR, None)
        if asked is not None:
            going.to(asked)


SEARCH_FOR = "search-for"


def _search(run_id: str | None) -> None:
    """A callback runs before the page does, and may not leave it itself."""
    words = st.session_state[SEARCH].strip()
    st.session_state[SEARCH] = ""
    if words:
        view_of = view("", text=words) if run_id is None else view("search", run=run_id, q=words)
        st.session_state[SEARCH_FOR] = view_of


def _about(run: Json) -> str:
    name = link(view("run", run=run["id"]), text(run["name"] or run["id"]), class_="run")
    images = f"{run['images']:,} images"
    told = [run["model"].rpartition("/")[2], images, (run["created"] or "")[:10]]
    return name + element("p", text(" · ".join(filter(None, told))), class_="told")


def _ways(here: str, run: Json | None) -> str:
    ways = [_way("/", "Runs", here=here == "")]
    if run is not None:
        ways.append(_way(view("run", run=run["id"]), "This run", here=here == "run"))
    if run is not None and run["kind"] == "job":
        ways += [
            _way(view("images", run=run["id"]), "Images", here=here in IMAGES),
            _way(view("analysis", run=run["id"]), "Analyses", here=here == "analysis"),
            _way(view("compare", run=run["id"]), "Compare", here=here == "compare"),
        ]
    ways += [_way(view("jobs"), "Jobs", here=here in ("jobs", "job"))]
    if library.takes_jobs():
        ways += [_way(view("new"), "New job", here=here == "new")]
    if run is not None:
        state = st.query_params.to_dict()
        layers = library.layers(run)
        if layers:
            ways.append(element("h2", "Layers"))
        short = pieces.short_names([layer["layer"] for layer in layers])
        ways += [
            _way(
                view("layer", run=run["id"], layer=layer["layer"]),
                short[layer["layer"]],
                f"{layer['units']:,}",
                title=layer["layer"],
                here=here in ("layer", "unit") and state.get("layer") == layer["layer"],
                kind="layer",
            )
            for layer in layers
        ]
    return element("nav", "".join(ways), class_="ways", **{"aria-label": "Views"})


def _way(
    address: str,
    name: str,
    count: str = "",
    here: bool = False,
    kind: str = "",
    title: str = "",
) -> str:
    shown = element("span", text(name), title=title or name) + element("small", count)
    current = {"aria-current": "page"} if here else {}
    return link(address, shown, class_=f"{kind} here".strip() if here else kind, **current)
