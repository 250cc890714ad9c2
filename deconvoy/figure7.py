"""Draw what a grey square hides from a model: Fig. 7, a row of five panels an image.

(a) the image with one square and the true boxes; (b) the activity of a layer's strongest map for
each position of the square; (c) what that map sees in the image; (d) the probability of the class;
(e) the most probable class.  Arrays in, a picture out; no state, no knowledge of runs or models.

Source: Zeiler & Fergus (ECCV 2014, arXiv:1311.2901), section 4.2 and Fig. 7.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from deconvoy import heat
from deconvoy.errors import RequestError
from deconvoy.figures import BACKGROUND, BRIGHT, MUTED
from deconvoy.lettering import (
    clipped,
    draw_lines,
    font,
    printable,
    text_height,
    text_width,
    wrapped,
)
from deconvoy.likeness import nearest
from deconvoy.occlusion import Occlusion
from deconvoy.panels import (
    HEADING,
    OTHER_TILES,
    SMALL,
    TITLE,
    Projections,
    Row,
    Scale,
    activity_of,
    activity_scale,
    flat_words,
    map_of,
    picture_of,
    probability_of,
    probability_scale,
    probability_text,
    projection_of,
    signed,
)

BOX = (255, 214, 92)
SQUARE = (255, 255, 255)

MARGIN, GAP = 24, 20
TEXT = 13
LEFT_TICKS = 28
BAR, BAR_LABELS = 10, 44
LINE = SMALL + 2
"""From one number beside a scale to the next."""
LEGEND = 168
Draw = ImageDraw.ImageDraw


def figure7(
    occlusion: Occlusion,
    layer: str | None = None,
    *,
    others: Projections = (),
    side: int = 176,
    sigma: float = 1.0,
) -> Image.Image:
    """The paper's Fig. 7 of one image.

    Args:
        layer: whose strongest map panels (b) and (c) show; default: the last one of feature maps.
        others: projections of that map in other images, beside (c); at most four are drawn.
        side: longer side of a panel in pixels.
        sigma: Gaussian over the projections, in pixels of those given.

    Raises:
        RequestError: no such layer.
    """
    return figure7_page([occlusion], layer, others=[others], side=side, sigma=sigma)


def figure7_page(
    occlusions: Sequence[Occlusion],
    layer: str | None = None,
    *,
    others: Sequence[Projections] = (),
    side: int = 176,
    sigma: float = 1.0,
) -> Image.Image:
    """Several images, a row each; ``others`` one entry an image, or none at all.

    Raises:
        RequestError: no image, no such layer, or a size that cannot be drawn.
    """
    rows = _rows(occlusions, layer, others or [()] * len(occlusions), side, sigma)
    tiled = any(row.others for row in rows)
    width = _x_of(5, side, tiled) + LEGEND + MARGIN
    foot = wrapped(_explained(rows), SMALL + 1, MUTED, width - 2 * MARGIN)
    height = MARGIN + sum(row.height + GAP for row in rows) + text_height(foot) + MARGIN
    image = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(image)
    top = MARGIN
    for row in rows:
        _draw_row(image, draw, row, top, tiled)
        top += row.height + GAP
    draw_lines(draw, foot, MARGIN, top)
    return image


def _rows(
    occlusions: Sequence[Occlusion],
    layer: str | None,
    others: Sequence[Projections],
    side: int,
    sigma: float,
) -> list[Row]:
    if not occlusions:
        raise RequestError("No images to draw; name at least one.")
    if len(others) != len(occlusions):
        raise RequestError(f"others has {len(others)} entries for {len(occlusions)} images.")
    if not 64 <= side <= 1024:
        raise RequestError(f"side is {side}; a panel's side must be 64 to 1024 pixels.")
    if not 0 <= sigma <= 100:
        raise RequestError(f"sigma is {sigma}; it must be 0 (no smoothing) to 100 pixels.")
    return [
        Row(one, _known(one, layer), tuple(own)[:OTHER_TILES], side, sigma)
        for one, own in zip(occlusions, others, strict=True)
    ]


def _known(occlusion: Occlusion, layer: str | None) -> str:
    if layer is None:
        return occlusion.default_layer()
    if layer not in occlusion.unit:
        near = nearest(layer, list(occlusion.unit))
        raise RequestError(f"The occlusion of {occlusion.uri!r} has no layer {layer!r}; {near}.")
    return layer


def _explained(rows: Sequence[Row]) -> str:
    one = rows[0].occlusion
    colour = ", ".join(f"{value:.0f}" for value in one.fill)
    alike = {(row.occlusion.patch, row.occlusion.stride, row.occlusion.fill) for row in rows}
    told = f" {one.patch} px ({colour}), every {one.stride} px," if len(alike) == 1 else ""
    boxes = " Yellow: the true box." if any(len(row.occlusion.boxes) for row in rows) else ""
    smooth = f", smoothed by {rows[0].sigma:g} px" if rows[0].sigma else ""
    return (
        f"A square{told} slides over each image; axes are pixels of the model's input. (a) It "
        f"stands where the class is least probable.{boxes} (b) Sum over the map that is strongest "
        "in the clean image. (c) That map's largest activation projected to pixels, signed, "
        f"mid-grey is zero{smooth}. (d) Softmax probability; each image has its own scale, from "
        "its smallest value to its largest. (e) The class that is then most probable. In (b), (d) "
        "and (e) each cell is one position, drawn at the square's centre; the white mark on a "
        "scale is the clean image."
    )


# -- a row ---------------------------------------------------------------------------------------


def _x_of(panel: int, side: int, tiled: bool) -> int:
    """Left edge of a panel's picture; of the legend behind the last one."""
    bar = 8 + BAR + BAR_LABELS
    tiles = (side - 3 * (OTHER_TILES - 1)) // OTHER_TILES + 6 if tiled else 0
    after = (0, bar, tiles, bar, 12)
    x = MARGIN + LEFT_TICKS
    for before in range(panel):
        x += side + after[before] + (GAP + LEFT_TICKS if before < 4 else 0)
    return x


