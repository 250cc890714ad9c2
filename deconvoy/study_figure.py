"""Draw a study: errors of every network (Table 3), how they came about, and first layers (Fig. 6).

Source: Zeiler & Fergus (2013, arXiv:1311.2901), Table 3, section 4.1 and Fig. 6.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from deconvoy import plotting
from deconvoy.errors import RunNotFound
from deconvoy.study import Study, over_repeats

GAP = 2
"""Pixels between two filters."""

WALLS = 8
"""Networks whose first layers are shown, at most."""

STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Of curves, in turn: ten colours alone would come again, and seven and four together do not before
28.  Each curve is thinner than those below it, so that one that lies on another leaves it seen."""

WIDTHS = (3.0, 1.2)
"""Of the first curve and of the last, in points."""


def filter_wall(
    filters: Float[np.ndarray, "unit row col channel"], tile: int = 28
) -> UInt8[np.ndarray, "height width rgb"]:
    """Filters beside each other, each scaled by its own largest weight: mid-grey is zero.

    A dominating filter would make all others look empty if one scale held for all.
    """
    units, height, width, channels = filters.shape
    columns = math.ceil(math.sqrt(2 * units))
    rows = math.ceil(units / columns)
    step = tile + GAP
    wall = np.full((rows * step - GAP, columns * step - GAP, 3), 255, np.uint8)
    for unit, one in enumerate(filters):
        one = np.nan_to_num(one)  # of a training that diverged
        largest = float(np.abs(one).max()) or 1.0
        grey = np.rint(255 * (0.5 + 0.5 * one / largest)).astype(np.uint8)
        rgb = np.repeat(grey, 3, 2) if channels == 1 else grey
        picture = Image.fromarray(rgb).resize((tile, tile), Image.Resampling.NEAREST)
        top, left = unit // columns * step, unit % columns * step
        wall[top : top + tile, left : left + tile] = np.asarray(picture)
    return wall


def study_figure(found: Study) -> Image.Image:
    """The page as a picture.

    Raises:
        MissingExtra: matplotlib is not installed.
        RunNotFound: no network came to its end.
    """
    ended = [network for network in range(len(found.networks)) if found.lacking(network) is None]
    if not ended:
        raise RunNotFound(
            "Every network of this study diverged, so there are no errors to draw: begin a new one "
            "with a lower training.learning_rate."
        )
    shown = min(len(ended), WALLS)
    wall_rows = math.ceil(shown / 4)
    page = plotting.page(14.0, 2.2 + 0.32 * len(found.networks) + 1.9 * wall_rows)
    upper, lower = page.subfigures(
        2, 1, height_ratios=(2.2 + 0.32 * len(found.networks), 1.9 * wall_rows)
    )
    bars, curves = upper.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_errors(bars, found)
    draw_curves(curves, found)
    grid = lower.subplots(wall_rows, min(4, shown), squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, network in zip(grid, ended, strict=False):
        layer, repeat = found.first_layers[network], int(found.finished[network].argmax())
        axes.imshow(filter_wall(layer.filter[repeat]))
        told = f"{found.networks[network]}: {layer.dead} of {layer.known} dead"
        axes.set_title(told, fontsize=8)
    lower.suptitle(walls_title(len(ended)), fontsize=10)
    return plotting.drawn(page)


def walls_title(networks: int) -> str:
    """Above the filters; says so where not all networks have a place."""
    part = f"; first {WALLS} of {networks} networks" if networks > WALLS else ""
    return f"filters of the first layer, each to its own scale{part}"


def _draw_errors(drawn: Any, found: Study) -> None:
    rows = np.arange(len(found.networks))
    last = 100 * found.validation_error[:, :, -1]
    mean = over_repeats(last)
    deviation = np.sqrt(over_repeats((last - mean[:, None]) ** 2))
    training = 100 * over_repeats(found.training_error)
    for top, (name, offset) in enumerate((("top-1", -0.2), ("top-5", 0.2))):
        drawn.barh(
            rows + offset, mean[:, top], 0.36, color=f"C{top}",
            xerr=deviation[:, top] if last.shape[1] > 1 else None,
            label=f"validation, {name}", capsize=2,
        )  # fmt: skip
        drawn.plot(
            training[:, top], rows + offset, "|", color="black", markersize=9, markeredgewidth=1.6,
            label="training" if top == 0 else None,
        )  # fmt: skip
    labels = [
        f"{name}  ({found.lacking(network) or f'{found.parameters[network] / 1e6:.2f} M'})"
        for network, name in enumerate(found.networks)
    ]
    drawn.set_yticks(rows, labels, fontsize=8)
    drawn.invert_yaxis()
    drawn.set_xlabel("error, % of images; millions of weights in brackets", fontsize=8)
    drawn.set_xlim(left=0)
    drawn.grid(axis="x", alpha=0.3)
    drawn.legend(fontsize=7, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))


def draw_curves(drawn: Any, found: Study) -> None:
    """Errors by epoch, each network with a look of its own."""
    epochs = np.arange(1, found.loss.shape[2] + 1)
    widths = np.linspace(*WIDTHS, len(found.networks))
    errors = 100 * over_repeats(found.validation_error)[:, :, 0]
    for network, (name, curve) in enumerate(zip(found.networks, errors, strict=True)):
        drawn.plot(
            epochs, curve, label=name, linewidth=widths[network], markersize=widths[network] + 3,
            linestyle=STYLES[network % len(STYLES)], marker=MARKERS[network % len(MARKERS)],
        )  # fmt: skip
    drawn.xaxis.get_major_locator().set_params(integer=True)
    drawn.set_xlabel("epoch", fontsize=8)
    drawn.set_ylabel("validation error, top-1, %", fontsize=8)
    drawn.set_ylim(bottom=0)
    drawn.grid(alpha=0.3)
    drawn.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1), handlelength=3.5)
