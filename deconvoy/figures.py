"""Draw feature maps as Zeiler & Fergus do: nine projections beside the nine patches they explain.

Pure but for `save`: arrays in, pictures out, no state and no knowledge of runs or models.  A
projection is signed, so mid-grey always means zero, and each projection is scaled by itself:
brightness never compares two tiles, only the printed scores do.

Source: Zeiler & Fergus (ECCV 2014, arXiv:1311.2901), Fig. 2.
"""

import functools
import math
import os
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped, UInt8
from PIL import Image, ImageDraw

from deconvoy.errors import RequestError
from deconvoy.files import make_folder_of
from deconvoy.lettering import (
    Line,
    clipped,
    draw_lines,
    font,
    printable,
    text_height,
    text_width,
    wrapped,
)
from deconvoy.methods import METHODS
from deconvoy.spec import Method

Half = Literal["projection", "patch"]
Show = Literal["projection", "patch", "both"]
Box = tuple[int, int, int, int]
"""y0, x0, y1, x1 in pixels, half-open."""

QUANTILE = 0.99
NARROWEST = 0.1
"""Of Gaussians, in pixels; a narrower one is none."""

SUPPORT_THRESHOLD = 0.02
MAX_COLUMNS = 4  # wider pages must be shrunk on a laptop screen, and tiles of 64 px are lost then
CRISP_FACTOR = 4  # from here on a pixel is a thing to look at, below it an interpolated one is
JPEG_MAX_SIDE = 65_500
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}

BACKGROUND = (15, 17, 21)
EMPTY = (24, 27, 34)
BRIGHT = (232, 234, 240)
MUTED = (146, 152, 166)


@dataclass(frozen=True)
class UnitPictures:
    """The strongest hits of one unit, strongest first; a missing hit has the score -inf."""

    layer: str
    unit: int
    scores: Float32[np.ndarray, "rank"]
    labels: tuple[str, ...]
    """One a rank, "" where unknown; or none at all."""
    patches: UInt8[np.ndarray, "rank row col rgb"]
    projections: Float32[np.ndarray, "rank row col rgb"]
    name: str = ""
    """Of an output: its class."""
    method: Method = "deconvnet"
    """Of the projections."""

    def __post_init__(self) -> None:
        ranks = len(self.scores)
        if self.patches.shape != self.projections.shape or len(self.patches) != ranks:
            raise RequestError(
                f"Unit {self.unit} of {self.layer}: {ranks} scores, patches {self.patches.shape} "
                f"and projections {self.projections.shape} do not belong together; the pictures "
                "must have equal shapes, one a score."
            )
        if len(self.labels) not in (0, ranks):
            raise RequestError(
                f"Unit {self.unit} of {self.layer}: {len(self.labels)} labels for {ranks} hits; "
                "give one a hit, or none."
            )

    @property
    def present(self) -> tuple[int, ...]:
        """The ranks that hold a hit."""
        return tuple(int(rank) for rank in np.flatnonzero(~np.isneginf(self.scores)))

    @property
    def shared_label(self) -> tuple[str, int] | None:
        """The commonest label and its count; None unless two hits share one. Ties: best rank."""
        labels = [self.labels[rank] for rank in self.present if self.labels and self.labels[rank]]
        commonest = Counter(labels).most_common(1)
        return commonest[0] if commonest and commonest[0][1] > 1 else None


@dataclass(frozen=True)
class Look:
    """How hits become tiles."""

    tile: int = 64
    """Side of a tile in pixels."""
    zoom: bool = False
    """Show only the projection's support, and the same part of the patch."""
    sigma: float = 0.0
    """Width of the Gaussian over the projection, in pixels of the stored projection."""
    grey: bool = False
    """The mean of the channels instead of signed colours."""

    def __post_init__(self) -> None:
        if not 8 <= self.tile <= 1024:
            raise RequestError(f"tile is {self.tile}; a tile's side must be 8 to 1024 pixels.")
        if not 0 <= self.sigma <= 100:
            raise RequestError(f"sigma is {self.sigma}; it must be 0 (no smoothing) to 100 pixels.")

    @property
    def text_scale(self) -> float:
        # Large tiles are looked at from further away: their text must survive the shrinking.
        return min(max(self.tile / 64, 1.0), 2.5)


