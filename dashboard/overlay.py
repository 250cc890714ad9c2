"""An image and what a grey square hides of it, to lay over each other (Fig. 7 by hand)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from jaxtyping import Float64, Int64
from numpy import ndarray

from dashboard.library import Json
from deconvoy import heat
from deconvoy.occlusion import name_in

HTML = """
<div class="overlay">
  <div class="stack"><img alt=""><canvas tabindex="0"
    aria-label="Values of the map: arrow keys move over it"></canvas></div>
  <div class="controls">
    <label>Map <select></select></label>
    <label>Strength <input type="range" min="0" max="100" value="60"></label>
    <p class="value" role="status"></p>
    <div class="key"></div>
  </div>
</div>
"""

CSS = """
.overlay { display: grid; grid-template-columns: minmax(220px, 420px) minmax(0, 1fr); gap: 1.2rem;
  font: 14px var(--st-font); color: var(--st-text-color); }
.stack { position: relative; line-height: 0; }
.stack img { width: 100%; border-radius: 6px; }
.stack canvas { position: absolute; inset: 0; width: 100%; height: 100%; border-radius: 6px;
  cursor: crosshair; }
.stack canvas:focus-visible { outline: 2px solid var(--st-primary-color); }
.controls { display: flex; flex-direction: column; gap: .7rem; }
.controls label { display: flex; gap: .6rem; align-items: center; }
.controls select { font: inherit; color: inherit; background: var(--st-background-color);
  border: 1px solid var(--st-border-color); border-radius: 6px; padding: .3rem; max-width: 100%; }
.controls input { flex: 1; max-width: 260px; accent-color: var(--st-primary-color); }
.value { margin: 0; min-height: 2.6em; font-variant-numeric: tabular-nums; }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1rem; font-size: .9em; }
.key span { display: inline-flex; align-items: center; gap: .4rem; }
.key i { width: .9em; height: .9em; border-radius: 3px; display: inline-block; }
@media (max-width: 640px) { .overlay { grid-template-columns: minmax(0, 1fr); } }
"""

_overlay = st.components.v2.component(
    "deconvoy.overlay",
    html=HTML,
    css=CSS,
    js=Path(__file__).with_name("overlay.js").read_text(encoding="utf-8"),
)

STEPS = 5
"""Of the scale beside a map."""


def show(occlusion: Json, classes: Sequence[str], picture: str, layer: str | None) -> None:
    """On the page.

    Args:
        occlusion: as the API answers it.
        classes: names of the model's outputs.
        picture: address of the preprocessed image.
        layer: whose map is chosen at first; default: the class's probability.
    """
    maps = [_probability(occlusion), _label(occlusion, classes)]
    maps += [_activity(name, one) for name, one in occlusion["layers"].items()]
    names = [map_["layer"] for map_ in maps]
    height, width = occlusion["size"]
    described = f"Image {occlusion['image']} with a map of {len(occlusion['y'])} × "
    data = {
        "picture": picture,
        "described": f"{described}{len(occlusion['x'])} places over it",
        "size": [height, width],
        "rows": _edges(occlusion["y"], occlusion["patch"]),
        "cols": _edges(occlusion["x"], occlusion["patch"]),
        "maps": maps,
        "start": names.index(layer) if layer in names else 0,
    }
    _overlay(key="overlay", data=data, height="content")


def _edges(starts: Sequence[int], patch: int) -> list[float]:
    """Between the cells of a grid: half way from a square's centre to the next one's."""
    centres = np.array(starts) + patch / 2
    if len(centres) == 1:
        return [centres[0] - patch / 2, centres[0] + patch / 2]
    between = (centres[1:] + centres[:-1]) / 2
    first, last = 2 * centres[0] - between[0], 2 * centres[-1] - between[-1]
    return [float(first), *between.tolist(), float(last)]


def _probability(occlusion: Json) -> Json:
    values = np.array(occlusion["probability"], np.float64)
    name, clean = occlusion["class"], occlusion["clean_probability"]
    return _scaled(
        None,
        f"probability of {name}",
        values,
        f"{name} has the probability {clean:.1%} without a square.",
        lambda value: f"{value:.1%} with the square here; {clean:.1%} without",
    )


def _activity(layer: str, one: Json) -> Json:
    values, clean, unit = np.array(one["activity"], np.float64), one["clean"], one["unit"]

    def told(value: float) -> str:
        change = f" ({value / clean - 1:+.0%})" if clean else ""
        return f"sum over the map {value:,.4g}{change}; {clean:,.4g} without a square"

    return _scaled(
        layer,
        f"{layer} : {unit}, the strongest map",
        values,
        f"The sum over the map of unit {unit} of {layer} is {clean:,.4g} without a square.",
        told,
    )


def _scaled(
    layer: str | None,
    name: str,
    values: Float64[ndarray, "gy gx"],
    hint: str,
    told: Any,
) -> Json:
    """A map in colours from its least to its largest value."""
    low, high = float(values.min()), float(values.max())
    shares = (values - low) / (high - low or 1.0)
    steps = np.linspace(0, 1, STEPS)
    return {
        "layer": layer,
        "name": name,
        "colours": heat.shaded(shares).tolist(),
        "told": [[told(value) for value in row] for row in values.tolist()],
        "key": [
            [colour, f"{low + step * (high - low):.3g}"]
            for colour, step in zip(heat.shaded(steps).tolist(), steps.tolist(), strict=True)
        ],
        "hint": hint,
    }


def _label(occlusion: Json, classes: Sequence[str]) -> Json:
    labels: Int64[ndarray, "gy gx"] = np.array(occlusion["label"], np.int64)
    keys = heat.legend(labels, occlusion["target"])
    clean = name_in(classes, occlusion["clean_label"])
    shown = [
        [
            list(key.colour),
            (name_in(classes, key.label) if key.label is not None else f"{key.classes} others")
            + f" {key.share:.0%}",
        ]
        for key in keys
    ]
    return {
        "layer": "class",
        "name": "most probable class",
        "colours": heat.coloured(labels, keys).tolist(),
        "told": [
            [f"{name_in(classes, label)} with the square here; {clean} without" for label in row]
            for row in labels.tolist()
        ],
        "key": shown,
        "hint": f"Without a square the most probable class is {clean}.",
    }
