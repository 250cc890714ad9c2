"""Draw a probe: accuracy by layer, as tables 4 to 7 tell it, and by training images, as Fig. 9.

Source: Zeiler & Fergus (2013, arXiv:1311.2901), section 5.
"""

import numpy as np
from PIL import Image

from deconvoy import plotting
from deconvoy.probe import Probe

STYLES = {"trained": "-", "random": "--"}
SCRATCH = {"label": "trained from scratch", "color": "black", "linestyle": "-."}


def probe_figure(found: Probe) -> Image.Image:
    """The page as a picture: by layer, of most training images; beside it, where there are several
    numbers of them, the learning curve of the layer that is best then.  Where the whole network was
    trained from scratch, it is a line across, with its deviation, and a curve of its own.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    several = len(found.train) > 1
    page = plotting.page(11.0 if several else 8.0, 4.4)
    grid = page.subplots(1, 2 if several else 1, squeeze=False)[0]
    most = int(np.argmax(found.train))
    for row, weights in enumerate(found.weights):
        for column, classifier in enumerate(found.classifiers):
            own = found.accuracy[row, :, column, most]
            look = {"label": f"{weights}, {classifier}", "color": f"C{column}",
                    "linestyle": STYLES.get(weights, ":")}  # fmt: skip
            grid[0].errorbar(range(len(own)), own.mean(1), own.std(1), marker="o", markersize=3,
                             linewidth=1.4, capsize=2, **look)  # fmt: skip
            if several:
                best = int(own.mean(1).argmax())
                curve = found.accuracy[row, best, column]
                look["label"] += f": {found.layers[best]}"
                grid[1].errorbar(found.train, curve.mean(1), curve.std(1), marker="o",
                                 markersize=3, linewidth=1.4, capsize=2, **look)  # fmt: skip
    if found.scratch is not None:
        mean, deviation = found.scratch.mean(1), found.scratch.std(1)
        grid[0].axhline(mean[most], linewidth=1.2, **SCRATCH)
        ends = mean[most] - deviation[most], mean[most] + deviation[most]
        grid[0].axhspan(*ends, color=SCRATCH["color"], alpha=0.1, linewidth=0)
        if several:
            grid[1].errorbar(found.train, mean, deviation, marker="o", markersize=3, linewidth=1.2,
                             capsize=2, **SCRATCH)  # fmt: skip
    grid[0].set_xticks(range(len(found.layers)), found.layers, rotation=60, ha="right", fontsize=7)
    grid[0].set_title(f"{found.train[most]} training images a class", fontsize=10)
    if several:
        grid[1].set_xlabel("training images a class")
        grid[1].set_title("the best layer of each", fontsize=10)
    for axes in grid:
        axes.axhline(found.chance, color="grey", linewidth=1, linestyle=":", label="chance")
        axes.set_ylim(0, 1)
        axes.set_ylabel("accuracy, mean over classes")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return plotting.drawn(page)
