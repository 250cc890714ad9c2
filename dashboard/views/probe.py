"""How well other classes are told apart by the features of each layer (Tables 4 to 7)."""

import numpy as np

from dashboard import curves, library, pieces
from dashboard.addresses import changed
from dashboard.library import Json
from dashboard.pieces import element, percent, pills, text
from dashboard.views import asked
from deconvoy.errors import RequestError, RunNotFound
from deconvoy.probe import Probe

TOLD = "Linear classifiers on the frozen features of each layer, for other labelled images"


def show(run: Json) -> None:
    state = asked.state()
    try:
        found = library.opened(run).probe()
    except RunNotFound as error:
        pieces.put(element("p", text(error), class_="empty"))
        return
    train = asked.number("train") or max(found.train)
    if train not in found.train:
        raise RequestError(
            f"The address says train={train}, but this probe learned from "
            f"{', '.join(map(str, found.train))} images of each class: mend it."
        )
    size = found.train.index(train)
    ways = [
        (f"{number:,} a class", changed("analysis", state, train=number), number == train)
        for number in found.train
    ]
    told = f"{len(found.classes):,} classes; guessing would be right in {percent(found.chance)}."
    pieces.put(pieces.bar(pills("Training images", ways)), element("p", text(told), class_="told"))
    lines = [
        (f"{weights}, {classifier}", found.accuracy[row, :, column, size].mean(1))
        for row, weights in enumerate(found.weights)
        for column, classifier in enumerate(found.classifiers)
    ]
    if found.scratch is not None:
        across = np.full(len(found.layers), found.scratch[size].mean())
        lines.append(("trained from scratch", across))
    curves.draw(np.arange(1, len(found.layers) + 1), lines, "layer", "accuracy")
    pieces.put(_table(found, size))


def _table(found: Probe, size: int) -> str:
    kinds = [
        (row, column, f"{weights}, {classifier}")
        for row, weights in enumerate(found.weights)
        for column, classifier in enumerate(found.classifiers)
    ]
    names = ("", "Layer", "Features", *(name for _, _, name in kinds))
    head = "".join(element("th", text(name)) for name in names)
    body = ""
    for number, layer in enumerate(found.layers):
        cells = [str(number + 1), text(layer), text(found.pooled[number])]
        for row, column, _ in kinds:
            cells.append(_over_folds(found.accuracy[row, number, column, size]))
        body += element("tr", "".join(element("td", cell) for cell in cells))
    if found.scratch is not None:
        cells = ["", "whole network", "trained from scratch"]
        last = element("td", _over_folds(found.scratch[size]), colspan=str(len(kinds)))
        body += element("tr", "".join(element("td", cell) for cell in cells) + last)
    table = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return element("div", element("table", table, class_="rows"), class_="scroll")


def _over_folds(accuracy: np.ndarray) -> str:
    return f"{100 * accuracy.mean():.1f} ± {100 * accuracy.std():.1f} %"
