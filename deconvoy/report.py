"""A run as one HTML file to mail: summary, layers, a wall of units a layer, provenance.

Self-contained and inert: no script, no request to any server (its content security policy forbids
both), pictures inside as data URIs.  Written layer by layer, so that memory stays bounded.
"""

import json
from collections.abc import Iterator, Sequence
from string import Template
from typing import Any

import numpy as np

from deconvoy.figures import QUANTILE, SUPPORT_THRESHOLD
from deconvoy.html_page import FOOT, HEAD
from deconvoy.markup import caption, element, layer_table, summary, table, text, unit_figure
from deconvoy.methods import METHODS
from deconvoy.run import Run

UNITS = 16
"""Units shown of each layer, unless told."""


def pages(run: Run, units: int = UNITS) -> Iterator[str]:
    """The report in parts, head to foot.

    Args:
        units: at most so many of each layer.
    """
    name = run.spec.name or run.attributes["provenance"]["model"]
    links = (
        element("a", text(layer), href=f"#layer-{number}")
        for number, layer in enumerate(run.layer_names)
    )
    yield HEAD.substitute(name=text(name))
    yield _HEAD.substitute(
        name=text(name),
        summary=text(summary(run)),
        labels=_LABELS[run.labels],
        links=" ".join(links),
        layers=layer_table(run),
        method=text(METHODS[run.spec.method].name),
        source=text(METHODS[run.spec.method].source),
        quantile=f"{100 * QUANTILE:g}",
        threshold=f"{100 * SUPPORT_THRESHOLD:g}",
    )
    for number, layer in enumerate(run.layer_names):
        yield _section(run, number, layer, units)
    yield _FOOT.substitute(
        provenance=table(("what", "value"), _flat(run.attributes["provenance"])),
        spec=text(json.dumps(run.spec.to_json(), indent=2)),
    )
    yield FOOT


def chosen(units: Sequence[int], count: int) -> list[int]:
    """Units evenly spaced over all there are: the first ones alone would say little of a layer."""
    if len(units) <= count:
        return list(units)
    places = np.linspace(0, len(units) - 1, count).round().astype(int)
    return [units[place] for place in places.tolist()]


def _section(run: Run, number: int, layer: str, count: int) -> str:
    group = run.layer_group(layer)
    total = int(str(group.attrs["units"]))
    hit = set(run.table(layer)["unit"].to_pylist())
    projected = [unit for unit in run.projected_units(layer) if unit in hit]
    shown = chosen(projected or sorted(hit), count)
    head = element("h2", text(layer))
    dead = len(run.dead_units(layer))
    told = f"{group.attrs['op']}, {total:,} units, {dead:,} dead; {len(shown):,} shown"
    if projected:
        look = run.look(layer)
        told += ", zoomed to what carries signal and smoothed" if look["zoom"] else ""
        wall = "".join(unit_figure(run.unit(layer, unit), look) for unit in shown)
        body = element("div", wall, class_="wall")
    else:
        told += "; not projected"
        body = table(("unit", "class of the output", "hits"), _rows(run, layer, shown))
    return element("section", f"{head}<p>{text(told)}</p>{body}", id=f"layer-{number}")


def _rows(run: Run, layer: str, units: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    """Units without pictures; those of the last layer are the classes themselves."""
    outputs = layer == run.layer_names[-1] == "logits"
    for unit in units:
        yield unit, run.class_name(unit) if outputs else "", caption(run.unit(layer, unit))


def _flat(fields: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{above}{key}", shown


_LABELS = {
    "true": "Classes are the data's own.",
    "predicted": "The data carries no classes: those shown are the model's predictions.",
}

_HEAD = Template("""<h1>$name</h1>
<p>$summary. $labels</p>
<p>For each unit: its strongest hits' $method projections (left) and the image patches that caused
them (right), strongest first; its number, its largest activation, and the commonest class of its
hits. Colours are signed: mid-grey is zero, and each projection is scaled by the $quantile %
quantile of its magnitudes. Zoomed tiles show where these exceed $threshold % of the largest. Dark
tiles: no further image excites the unit. Method: $source.</p>
<nav>$links</nav>
<div class="wide">$layers</div>
""")

_FOOT = Template("""
<section>
<h2>Provenance</h2>
<div class="wide">$provenance</div>
<details><summary>Job spec</summary><pre>$spec</pre></details>
</section>
""")
