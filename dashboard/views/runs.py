"""All runs of the service."""

import streamlit as st

from dashboard import library, pieces
from dashboard.addresses import changed, view
from dashboard.library import Json
from dashboard.pieces import bar, element, heading, link, number, percent, pills, text
from dashboard.views import asked

PAGE = 50
STATES = ("done", "running", "failed", "stopped", "interrupted")

NOTHING = """There is no run here yet. Make one under <em>New job</em>, by <code>deconvoy submit
SPEC</code>, or show one that is there: <code>deconvoy up path/to/run</code>."""


def show() -> None:
    state = asked.state()
    offset = asked.number("offset") or 0
    page = library.ask(
        "runs",
        status=state.get("status"),
        tag=state.get("tag"),
        text=state.get("text"),
        offset=offset,
        limit=PAGE,
    )
    total = page["total"]
    chosen = {key: state[key] for key in ("text", "tag") if key in state}
    told = f"{total:,} {'run' if total == 1 else 'runs'}"
    told += "".join(f" · {key} {text(value)!r}" for key, value in chosen.items())
    pieces.put(heading("Runs", told))
    pieces.put(_filters(state))
    if page["runs"]:
        pieces.put(_table(page["runs"]), _pages(state, offset, total))
    elif chosen or "status" in state:
        pieces.put(element("p", "No run is like that. " + link("/", "Show all"), class_="empty"))
    else:
        pieces.put(element("p", NOTHING, class_="empty"))
    st.set_page_config(page_title="Runs · Deconvoy")


def _filters(state: dict[str, str]) -> str:
    kept = {key: value for key, value in state.items() if key != "offset"}
    options = [("All", changed("", kept, status=None), "status" not in state)]
    options += [
        (name, changed("", kept, status=name), state.get("status") == name) for name in STATES
    ]
    cleared = pills("Clear", [("× clear", "/", False)]) if "text" in state or "tag" in state else ""
    return bar(pills("State", options), cleared)


def _table(runs: list[Json]) -> str:
    names = ("Run", "State", "Model", "Images", "Layers", "Units", "Top-1", "Made")
    kinds = ("", "", "wide-only", "n", "n wide-only", "n wide-only", "n", "wide-only")
    cells = zip(names, kinds, strict=True)
    head = element("tr", "".join(element("th", name, class_=kind) for name, kind in cells))
    body = "".join(_row(run, kinds) for run in runs)
    table = element("table", f"<thead>{head}</thead><tbody>{body}</tbody>", class_="rows")
    return element("div", table, class_="scroll")


def _row(run: Json, kinds: tuple[str, ...]) -> str:
    name = link(view("run", run=run["id"]), text(run["name"] or run["id"]))
    pinned = '<span title="pinned" aria-label="pinned">★</span> ' if run["pinned"] else ""
    tags = "".join(" " + link(view("", tag=tag), text(tag), class_="tag") for tag in run["tags"])
    cells = (
        pinned + name + tags,
        element("span", text(run["status"]), class_=f"state {run['status']}"),
        text(run["model"].removeprefix("torchvision/")),
        number(run["images"]),
        number(run["layers"]) if run["kind"] == "job" else "study",
        number(run["units"]),
        percent(run["top1"]),
        text((run["created"] or "")[:10]),
    )
    shown = (element("td", cell, class_=kind) for cell, kind in zip(cells, kinds, strict=True))
    return element("tr", "".join(shown))


def _pages(state: dict[str, str], offset: int, total: int) -> str:
    if total <= PAGE:
        return ""
    ways = []
    if offset:
        ways.append(("‹ newer", changed("", state, offset=max(0, offset - PAGE) or None), False))
    if offset + PAGE < total:
        ways.append(("older ›", changed("", state, offset=offset + PAGE), False))
    return bar(pills("Pages", ways))
