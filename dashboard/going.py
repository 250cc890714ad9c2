"""From view to view: links that stay in the session, and buttons that lead somewhere."""

from pathlib import Path
from typing import NoReturn

import streamlit as st

from dashboard import addresses

_follow = st.components.v2.component(
    "deconvoy.follow", js=Path(__file__).with_name("follow.js").read_text(encoding="utf-8")
)

PAGES = "dashboard.pages"
"""Where the session keeps its views by name."""


def begin(pages: dict[str, st.Page]) -> None:
    """Listen to the links of this page."""
    st.session_state[PAGES] = pages
    clicked = _follow(key="follow", on_to_change=lambda: None).to
    if clicked:
        to(clicked)


def to(address: str) -> NoReturn:
    """Go to a view."""
    name, state = addresses.taken_apart(address)
    pages: dict[str, st.Page] = st.session_state[PAGES]
    st.switch_page(pages.get(name, pages[""]), query_params=state)