# -- arrays ------------------------------------------------------------------------------------


def signed_colours(
    projection: Float[np.ndarray, "row col rgb"], quantile: float = QUANTILE
) -> UInt8[np.ndarray, "row col rgb"]:
    """0.5 + 0.5 p / (quantile of |p|), clipped: zero is mid-grey (128), whatever the scale.

    Where so little of the picture is non-zero that the quantile is below 2 % of the largest |p|,
    and would blow up rounding, the largest scales.
    """
    magnitude = np.abs(projection)
    largest = float(magnitude.max())
    if largest == 0.0:
        return np.full(projection.shape, 128, np.uint8)
    scale = float(np.quantile(magnitude, quantile))
    if scale < SUPPORT_THRESHOLD * largest:
        scale = largest
    unit_range = np.clip(0.5 + 0.5 * (projection / scale), 0.0, 1.0)
    return np.rint(255.0 * unit_range).astype(np.uint8)


def signed_grey(
    projection: Float[np.ndarray, "row col rgb"], quantile: float = QUANTILE
) -> UInt8[np.ndarray, "row col rgb"]:
    """As `signed_colours`, of the mean over the channels."""
    mean = projection.mean(axis=2, keepdims=True)
    return signed_colours(np.repeat(mean, projection.shape[2], axis=2), quantile)


def support_box(
    projection: Float[np.ndarray, "row col rgb"], threshold: float = SUPPORT_THRESHOLD
) -> Box:
    """Where |p| exceeds the threshold times its largest, as a square with a margin.

    It lies inside the picture.  Never smaller than a quarter of the picture (and 16 px), so that
    zoomed tiles stay comparable; an axis shorter than the square is taken whole.  All zero: the
    whole picture.
    """
    rows, cols = projection.shape[:2]
    # A maximum over an axis of three takes ten times as long.
    magnitude = functools.reduce(np.maximum, np.moveaxis(np.abs(projection), 2, 0))
    if not magnitude.any():
        return 0, 0, rows, cols
    inside = magnitude > threshold * magnitude.max()
    y0, y1 = _extent(inside.any(axis=1))
    x0, x1 = _extent(inside.any(axis=0))
    extent = max(y1 - y0, x1 - x0)
    side = max(extent + 2 * math.ceil(extent / 20), math.ceil(max(rows, cols) / 4), 16)
    top, bottom = _interval(y0, y1, side, rows)
    left, right = _interval(x0, x1, side, cols)
    return top, left, bottom, right


def _extent(inside: Bool[np.ndarray, "place"]) -> tuple[int, int]:
    places = np.flatnonzero(inside)
    return int(places[0]), int(places[-1]) + 1


