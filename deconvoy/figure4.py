"""Draw Fig. 4: what units saw at each checkpoint, projections above the patches they explain.

A row of each a unit, a column a checkpoint, the last one the end of training.

Source: Zeiler & Fergus (2013, arXiv:1311.2901), Fig. 4.
"""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from deconvoy.errors import RequestError, RunNotFound
from deconvoy.evolution import Evolution
from deconvoy.figures import BACKGROUND, BRIGHT, EMPTY, MUTED, Half, Look, hit_tile
from deconvoy.lettering import clipped, font

UNITS = 6
"""Shown unless told: those whose final strongest activation is largest."""

TITLE, TEXT = 15, 11
"""Sizes of letters, in pixels."""

MARGIN = 18


def figure4(
    found: Evolution,
    units: Sequence[int] | None = None,
    *,
    tile: int = 64,
    zoom: bool = False,
    sigma: float = 0.0,
    grey: bool = False,
) -> Image.Image:
    """The page of some units.

    Args:
        units: none: ``UNITS`` of the projected ones, those that end strongest.

    Raises:
        RunNotFound: no unit was projected, or not one of these.
    """
    chosen = strongest(found) if units is None else list(units)
    if not chosen:
        raise RequestError("No unit is named: leave the units out, or name some.")
    look = Look(tile, zoom, sigma, grey)
    gap = max(2, tile // 32)
    step, caption = tile + gap, 2 * TEXT + 22
    columns = len(found.checkpoints)
    top = MARGIN + TITLE + 12 + TEXT + 8
    each = 2 * step + caption
    width = max(2 * MARGIN + columns * step - gap, 300)
    page = Image.new("RGB", (width, top + each * len(chosen) + MARGIN // 2), BACKGROUND)
    draw = ImageDraw.Draw(page)
    room = width - 2 * MARGIN
    draw.text((MARGIN, MARGIN), clipped(f"{found.layer}: evolution in training", TITLE, room),
              font=font(TITLE), fill=BRIGHT)  # fmt: skip
    for column, name in enumerate(found.names):
        at = (MARGIN + column * step, top - TEXT - 8)
        draw.text(at, clipped(name, TEXT, tile, keep_end=True), font=font(TEXT), fill=MUTED)
    for row, unit in enumerate(chosen):
        _draw_unit(page, draw, found, unit, top + row * each, step, look, room)
    return page


def strongest(found: Evolution, count: int = UNITS) -> list[int]:
    """Projected units, those with the strongest activation at the end, by number.

    Raises:
        RunNotFound: none was projected.
    """
    projected = [unit for unit, has in enumerate(found.projected.tolist()) if has]
    if not projected:
        raise RunNotFound(
            f"No unit of layer {found.layer!r} was projected over time: analyses.evolution of the "
            "spec says which are, by its layers and its units."
        )
    ranked = sorted(projected, key=lambda unit: (-float(found.score[unit, -1]), unit))
    return sorted(ranked[:count])


def _draw_unit(
    page: Image.Image,
    draw: ImageDraw.ImageDraw,
    found: Evolution,
    unit: int,
    top: int,
    step: int,
    look: Look,
    room: int,
) -> None:
    pictures = found.pictures(unit)
    halves: tuple[Half, ...] = ("projection", "patch")
    for half_row, half in enumerate(halves):
        for column in range(len(pictures.scores)):
            x, y = MARGIN + column * step, top + half_row * step
            if column not in pictures.present:
                draw.rectangle((x, y, x + look.tile - 1, y + look.tile - 1), fill=EMPTY)
                continue
            tile = Image.fromarray(hit_tile(pictures, column, half, look))
            over = ((look.tile - tile.width) // 2, (look.tile - tile.height) // 2)
            page.paste(tile, (x + over[0], y + over[1]))
    below = top + 2 * step + 2
    for column in pictures.present:
        at = (MARGIN + column * step, below)
        draw.text(at, f"{pictures.scores[column]:.3g}", font=font(TEXT), fill=MUTED)
    name = f"unit {unit} {pictures.name}".rstrip()
    at = (MARGIN, below + TEXT + 4)
    draw.text(at, clipped(name, TEXT, room), font=font(TEXT), fill=BRIGHT)