def _draw_row(image: Image.Image, draw: Draw, row: Row, top: int, tiled: bool) -> None:
    one = row.occlusion
    _draw_title(draw, one, top, image.width)
    y = top + TITLE + 12 + HEADING
    name = printable(one.name_of(one.target))
    headings = (
        ("(a) image", f"square {one.patch} px{'; changes nothing' if one.unmoved else ''}"),
        (f"(b) activity of map {one.unit[row.layer]}", row.layer),
        ("(c) what it sees here", "and in other images" if row.others else ""),
        ("(d) probability", name),
        ("(e) most probable class", ""),
    )
    panels: tuple[Callable[[], UInt8[np.ndarray, "row col rgb"]], ...] = (
        lambda: picture_of(row),
        lambda: activity_of(row),
        lambda: projection_of(row),
        lambda: probability_of(row),
        lambda: map_of(row, heat.coloured(one.label, heat.legend(one.label, one.target))),
    )
    for number, (heading, panel) in enumerate(zip(headings, panels, strict=True)):
        x = _x_of(number, row.side, tiled)
        _draw_heading(draw, heading, x, y, row.side)
        image.paste(Image.fromarray(panel()), (x, y))
        _draw_ticks(draw, row, x, y)
    _draw_marks(draw, row, _x_of(0, row.side, tiled), y)
    of_bar = row.shape[1] + 8
    _draw_bar(image, draw, row, _x_of(1, row.side, tiled) + of_bar, y, activity_scale(row))
    if not flat_words(one):
        _draw_bar(image, draw, row, _x_of(3, row.side, tiled) + of_bar, y, probability_scale(one))
    for number, other in enumerate(row.others):
        tile = Image.fromarray(signed(other, row.sigma, (row.other_side, row.other_side)))
        x = _x_of(2, row.side, tiled) + row.side + 6
        image.paste(tile, (x, y + number * (row.other_side + 3)))
    _draw_legend(draw, one, _x_of(5, row.side, tiled), y)


def title_of(one: Occlusion) -> tuple[str, str]:
    """The class that is watched, and what is said of it: a prediction must not pass for a label."""
    name = one.name_of(one.target)
    clean, lowest = map(probability_text, (one.clean_probability, float(one.probability.min())))
    told = f"p = {clean}, lowest {lowest}"
    if one.predicted:
        return f"predicted: {name}", told
    if one.clean_label != one.target:
        told += f"   predicted: {one.name_of(one.clean_label)}"
    return name, told


