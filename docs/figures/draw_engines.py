"""Draws engines.svg of docs/method.md: `python docs/figures/draw_engines.py`.

One row of each map, as cells.  What is coloured follows from the operations alone, as in the code.
"""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "deconvoy"
matplotlib.rcParams["svg.fonttype"] = "none"
matplotlib.rcParams["font.family"] = "sans-serif"

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

STEPS = (("conv 3", 3, 1, 1), ("pool 2/2", 2, 2, 0), ("conv 3", 3, 1, 1), ("pool 2/2", 2, 2, 0))
"""From the image up: name, kernel, stride, padding."""

IMAGE = 32
EMPTY, LIT, POINT, GREY, PADDED = "#eef0f4", "#f2a65a", "#c0392b", "#7f8c8d", "#fbe3cd"


def lengths() -> list[int]:
    found = [IMAGE]
    for _, kernel, stride, padding in STEPS:
        found.append((found[-1] + 2 * padding - kernel) // stride + 1)
    return found


def cone(position: int) -> list[tuple[int, int]]:
    """Half-open cells of every map, from the image up, that a hit at the top can reach."""
    low, high = position, position + 1
    found = [(low, high)]
    for _, kernel, stride, padding in reversed(STEPS):
        low, high = low * stride - padding, (high - 1) * stride - padding + kernel
        found.append((low, high))
    return found[::-1]


def changed(low: int, high: int) -> list[tuple[int, int]]:
    """Half-open cells of every map that a square over the image can change."""
    found = [(low, high)]
    for (_, kernel, stride, padding), length in zip(STEPS, lengths()[1:], strict=True):
        low = max(0, -(-(low + padding - kernel + 1) // stride))
        high = min(length, (high - 1 + padding) // stride + 1)
        found.append((low, high))
    return found


def draw(axes: Axes, title: str, lit: list[tuple[int, int]], ends: dict[int, str]) -> None:
    sizes = lengths()
    for row, (length, (low, high)) in enumerate(zip(sizes, lit, strict=True)):
        width = IMAGE / length
        for cell in range(min(0, low), max(length, high)):
            inside = 0 <= cell < length
            colour = EMPTY if inside else "white"
            if low <= cell < high:
                colour = ends.get(row, LIT) if inside else PADDED
            box = (cell * width + 0.06 * width, 2 * row)
            axes.add_patch(
                plt.Rectangle(box, 0.88 * width, 0.9, facecolor=colour, edgecolor="#c9ced8", lw=0.5)
            )
        name = "image" if not row else f"{STEPS[row - 1][0]}"
        axes.text(-4.2, 2 * row + 0.45, name, ha="right", va="center", fontsize=10)
        inside = min(high, length) - max(low, 0)
        axes.text(IMAGE + 4.2, 2 * row + 0.45, f"{inside} of {length}", va="center", fontsize=10)
    for row in range(len(sizes) - 1):
        (low, high), (above_low, above_high) = lit[row], lit[row + 1]
        width, above = IMAGE / sizes[row], IMAGE / sizes[row + 1]
        for at, over in ((low * width, above_low * above), (high * width, above_high * above)):
            axes.plot([at, over], [2 * row + 0.95, 2 * row + 1.97], color="#9aa3b2", lw=0.8)
    axes.set_title(title, fontsize=12, loc="left")
    axes.set_xlim(-12, IMAGE + 12)
    axes.set_ylim(-0.4, 2 * len(sizes) - 0.6)
    axes.axis("off")


def main() -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6))
    top = len(STEPS)
    draw(left, "Projection: down from one activation", cone(0), {top: POINT})
    draw(right, "Occlusion: up from one grey square", changed(12, 16), {0: GREY})
    figure.tight_layout()
    place = Path(__file__).with_name("engines.svg")
    figure.savefig(place, metadata={"Date": None})


if __name__ == "__main__":
    main()