def _interval(start: int, stop: int, length: int, limit: int) -> tuple[int, int]:
    """An interval of that length about [start, stop), moved into [0, limit)."""
    length = min(length, limit)
    begin = min(max((start + stop - length) // 2, 0), limit - length)
    return begin, begin + length


def smoothed(
    projection: Float[np.ndarray, "row col rgb"], sigma: float
) -> Float[np.ndarray, "row col rgb"]:
    """Gaussian of that width in pixels, cut at 4 sigma; below a tenth of a pixel, where neighbours
    would weigh less than 1e-21, it is the identity.

    At the borders the weights that fall inside are renormalised, so a constant stays constant.
    """
    if sigma < NARROWEST:
        return projection
    down = _smoothed_down(projection, sigma)
    return _smoothed_down(down.swapaxes(0, 1), sigma).swapaxes(0, 1).astype(projection.dtype)


def _smoothed_down(
    picture: Float[np.ndarray, "row col rgb"], sigma: float
) -> Float[np.ndarray, "row col rgb"]:
    # A sum of a few shifted copies, not a matrix product: threaded BLAS took ten times as long
    # on pictures of 112 px when other processes kept the cores busy.
    rows = len(picture)
    reach = min(_reach(sigma), rows - 1)
    total, share = np.zeros(picture.shape), np.zeros((rows, 1, 1))
    for shift in range(-reach, reach + 1):
        weight = math.exp(-0.5 * (shift / sigma) ** 2)
        first, last = max(0, -shift), rows - max(0, shift)  # where the copy lies inside
        total[first:last] += weight * picture[first + shift : last + shift]
        share[first:last] += weight
    return total / share


def _reach(sigma: float) -> int:
    """Pixels to either side that weigh anything."""
    return math.ceil(4 * sigma) if sigma >= NARROWEST else 0


# -- tiles -------------------------------------------------------------------------------------


def hit_tile(
    pictures: UnitPictures, rank: int, half: Half, look: Look
) -> UInt8[np.ndarray, "row col rgb"]:
    """One hit as its tile shows it; the longer side is `look.tile` pixels."""
    projection = pictures.projections[rank]
    y0, x0, y1, x1 = support_box(projection) if look.zoom else (0, 0, *projection.shape[:2])
    if half == "patch":
        return _resized(pictures.patches[rank, y0:y1, x0:x1], look.tile)
    # Only what is shown is smoothed, with the pixels around it that count.
    around = _reach(look.sigma)
    top, left = max(0, y0 - around), max(0, x0 - around)
    smooth = smoothed(projection[top : y1 + around, left : x1 + around], look.sigma)
    # Resized before it is scaled: shrinking averages opposite signs, and the tile would pale.
    shown = _resized(smooth[y0 - top : y1 - top, x0 - left : x1 - left], look.tile)
    return signed_grey(shown) if look.grey else signed_colours(shown)


def _resized(
    picture: Shaped[np.ndarray, "row col rgb"], tile: int
) -> Shaped[np.ndarray, "tile_row tile_col rgb"]:
    """A uint8 or float32 picture whose longer side becomes `tile` pixels."""
    rows, cols = picture.shape[:2]
    factor = tile / max(rows, cols)
    size = (max(1, round(cols * factor)), max(1, round(rows * factor)))
    channels = [Image.fromarray(np.ascontiguousarray(picture[..., c])) for c in range(3)]
    if factor >= CRISP_FACTOR:
        # To whole pixels first: nearest alone would draw some of them wider than others.
        whole = math.ceil(factor)
        enlarged = (cols * whole, rows * whole)
        channels = [c.resize(enlarged, Image.Resampling.NEAREST) for c in channels]
    method = Image.Resampling.BOX if factor >= CRISP_FACTOR else Image.Resampling.BICUBIC
    return np.stack([np.asarray(c.resize(size, method)) for c in channels], axis=2)


def unit_picture(
    pictures: UnitPictures,
    *,
    show: Show = "both",
    tile: int = 64,
    zoom: bool = False,
    sigma: float = 0.0,
    grey: bool = False,
) -> Image.Image:
    """The grid of one unit's projections, of its patches, or both side by side; no text."""
    return _unit_picture(pictures, show, Look(tile, zoom, sigma, grey))


def _unit_picture(pictures: UnitPictures, show: Show, look: Look) -> Image.Image:
    halves: tuple[Half, ...] = ("projection", "patch") if show == "both" else (show,)
    grid = _Grid(len(pictures.scores), look.tile)
    width = len(halves) * grid.width + (len(halves) - 1) * grid.between_halves
    image = Image.new("RGB", (width, grid.height), BACKGROUND)
    draw = ImageDraw.Draw(image)
    present = set(pictures.present)
    for at, half in enumerate(halves):
        for rank in range(len(pictures.scores)):
            x, y = grid.corner(rank)
            x += at * (grid.width + grid.between_halves)
            if rank not in present:
                draw.rectangle((x, y, x + look.tile - 1, y + look.tile - 1), fill=EMPTY)
                continue
            picture = Image.fromarray(hit_tile(pictures, rank, half, look))
            over = ((look.tile - picture.width) // 2, (look.tile - picture.height) // 2)
            image.paste(picture, (x + over[0], y + over[1]))
    return image


@dataclass(frozen=True)
class _Grid:
    """Where the tiles of one half lie: as square as the number of ranks allows, row by row."""

    ranks: int
    tile: int

    @property
    def columns(self) -> int:
        return max(1, math.ceil(math.sqrt(self.ranks)))

    @property
    def gap(self) -> int:
        return max(1, self.tile // 32)

    @property
    def between_halves(self) -> int:
        return 4 * self.gap

    @property
    def width(self) -> int:
        return self.columns * (self.tile + self.gap) - self.gap

    @property
    def height(self) -> int:
        rows = max(1, math.ceil(self.ranks / self.columns))
        return rows * (self.tile + self.gap) - self.gap

    def corner(self, rank: int) -> tuple[int, int]:
        """x, y of a tile's upper left pixel."""
        row, column = divmod(rank, self.columns)
        return column * (self.tile + self.gap), row * (self.tile + self.gap)


# -- pages -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Page:
    """Where everything on a page lies, in pixels; every cell is as large as the largest unit."""

    columns: int
    cells: int
    grid: _Grid
    head: tuple[Line, ...]
    foot: tuple[Line, ...]

    @property
    def scale(self) -> float:
        return Look(self.grid.tile).text_scale

    @property
    def margin(self) -> int:
        return round(24 * self.scale)

    @property
    def gutter(self) -> int:
        return round(28 * self.scale)

    @property
    def caption(self) -> int:
        return round(22 * self.scale)

    @property
    def cell_width(self) -> int:
        # A page of single small tiles still has to say which unit is which.
        return max(2 * self.grid.width + self.grid.between_halves, round(150 * self.scale))

    @property
    def cell_height(self) -> int:
        return self.caption + self.grid.height

    @property
    def width(self) -> int:
        cells = self.columns * (self.cell_width + self.gutter) - self.gutter
        text = max(line.width for line in self.head + self.foot)
        return 2 * self.margin + max(cells, text)

    @property
    def top(self) -> int:
        return self.margin + text_height(self.head) + round(14 * self.scale)

    @property
    def bottom(self) -> int:
        rows = math.ceil(self.cells / self.columns)
        return self.top + rows * (self.cell_height + self.gutter) - self.gutter

    @property
    def height(self) -> int:
        return self.bottom + round(18 * self.scale) + text_height(self.foot) + self.margin

    def corner(self, cell: int) -> tuple[int, int]:
        """x, y of a cell's upper left pixel, which is its caption's."""
        row, column = divmod(cell, self.columns)
        x = self.margin + column * (self.cell_width + self.gutter)
        return x, self.top + row * (self.cell_height + self.gutter)


def figure2(
    units: Sequence[UnitPictures],
    *,
    title: str | None = None,
    subtitle: str | None = None,
    columns: int | None = None,
    tile: int = 64,
    zoom: bool = False,
    sigma: float = 0.0,
    grey: bool = False,
) -> Image.Image:
    """The paper's Fig. 2: each unit's projections left, its patches right, strongest first.

    `columns` units a row (None: by their number, at most four).  `sigma` in pixels of the stored
    projection.  The footer says how the colours came about.
    """
    look = Look(tile, zoom, sigma, grey)
    page = _page(units, title, subtitle, columns, look)
    image = Image.new("RGB", (page.width, page.height), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw_lines(draw, page.head, page.margin, page.margin)
    mixed = len({pictures.layer for pictures in units}) > 1
    for cell, pictures in enumerate(units):
        x, y = page.corner(cell)
        _draw_caption(draw, pictures, mixed, page, x, y)
        image.paste(_unit_picture(pictures, "both", look), (x, y + page.caption))
    draw_lines(draw, page.foot, page.margin, page.height - page.margin - text_height(page.foot))
    return image


def _page(
    units: Sequence[UnitPictures],
    title: str | None,
    subtitle: str | None,
    columns: int | None,
    look: Look,
) -> _Page:
    if not units:
        raise RequestError("No units to draw; name at least one.")
    if columns is not None and columns < 1:
        raise RequestError(f"columns is {columns}; a page has at least one column.")
    grid = _Grid(max(len(pictures.scores) for pictures in units), look.tile)
    columns = min(columns or _columns(len(units)), len(units))
    bare = _Page(columns, len(units), grid, _head(units, None, None, 0, look), ())
    # Text wraps at the pictures' width, but a lone small unit must not squeeze it into a column.
    wrap = max(bare.width - 2 * bare.margin, round(360 * look.text_scale))
    head = _head(units, title, subtitle, wrap, look)
    return _Page(columns, len(units), grid, head, _foot(units, wrap, look))


def _columns(count: int) -> int:
    """At least as many columns as rows, then the fewest empty cells, then the fewest columns."""
    wide = [columns for columns in range(1, MAX_COLUMNS + 1) if columns * columns >= count]
    return min(wide, key=lambda columns: (-count % columns, columns), default=MAX_COLUMNS)


def _head(
    units: Sequence[UnitPictures],
    title: str | None,
    subtitle: str | None,
    wrap: int,
    look: Look,
) -> tuple[Line, ...]:
    layers = list(dict.fromkeys(pictures.layer for pictures in units))
    name = layers[0] if len(layers) == 1 else f"{len(layers)} layers"
    small, large = round(13 * look.text_scale), round(22 * look.text_scale)
    return (
        *(wrapped(title, small, MUTED, wrap) if title else ()),
        Line(printable(name), large, BRIGHT),  # never broken: somebody will type it
        *(wrapped(subtitle, small, MUTED, wrap) if subtitle else ()),
    )


def _foot(units: Sequence[UnitPictures], wrap: int, look: Look) -> tuple[Line, ...]:
    colours = "Signed grey (mean of the channels)" if look.grey else "Colours signed"
    methods = dict.fromkeys(METHODS[pictures.method].name for pictures in units)
    text = (
        f"Each unit: its number and largest activation; {' and '.join(methods)} projections left, "
        f"image patches right, strongest first. {colours}, mid-grey is zero, each projection "
        f"scaled by the {100 * QUANTILE:g} % quantile of |p|."
    )
    if look.zoom:
        text += f" Zoomed to support, |p| > {100 * SUPPORT_THRESHOLD:g} % of its largest."
    if look.sigma:
        text += f" Smoothed, σ = {look.sigma:g} px."
    if any(len(pictures.present) < len(pictures.scores) for pictures in units):
        text += " Dark tiles: no further image excites the unit."
    return wrapped(text, round(12 * look.text_scale), MUTED, wrap)


def _draw_caption(
    draw: ImageDraw.ImageDraw, pictures: UnitPictures, mixed: bool, page: _Page, x: int, y: int
) -> None:
    """Unit and largest score over the projections, the shared label over the patches."""
    size = round(13 * page.scale)
    baseline, gap, right = y + size, round(8 * page.scale), x + page.cell_width
    face = font(size)
    name = f"{pictures.layer} : {pictures.unit}" if mixed else str(pictures.unit)
    name = printable(f"{name} {pictures.name}" if pictures.name else name)
    name = clipped(name, size, page.cell_width, keep_end=True)
    draw.text((x, baseline), name, BRIGHT, face, anchor="ls")
    after = x + text_width(name, size) + gap
    score = f"max {_number(float(pictures.scores[0]))}" if pictures.present else "dead"
    if after + text_width(score, size) <= right:
        draw.text((after, baseline), score, MUTED, face, anchor="ls")
        after += text_width(score, size) + gap
    shared = pictures.shared_label
    start = max(after, x + page.grid.width + page.grid.between_halves)
    if shared:
        label = f"{shared[1]}/{len(pictures.present)} {printable(shared[0])}"
        label = clipped(label, size, right - start)
        draw.text((start, baseline), label, MUTED, face, anchor="ls")


def _number(score: float) -> str:
    """Four digits, with their zeros, so that scores side by side line up."""
    return f"{score:.0f}" if 1e3 <= abs(score) < 1e7 else f"{score:#.4g}"


# -- files -------------------------------------------------------------------------------------


def save(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a PNG or JPEG, by suffix; whoever looks sees the old file or the whole new one.

    Missing folders are made.
    """
    path = Path(path)
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise RequestError(
            f"Cannot write a picture to {path}: its suffix is {path.suffix!r}; "
            f"use one of {', '.join(SUFFIXES)}."
        )
    if kind == "JPEG" and max(image.size) > JPEG_MAX_SIDE:
        raise RequestError(
            f"Cannot write {path}: the picture has {image.width} x {image.height} pixels and a "
            f"JPEG at most {JPEG_MAX_SIDE} a side; write a .png, or draw fewer units."
        )
    make_folder_of(path)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    # Chroma at half size would smear the signed colours, which change from pixel to pixel.
    options = {"quality": 92, "subsampling": 0} if kind == "JPEG" else {}
    try:
        image.save(unfinished, kind, **options)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