def _draw_title(draw: Draw, one: Occlusion, top: int, width: int) -> None:
    name, told = map(printable, title_of(one))
    draw.text((MARGIN, top + TITLE), name, BRIGHT, font(TITLE), anchor="ls")
    x = MARGIN + text_width(name, TITLE) + 12
    draw.text((x, top + TITLE), told, MUTED, font(TEXT), anchor="ls")
    x += text_width(told, TEXT) + 16
    uri = clipped(printable(one.uri), TEXT, width - x - MARGIN, keep_end=True)
    draw.text((x, top + TITLE), uri, MUTED, font(TEXT), anchor="ls")


def _draw_heading(draw: Draw, heading: tuple[str, str], x: int, y: int, width: int) -> None:
    for line, (text, colour) in enumerate(zip(heading, (BRIGHT, MUTED), strict=True)):
        text = clipped(printable(text), TEXT, width + BAR_LABELS, keep_end=line == 1)
        draw.text((x, y - HEADING + 14 + 16 * line), text, colour, font(TEXT), anchor="ls")


def _draw_ticks(draw: Draw, row: Row, x: int, y: int) -> None:
    for axis, (length, drawn) in enumerate(zip(row.occlusion.size, row.shape, strict=True)):
        for value in (0, length // 2, length):
            at = round(value * drawn / length)
            if axis == 0:
                draw.line((x - 4, y + at, x - 2, y + at), MUTED)
                draw.text((x - 6, y + at), str(value), MUTED, font(SMALL), anchor="rm")
            else:
                below = y + row.shape[0]
                draw.line((x + at, below + 1, x + at, below + 3), MUTED)
                draw.text((x + at, below + 5), str(value), MUTED, font(SMALL), anchor="ma")


def _draw_marks(draw: Draw, row: Row, x: int, y: int) -> None:
    """The square where it hides most, and the true boxes, over the image."""
    one = row.occlusion
    scale = row.shape[0] / one.size[0]

    def outline(
        box: Sequence[int | float], fill: tuple[int, ...] | None, colour: heat.Colour
    ) -> None:
        y0, x0, y1, x1 = (round(scale * side) for side in box)
        draw.rectangle((x + x0, y + y0, x + x1 - 1, y + y1 - 1), fill, colour)

    middle_y, middle_x = one.weakest
    top, left = middle_y - one.patch / 2, middle_x - one.patch / 2
    fill = tuple(round(value) for value in one.fill)
    square = (top, left, top + one.patch, left + one.patch)
    outline(square, fill * 3 if len(fill) == 1 else fill, SQUARE)
    for box in one.boxes.tolist():
        outline(box, None, BOX)


def _draw_bar(image: Image.Image, draw: Draw, row: Row, x: int, y: int, scale: Scale) -> None:
    """A scale from its upper to its lower bound, with a mark at the clean value."""
    below = row.shape[0] - 1
    share = np.linspace(1, 0, below + 1)[:, None].repeat(BAR, 1)
    image.paste(Image.fromarray(heat.shaded(share)), (x, y))
    at = round((1 - float(scale.shares(np.array([scale.clean], np.float32))[0])) * below)
    draw.rectangle((x - 2, y + at - 1, x + BAR + 1, y + at), BRIGHT)
    clean, told = scale.number(scale.clean), at
    for value, place in ((scale.high, 0), (scale.low, below)):
        if scale.number(value) == clean:
            told = place
        else:  # a mark near an end is told beside it, so that both numbers can be read
            told = max(told, LINE) if place == 0 else min(told, below - LINE)
            draw.text(
                (x + BAR + 7, y + place), scale.number(value), MUTED, font(SMALL), anchor="lm"
            )
    draw.text((x + BAR + 7, y + told), clean, BRIGHT, font(SMALL), anchor="lm")


def _draw_legend(draw: Draw, one: Occlusion, x: int, y: int) -> None:
    for number, key in enumerate(heat.legend(one.label, one.target)):
        middle = y + 8 + 19 * number
        draw.rectangle((x, middle - 5, x + 10, middle + 5), key.colour)
        share = f"{key.share:.0%}" if 0.01 <= key.share <= 0.99 or key.share == 1 else "<1%"
        share = ">99%" if 0.99 < key.share < 1 else share
        draw.text((x + 50, middle), share, MUTED, font(SMALL), anchor="rm")
        name = f"{key.classes} others" if key.label is None else one.name_of(key.label)
        name = clipped(printable(name), TEXT, LEGEND - 56)
        watched = key.label == one.target
        draw.text((x + 56, middle), name, BRIGHT if watched else MUTED, font(TEXT), anchor="lm")
