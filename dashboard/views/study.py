"""A study of architectures: what became of every network, how it learned, and its first filters."""

import numpy as np

from dashboard import addresses, curves, library, pieces
from dashboard.library import Json
from dashboard.pieces import element, number, text
from deconvoy.errors import RunNotFound
from deconvoy.study import Study, over_repeats

TILE = 28


def show(run: Json) -> None:
    try:
        found = library.opened(run).study()
    except RunNotFound as error:
        pieces.put(element("p", text(error), class_="empty"))
        return
    pieces.put(_told(run, found), _table(found))
    epochs = np.arange(1, found.loss.shape[2] + 1)
    if len(epochs) > 1:
        pieces.put(element("h2", "How they learned", class_="part"))
        lines = [
            (name, 100 * judged)
            for name, judged in zip(
                found.networks, over_repeats(found.validation_error)[:, :, 0], strict=True
            )
            if np.isfinite(judged).any()
        ]
        curves.draw(epochs, lines, "epoch", "validation error, top-1, %")
    pieces.put(element("h2", "First layers", class_="part"), _walls(run, found))


def _told(run: Json, found: Study) -> str:
    results = run["results"] or {}
    told = (
        f"{number(results.get('images'))} images learned from, "
        f"{number(results.get('validation_images'))} judged by, {len(found.classes):,} classes; "
        "errors in percent, at the end"
    )
    repeats = found.loss.shape[1]
    told += f", means over {repeats} repeats." if repeats > 1 else "."
    return element("p", told, class_="told")


def _table(found: Study) -> str:
    names = (
        "Network", "Weights", "Train top-1", "Train top-5", "Val top-1", "Val top-5",
        "Dead filters", "At the RMS bound", "Low / middle / high frequencies",
    )  # fmt: skip
    kinds = ("", "n", "n", "n wide-only", "n", "n wide-only", "n", "n wide-only", "n wide-only")
    cells = zip(names, kinds, strict=True)
    head = element("tr", "".join(element("th", name, class_=kind) for name, kind in cells))
    rows = found.table().to_pylist()
    best = min((row["validation_top1"] for row in rows if row["repeats"]), default=None)
    body = ""
    for network, row in enumerate(rows):
        lacking = found.lacking(network)
        if lacking is not None:
            few = (text(row["network"]), number(row["parameters"]), lacking)
            body += element("tr", "".join(element("td", cell) for cell in few))
            continue
        spread = f" ± {100 * row['deviation']:.1f}" if row["repeats"] > 1 else ""
        judged = f"{100 * row['validation_top1']:.1f}{spread}"
        held = "" if row["at_bound"] is None else f"{row['at_bound']:,} of {row['filters']:,}"
        own = (
            text(row["network"]),
            number(row["parameters"]),
            f"{100 * row['training_top1']:.1f}",
            f"{100 * row['training_top5']:.1f}",
            element("b", judged) if row["validation_top1"] == best else judged,
            f"{100 * row['validation_top5']:.1f}",
            f"{row['dead']:,} of {row['filters']:,}",
            held,
            " / ".join(f"{100 * row[band]:.0f} %" for band in ("low", "middle", "high")),
        )
        shown = (element("td", cell, class_=kind) for cell, kind in zip(own, kinds, strict=True))
        body += element("tr", "".join(shown))
    table = element("table", f"<thead>{head}</thead><tbody>{body}</tbody>", class_="rows")
    return element("div", table, class_="scroll")


def _walls(run: Json, found: Study) -> str:
    """Filters of every network, as pictures that the browser fetches when they come into view."""
    figures = ""
    for network, name in enumerate(found.networks):
        if found.lacking(network) is not None:
            continue
        address = addresses.filters_picture(run["id"], run["commit"], network, TILE)
        layer = found.first_layers[network]
        told = f"{name}: {layer.dead:,} of {layer.known:,} dead"
        drawn = pieces.picture(address, f"Filters of the first layer of {name}")
        figures += element("figure", drawn + element("figcaption", text(told)))
    return element("div", figures, class_="filters")
