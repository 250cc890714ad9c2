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

_HEAD = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>$name</title>
<style>
:root { color-scheme: light dark; --ink: #1b1e26; --muted: #5d6472; --page: #fbfbfd;
  --line: #d9dce3; --link: #1f56b0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaf0; --muted: #9ba1ae; --page: #0f1115; --line: #2b303b; --link: #86b3ff; } }
body { margin: 0 auto; padding: 2rem 1.5rem; max-width: 82rem; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0; font-family: ui-monospace, monospace;
  overflow-wrap: anywhere; }
p { margin: .2rem 0 1rem; color: var(--muted); max-width: 60rem; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 1rem 0;
  font: .85rem ui-monospace, monospace; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .9rem .15rem 0; border-bottom: 1px solid var(--line); text-align: left; }
.wall { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 19.5rem), 1fr)); }
figure { margin: 0; }
figcaption { font-size: .8rem; color: var(--muted); overflow-wrap: anywhere; }
img { display: block; max-width: 100%; height: auto; border-radius: 3px; }
pre { overflow-x: auto; font-size: .8rem; }
</style>
</head>
<body>
<h1>$name</h1>
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
</body>
</html>
""")
