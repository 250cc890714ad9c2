"""Render ``shapes``, the built-in labelled image set: ten kinds of things on textured grounds.

An image is a pure function of (seed, index): no files, no state, no order of calls.  Every colour
is drawn from one distribution whatever the class, so that only the form tells a class; where the
thing and its parts lie is known exactly.  Numpy and Pillow only.

The set is ours.  Its faces have the parts that Zeiler & Fergus (2013, section 4.3) mask.
"""

import colorsys
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw, ImageFilter

from deconvoy.errors import RequestError
from workers.drawings import KINDS, Kind, Piece, Polygon, Role, between

CLASSES: tuple[str, ...] = tuple(KINDS)
SIDE = 64

SUPERSAMPLING = 4
"""Edges are drawn on a grid this much finer and averaged: 16 levels of coverage."""

MARGIN = 2
"""Pixels kept free around a thing, so that none is cut off by the border."""

EXTENT = (0.65, 0.97)
"""A thing's longer side as a share of the room inside the margins."""

SHADOW = 0.5
"""Light lost under a thing; the shadow lifts it off the ground."""

GRAIN = 8.0
"""Range of the pixel noise in grey levels; keeps flat colours from being bit-for-bit flat."""

Box: TypeAlias = tuple[int, int, int, int]
Colour: TypeAlias = tuple[int, int, int]
Texture: TypeAlias = Float32[np.ndarray, "row col"]
Picture: TypeAlias = Float32[np.ndarray, "row col rgb"]

_ROW, _COL = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)


@dataclass(frozen=True)
class Outline:
    """Where the thing of an image lies."""

    box: Box
    """The thing: (y0, x0, y1, x1) in pixels, half-open."""
    parts: Mapping[str, Box]
    """Where each named part lies, within ``box``; left and right are the picture's."""


@dataclass(frozen=True)
class Shape(Outline):
    """One image of the set with everything that is known about it."""

    image: UInt8[np.ndarray, "row col rgb"]
    label: int
    """Index into ``CLASSES``."""


def render(seed: int, index: int) -> Shape:
    """Image ``index`` of the set ``seed``; labels take turns: ``index % len(CLASSES)``."""
    rng, pieces, polygons = _begun(seed, index)
    base = _colour(rng, saturation=(0.1, 0.75), value=(0.3, 1.0))
    colours = _palette(rng, base)
    ground = _ground(rng, base)
    ground *= 1 - SHADOW * _shadow(polygons)[:, :, None]
    picture = _paint(ground, polygons, [colours[piece.role] for piece in pieces])
    image = _to_bytes(_light(rng, picture))
    return Shape(
        _bounds(polygons), _parts(pieces, polygons), image=image, label=index % len(CLASSES)
    )


def outline(seed: int, index: int) -> Outline:
    """Where the thing of that image lies, without painting it: five times as fast."""
    _, pieces, polygons = _begun(seed, index)
    return Outline(_bounds(polygons), _parts(pieces, polygons))


def _begun(seed: int, index: int) -> tuple[np.random.Generator, Sequence[Piece], Sequence[Polygon]]:
    """The thing in its place, and the generator that goes on to its colours."""
    if seed < 0 or index < 0:
        raise RequestError(
            f"shapes cannot render seed {seed}, index {index}: both must be 0 or more."
        )
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    kind = KINDS[CLASSES[index % len(CLASSES)]]
    pieces = kind.draw(rng)
    return rng, pieces, _place(rng, kind, pieces)


# --- where ---------------------------------------------------------------------------------------


def _place(rng: np.random.Generator, kind: Kind, pieces: Sequence[Piece]) -> list[Polygon]:
    """The polygons in pixels: mirrored, turned, scaled and moved wholly into the image."""
    turn = math.radians(between(rng, -kind.tilt, kind.tilt))
    facing = -1.0 if kind.mirrored and rng.random() < 0.5 else 1.0
    cos, sin = math.cos(turn), math.sin(turn)
    points = np.concatenate([piece.polygon for piece in pieces]) * (facing, 1.0)
    points = points @ np.array([(cos, sin), (-sin, cos)])
    low, high = points.min(axis=0), points.max(axis=0)
    room = SIDE - 2 * MARGIN
    scale = between(rng, *EXTENT) * room / float((high - low).max())
    corner = MARGIN + (room - scale * (high - low)) * (rng.random(), rng.random())
    placed = (points - low) * scale + corner
    return np.split(placed, np.cumsum([len(piece.polygon) for piece in pieces])[:-1])


def _bounds(polygons: Sequence[Polygon]) -> Box:
    points = np.concatenate(polygons)
    x0, y0 = np.floor(points.min(axis=0)).astype(int).tolist()
    x1, y1 = np.ceil(points.max(axis=0)).astype(int).tolist()
    return y0, x0, y1, x1


def _parts(pieces: Sequence[Piece], polygons: Sequence[Polygon]) -> dict[str, Box]:
    return {
        piece.part: _bounds([polygon])
        for piece, polygon in zip(pieces, polygons, strict=True)
        if piece.part is not None
    }


# --- colours and grounds -------------------------------------------------------------------------


