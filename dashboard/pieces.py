"""Pieces of pages, as HTML.  What comes from data is escaped here."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import streamlit as st

from dashboard.addresses import changed
from deconvoy.errors import DeconvoyError
from deconvoy.markup import element, text

__all__ = ["element", "text"]


def put(*markup: str) -> None:
    """Onto the page; nothing, where it is empty."""
    content = "".join(markup)
    if content:
        st.html(content)


def telling(show: Callable[..., None]) -> Callable[..., None]:
    """What runs by itself, outside the script: it tells an error as its sentence, too."""

    @functools.wraps(show)
    def told(*given: Any) -> None:
        try:
            show(*given)
        except DeconvoyError as error:
            put(element("p", text(error), class_="refusal", role="alert"))

    return told


def link(address: str, content: str, **attributes: str) -> str:
    """To another view; the content is markup."""
    kinds = f"go {attributes.pop('class_', '')}".strip()
    return element("a", content, href=address, class_=kinds, **attributes)


def heading(title: str, told: str = "", above: str = "") -> str:
    """Of a view.

    Args:
        title: text.
        told: markup of the line below it.
        above: markup of the way back.
    """
    way = element("nav", above, class_="way", **{"aria-label": "Where this is"}) if above else ""
    below = element("p", told, class_="told") if told else ""
    return element("header", way + element("h1", text(title)) + below, class_="head")


def way(*steps: tuple[str, str]) -> str:
    """The way back: addresses and texts."""
    return '<span class="step">›</span>'.join(link(to, text(name)) for to, name in steps)


def pills(label: str, options: Iterable[tuple[str, str, bool]]) -> str:
    """A choice: text, address and whether it is chosen."""
    shown = "".join(
        link(
            address,
            text(name),
            class_="pill chosen" if chosen else "pill",
            **({"aria-current": "true"} if chosen else {}),
        )
        for name, address, chosen in options
    )
    return element("div", shown, class_="pills", role="group", **{"aria-label": label})


def bar(*groups: str) -> str:
    """Groups of controls in a row."""
    return element("div", "".join(groups), class_="bar")


def pages(name: str, state: Mapping[str, str], offset: int, size: int, total: int) -> str:
    """Where one is among the pages of a view, and the ways to those beside."""
    last = min(offset + size, total)
    told = f"{offset + 1:,}–{last:,} of {total:,}" if total else "none"
    before = changed(name, state, offset=max(0, offset - size) or None) if offset else None
    after = changed(name, state, offset=offset + size) if last < total else None
    steps = (
        _step(before, "‹", "prev", "Page before")
        + element("span", told, class_="told")
        + _step(after, "›", "next", "Next page")
    )
    return bar(element("div", steps, class_="pages"))


def _step(address: str | None, sign: str, rel: str, described: str) -> str:
    if address is None:
        return element("span", sign, class_="pill off", **{"aria-hidden": "true"})
    return link(address, sign, class_="pill", rel=rel, title=described, **{"aria-label": described})


def card(title: str, content: str, kind: str = "") -> str:
    """A titled box."""
    return element("section", element("h2", text(title)) + content, class_=f"card {kind}".strip())


def facts(rows: Iterable[tuple[str, Any]]) -> str:
    """Names and values; those without a value are left out."""
    shown = "".join(
        element("dt", text(name)) + element("dd", value if _markup(value) else text(value))
        for name, value in rows
        if value not in (None, "")
    )
    return element("dl", shown, class_="facts")


class Markup(str):
    """Text that is HTML already."""


def _markup(value: Any) -> bool:
    return isinstance(value, Markup)


def picture(address: str, described: str, **attributes: str) -> str:
    """An image that the browser asks for when it is scrolled to."""
    return (
        f'<img loading="lazy" decoding="async" src="{escape(address)}" alt="{escape(described)}"'
        + "".join(f' {name.rstrip("_")}="{escape(value)}"' for name, value in attributes.items())
        + ">"
    )


def cut(address: str, tile: int, rank: int, ranks: int, described: str) -> str:
    """One hit of a unit's picture: the sheet of all is enlarged and moved behind a box, so that the
    browser asks for one file.

    Args:
        address: of the sheet, as ``addresses.unit_picture`` has it.
        tile: side of a hit in it.
        ranks: places for hits in it.
    """
    columns = math.ceil(math.sqrt(ranks))
    gap = max(1, tile // 32)
    step, rows = tile + gap, math.ceil(ranks / columns)
    width, height = columns * step - gap, rows * step - gap
    row, column = divmod(rank, columns)
    style = (
        f"width:{100 * width / tile:.3f}%;"
        f"transform:translate({-100 * column * step / width:.3f}%,"
        f"{-100 * row * step / height:.3f}%)"
    )
    return picture(address, described, style=style)


def bars(counts: Sequence[int], described: str) -> str:
    """A histogram, its bars as high as their counts are."""
    most = max(counts, default=0) or 1
    shown = "".join(
        f'<i style="height:{max(100 * count / most, 1.5 if count else 0):.1f}%"></i>'
        for count in counts
    )
    return element("div", shown, class_="bars", role="img", **{"aria-label": described})


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Layers as they are called where there is little room: ``features.3.expand1x1_activation``
    without the end that more than half of them have, if they then still differ."""
    ends = Counter(f"_{end}" for _, _, end in (name.rpartition("_") for name in names) if end)
    end, count = ends.most_common(1)[0] if ends else ("", 0)
    if 2 * count <= len(names):
        return {name: name for name in names}
    short = {name: name.removesuffix(end) or name for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in names}


def number(value: float | None, digits: int = 4) -> str:
    """For people: thousands apart, four digits."""
    if value is None:
        return ""
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.3g} %"
