"""The images of a run: found by path and class, and those that excite most units."""

import streamlit as st

from dashboard import addresses, going, library, pieces
from dashboard.addresses import changed, view
from dashboard.library import Json
from dashboard.pieces import bar, element, heading, link, percent, pills, text
from dashboard.views import asked

PAGE = 48
SIDE = 192
"""Of a thumbnail, in pixels."""


def show() -> None:
    run, state = asked.run(), asked.state()
    name = run["name"] or run["id"]
    st.set_page_config(page_title=f"Images · {name} · Deconvoy")
    offset = asked.number("offset") or 0
    page = library.about(
        run,
        "images",
        text=state.get("text"),
        label=state.get("class"),
        skipped=state.get("skipped"),
        offset=offset,
        limit=PAGE,
    )
    told = f"{page['total']:,} " + ("image" if page["total"] == 1 else "images")
    told += f" with {state['text']!r} in the path" if "text" in state else ""
    told += f" of the class {state['class']!r}" if "class" in state else ""
    back = pieces.way(("/", "Runs"), (view("run", run=run["id"]), name))
    pieces.put(heading("Images", text(told), back))
    controls, classes = st.columns([4, 1], vertical_alignment="center")
    with controls:
        pieces.put(_controls(run, state))
    with classes:
        choose_class(run, state, "images")
    tiles = "".join(tile(run, row) for row in page["images"])
    none = element("p", "No image is like that.", class_="empty")
    pieces.put(
        pieces.pages("images", state, offset, PAGE, page["total"]),
        element("div", tiles, class_="wall") if tiles else none,
    )


def _controls(run: Json, state: dict[str, str]) -> str:
    kept = {key: value for key, value in state.items() if key != "offset"}
    clear = [("× clear", view("images", run=run["id"]), False)]
    skipped = state.get("skipped") == "true"
    left_out: list[tuple[str, str, bool]] = [
        ("All", changed("images", kept, skipped=None), not skipped),
        ("Left out as unreadable", changed("images", kept, skipped="true"), skipped),
    ]
    there = (run["results"] or {}).get("skipped")
    return bar(
        pills("Which", left_out) if there or skipped else "",
        pills("Clear", clear) if "text" in state or "class" in state else "",
        link(view("upload", run=run["id"]), "+ Try an image of your own", class_="pill")
        if library.takes_jobs()
        else "",
    )


def tile(run: Json, row: Json, below: str = "") -> str:
    """An image, small.

    Args:
        below: text under its class.
    """
    said = row["class"] or row["predicted_class"]
    if row["picture"]:
        address = addresses.image_picture(run["id"], run["commit"], row["id"], SIDE)
        drawn = pieces.picture(address, f"Image {row['id']}: {said or row['uri']}", class_="whole")
    else:
        drawn = element("div", "no picture", class_="none")
    wrong = row["label"] is not None and row["predicted"] not in (None, row["label"])
    sign = element("span", "≠", title=f"predicted {row['predicted_class']}") if wrong else ""
    line = element("span", text(said or row["uri"]), class_="name") + sign
    sure = below or (f"predicted {percent(row['probability'])}" if row["probability"] else "")
    content = drawn + element("div", line, class_="line") + element("div", text(sure),
                                                                    class_="class")  # fmt: skip
    address = view("image", run=run["id"], image=row["id"])
    return link(address, content, class_="tile", title=row["uri"])


def choose_class(run: Json, state: dict[str, str], name: str) -> None:
    """Of 1,000 classes one is found by typing."""
    if not run["classes"]:
        return
    now, classes = state.get("class"), run["classes"]
    chosen = st.selectbox(
        "Class",
        classes,
        index=classes.index(now) if now in classes else None,
        placeholder="any class",
        label_visibility="collapsed",
        key=f"{name}-class-{now}",
    )
    if chosen != now:
        going.to(changed(name, state, **{"class": chosen, "offset": None}))