def _colour(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> Colour:
    """A colour of any hue."""
    rgb = colorsys.hsv_to_rgb(rng.random(), between(rng, *saturation), between(rng, *value))
    return round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])


def _contrasting(rng: np.random.Generator, behind: Colour) -> Colour:
    """Of three vivid colours the one farthest from what lies behind it."""
    vivid = [_colour(rng, saturation=(0.5, 1.0), value=(0.5, 1.0)) for _ in range(3)]
    return max(vivid, key=lambda colour: math.dist(colour, behind))


def _palette(rng: np.random.Generator, ground: Colour) -> dict[Role, Colour]:
    main = _contrasting(rng, ground)
    second = _contrasting(rng, main)
    third = _contrasting(rng, second)
    light = _colour(rng, saturation=(0.0, 0.2), value=(0.9, 1.0))
    dark = _colour(rng, saturation=(0.0, 1.0), value=(0.08, 0.2))
    return {"main": main, "second": second, "third": third, "light": light, "dark": dark}


def _waves(rng: np.random.Generator) -> Texture:
    """Stripes of any direction, 5 to 20 pixels a period, in -1 … 1."""
    turn, phase = between(rng, 0, math.pi), between(rng, 0, 2 * math.pi)
    pace = 2 * math.pi / between(rng, 5, 20)
    along = pace * math.cos(turn) * _COL[0] + phase
    down = pace * math.sin(turn) * _ROW[:, 0]
    # sin(a + b) by outer products: the sines of two rows instead of a whole picture's.
    waves: Texture = np.outer(np.cos(down), np.sin(along))
    waves += np.outer(np.sin(down), np.cos(along))
    return waves


def _blotches(rng: np.random.Generator, cells: int) -> Texture:
    """Smooth noise, so many cells across, in about -1 … 1."""
    coarse = (2 * rng.random((cells, cells)) - 1).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _texture(rng: np.random.Generator) -> Texture:
    """Ripples, stripes, checks, dots or blotches, in about -1 … 1."""
    choice = int(5 * rng.random())
    if choice == 4:
        return _blotches(rng, cells=4 + int(13 * rng.random()))
    texture = _waves(rng)
    if choice == 1:
        texture = (4 * texture).clip(-1, 1)
    if choice == 2:
        texture = (4 * texture * _waves(rng)).clip(-1, 1)
    if choice == 3:
        texture = (texture + _waves(rng)).clip(0) - 1
    return texture


def _ground(rng: np.random.Generator, base: Colour) -> Picture:
    """A texture that swings between two neighbouring colours, with large soft blotches."""
    swing = np.array([between(rng, -32, 32) for _ in range(3)])
    swing += math.copysign(10, swing.sum())
    texture: Picture = _texture(rng)[:, :, None] * swing.astype(np.float32)
    soft = 12 * _blotches(rng, cells=5)
    texture += np.array(base, dtype=np.float32)
    texture += soft[:, :, None]
    return texture


# --- pixels --------------------------------------------------------------------------------------


def _fill(
    canvas: Image.Image,
    polygons: Sequence[Polygon],
    colours: Sequence[Colour | int],
    scale: int,
) -> None:
    draw = ImageDraw.Draw(canvas)
    for polygon, colour in zip(polygons, colours, strict=True):
        # Whole numbers, so that no platform's last bit of a cosine moves an edge.
        draw.polygon(np.rint(scale * polygon).astype(int).ravel().tolist(), fill=colour)


def _shadow(polygons: Sequence[Polygon]) -> Texture:
    """How much of a soft shadow falls on each pixel, 0 … 1."""
    mask = Image.new("L", (SIDE, SIDE))
    _fill(mask, [polygon + (1.5, 2.5) for polygon in polygons], [255] * len(polygons), scale=1)
    return np.asarray(mask.filter(ImageFilter.BoxBlur(2)), dtype=np.float32) / 255


def _paint(ground: Picture, polygons: Sequence[Polygon], colours: Sequence[Colour]) -> Picture:
    """The polygons over the ground, with smooth edges."""
    wide = (SIDE * SUPERSAMPLING, SIDE * SUPERSAMPLING)
    canvas = Image.fromarray(_to_bytes(ground)).resize(wide, Image.Resampling.NEAREST)
    _fill(canvas, polygons, colours, scale=SUPERSAMPLING)
    return np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32)


def _light(rng: np.random.Generator, picture: Picture) -> Picture:
    """Light from one side, up to a fifth brighter there and darker opposite, and grain."""
    turn = between(rng, 0, 2 * math.pi)
    slope = 0.2 / (SIDE / 2)
    east, south = np.float32(slope * math.cos(turn)), np.float32(slope * math.sin(turn))
    light = 1 + east * (_COL - SIDE / 2) + south * (_ROW - SIDE / 2)
    grain = GRAIN * (rng.random((SIDE, SIDE), dtype=np.float32) - 0.5)
    lit: Picture = picture * light[:, :, None]
    lit += grain[:, :, None]
    return lit


def _to_bytes(picture: Picture) -> UInt8[np.ndarray, "row col rgb"]:
    levels: UInt8[np.ndarray, "row col rgb"] = np.rint(picture).clip(0, 255).astype(np.uint8)
    return levels
