"""Curves, drawn by Vega in the browser: named below, values under the mouse."""

from collections.abc import Sequence

import altair
import numpy as np
import pyarrow as pa
import streamlit as st

from dashboard import pieces
from dashboard.pieces import element

HEIGHT = 340


def draw(
    along: np.ndarray,
    lines: Sequence[tuple[str, np.ndarray]],
    x: str,
    y: str,
    ordered: bool = False,
) -> None:
    """Lines over ``along``.

    Args:
        lines: names and values.
        x, y: what is along the axes.
        ordered: the order of the lines means something, as that of layers: so do their colours.
    """
    if not lines:
        pieces.put(element("p", "There is nothing to draw.", class_="empty"))
        return
    names = [name for name, _ in lines]
    rows = pa.table(
        {
            x: np.tile(along, len(lines)),
            y: np.concatenate([values for _, values in lines]).astype(np.float64),
            "of": pa.array(np.repeat(names, len(along)), pa.string()),
        }
    )
    finest = 1 if np.issubdtype(along.dtype, np.integer) else 0  # no checkpoint is the 1.5th
    colour = altair.Color(
        "of:N",
        sort=names,
        title=None,
        scale=altair.Scale(domain=names, scheme="viridis" if ordered else "tableau10"),
        legend=altair.Legend(orient="bottom", columns=2, labelLimit=190, symbolLimit=0),
    )
    chart = altair.Chart(rows).mark_line(point=altair.OverlayMarkDef(size=12)).encode(
        x=altair.X(_field(x), title=x, axis=altair.Axis(tickMinStep=finest)),
        y=altair.Y(_field(y), title=y),
        color=colour,
        tooltip=["of:N", altair.Tooltip(_field(x)), altair.Tooltip(_field(y), format=".3g")],
    )  # fmt: skip
    height = HEIGHT + 11 * len(lines)
    st.altair_chart(chart.properties(height=height), width="stretch")


def _field(name: str) -> str:
    """A column of numbers; its name may hold what Vega reads as a path."""
    escaped = name.replace(".", "\\.").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    return f"{escaped}:Q"
