"""Draw Fig. 5: how far the features of layers move, and what becomes of the class, when images do.

A row a transformation.  On the left the distance between the features of an image and of the moved
one: of every layer the mean over the images, relative to the norm of the features, dark low layers
to bright high ones; or of one layer a line an image, as in the paper.  On the right the probability
of each image's class.

Source: Zeiler & Fergus (2013, arXiv:1311.2901), Fig. 5.
"""

from typing import Any

import numpy as np
from PIL import Image

from deconvoy import plotting
from deconvoy.invariance import UNITS, Invariance, layer_number

WIDTH, HEIGHT = 11.0, 3.1
"""Of the page, and of a row of it, in inches."""

LEGEND = 1.2
"""Height of the names above the page, in inches."""

NAMED = 12
"""Lines that a legend names at most; of more layers the first, the last and some between."""


def figure5(found: Invariance, layer: str | None = None) -> Image.Image:
    """The page as a picture.

    Args:
        layer: distances of this layer, a line an image; none: of all, a line a layer.

    Raises:
        RunNotFound: the analysis has no such layer.
        MissingExtra: matplotlib is not installed.
    """
    number = None if layer is None else layer_number(found, layer)
    rows = found.transformations
    page = plotting.page(WIDTH, HEIGHT * len(rows) + LEGEND)
    grid = page.subplots(len(rows), 2, squeeze=False)
    for (left, right), name in zip(grid, rows, strict=True):
        steps = found.steps(name)
        amount = found.amount[steps]
        if number is None:
            _layers(left, found, steps, amount)
        else:
            _images(left, found, amount, found.relative[:, steps, number])
            left.set_ylabel(f"{layer}: distance ÷ norm")
        _images(right, found, amount, found.probability[:, steps])
        right.set_ylabel("predicted class's probability" if found.predicted
                         else "true class's probability")  # fmt: skip
        right.set_ylim(-0.03, 1.03)
        for axes in (left, right):
            axes.set_xlabel(f"{name}, {UNITS[name]}")
            axes.grid(alpha=0.3)
    for axes in grid[0]:  # above, so that no line is hidden
        axes.legend(fontsize=7, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False)
    return plotting.drawn(page)


def _layers(axes: Any, found: Invariance, steps: Any, amount: Any) -> None:
    from matplotlib import colormaps

    colours = colormaps["viridis"](np.linspace(0, 0.92, len(found.layers)))
    named = set(np.linspace(0, len(found.layers) - 1, NAMED).round().astype(int).tolist())
    relative = found.relative[:, steps]
    for number, layer in enumerate(found.layers):
        own = relative[:, :, number]
        own = own[~np.isnan(own).any(1)]
        if len(own):
            label = layer if number in named else None
            axes.plot(amount, own.mean(0), color=colours[number], label=label, **_LINE)
    axes.set_ylabel("distance ÷ norm, mean")
    axes.set_ylim(bottom=0)


def _images(axes: Any, found: Invariance, amount: Any, values: Any) -> None:
    for row, own in enumerate(values):
        name = f"{found.name_of(int(found.target[row]))} (image {found.image[row]})"
        axes.plot(amount, own, label=name if row < NAMED else None, **_LINE)


_LINE: dict[str, Any] = {"linewidth": 1.4, "marker": "o", "markersize": 2.5}
