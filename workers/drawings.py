"""Draw the ten things of ``shapes`` as filled polygons in their own frame, part by part.

The frame: x right, y down, about -1 … 1; later pieces cover earlier ones.  Colours are roles, not
values, so that no class owns a colour.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float

Role: TypeAlias = Literal["main", "second", "third", "light", "dark"]
Polygon: TypeAlias = Float[np.ndarray, "_point 2"]
"""Corners, x before y; the underscore lets polygons in one list differ in length."""
Number: TypeAlias = float | int
"""A coordinate, length or angle; spelt out because checks at run time take no int for a float."""


@dataclass(frozen=True)
class Piece:
    """One filled polygon of a thing."""

    polygon: Polygon
    role: Role
    part: str | None = None
    """The part whose extent this polygon is."""


@dataclass(frozen=True)
class Kind:
    """A class of things: how to draw one and how far it may turn."""

    draw: Callable[[np.random.Generator], list[Piece]]
    """A new individual: proportions vary."""
    tilt: Number
    """Largest rotation either way, in degrees."""
    mirrored: bool
    """Whether it may face left as well as right."""


# --- polygons ------------------------------------------------------------------------------------


_CIRCLE = np.linspace(0.0, 2 * math.pi, 24, endpoint=False)
_CIRCLE_XY = np.stack([np.cos(_CIRCLE), np.sin(_CIRCLE)], axis=1)


def _ellipse(x: Number, y: Number, rx: Number, ry: Number, turn: Number = 0.0) -> Polygon:
    cos, sin = math.cos(turn), math.sin(turn)
    points: Polygon = _CIRCLE_XY @ np.array([(rx * cos, rx * sin), (-ry * sin, ry * cos)])
    points += (x, y)
    return points


def _rectangle(x0: Number, y0: Number, x1: Number, y1: Number) -> Polygon:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64)


def _polygon(*points: tuple[Number, Number]) -> Polygon:
    return np.array(points, dtype=np.float64)


def _arc_band(
    x: Number,
    y: Number,
    radius: Number,
    width: Number,
    start: Number,
    stop: Number,
    squash: Number = 1.0,
) -> Polygon:
    """A piece of a ring between two angles (radians, clockwise from the right)."""
    angle = np.linspace(start, stop, 14)
    outer = np.stack([np.cos(angle), squash * np.sin(angle)], axis=1)
    ring = np.concatenate([(radius + width / 2) * outer, (radius - width / 2) * outer[::-1]])
    ring += (x, y)
    return ring


def _dome(x: Number, y: Number, rx: Number, ry: Number) -> Polygon:
    """The upper half of an ellipse standing on y."""
    angle = np.linspace(math.pi, 2 * math.pi, 18)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def between(rng: np.random.Generator, low: Number, high: Number) -> float:
    """A number from a range, each as likely."""
    # random() is the one method whose stream numpy is least likely to change.
    return low + (high - low) * rng.random()


# --- the ten things ------------------------------------------------------------------------------


def _face(rng: np.random.Generator) -> list[Piece]:
    width, apart = between(rng, 0.74, 0.9), between(rng, 0.3, 0.38)
    eye, gaze = between(rng, 0.15, 0.2), between(rng, -0.05, 0.05)
    smile = between(rng, 0.5, 0.9)
    pieces = [Piece(_ellipse(side * width, 0.05, 0.16, 0.22), "main") for side in (-1, 1)]
    pieces.append(Piece(_dome(0, -0.05, width + 0.1, 1.0), "second"))
    pieces.append(Piece(_ellipse(0, 0.08, width, 0.92), "main"))
    fringe = np.concatenate([_dome(0, -0.25, width * 0.93, 0.66), _polygon((0.2, -0.42))])
    pieces.append(Piece(fringe, "second"))
    for side, part in ((-1, "left_eye"), (1, "right_eye")):
        pieces.append(Piece(_ellipse(side * apart, -0.06, eye, eye * 0.95), "light", part))
        pieces.append(Piece(_ellipse(side * apart + gaze, -0.06, eye * 0.55, eye * 0.6), "dark"))
    nose = _polygon((0, 0.05), (0.15, 0.36), (0, 0.42), (-0.15, 0.36))
    pieces.append(Piece(nose, "third", "nose"))
    mouth = _arc_band(0, 0.3, 0.42, 0.13, math.pi / 2 - smile, math.pi / 2 + smile, 0.85)
    return [*pieces, Piece(mouth, "dark", "mouth")]


def _fish(rng: np.random.Generator) -> list[Piece]:
    height, tail = between(rng, 0.42, 0.58), between(rng, 0.4, 0.55)
    pieces = [
        Piece(_polygon((-0.55, 0), (-1.15, -tail), (-1.0, 0), (-1.15, tail)), "second", "tail"),
        Piece(_polygon((0.3, -height * 0.8), (-0.1, -height - 0.32), (-0.35, -0.2)), "second"),
        Piece(_polygon((0.1, height * 0.8), (-0.25, height + 0.25), (-0.25, 0.2)), "second"),
        Piece(_ellipse(0.05, 0, 0.8, height), "main"),
    ]
    for x in (-0.3, 0.02):
        pieces.append(Piece(_arc_band(x - 0.5, 0, 0.5, 0.12, -0.75, 0.75), "third"))
    eye = between(rng, 0.13, 0.17)
    pieces.append(Piece(_ellipse(0.5, -0.12, eye, eye), "light", "eye"))
    pieces.append(Piece(_ellipse(0.53, -0.12, eye * 0.55, eye * 0.55), "dark"))
    return pieces


def _house(rng: np.random.Generator) -> list[Piece]:
    width, eaves = between(rng, 0.65, 0.85), between(rng, -0.25, -0.05)
    door = between(rng, -0.45, -0.2)
    pieces = [
        Piece(_rectangle(0.3, -0.95, 0.52, eaves), "third", "chimney"),
        Piece(_rectangle(-width, eaves, width, 0.9), "main"),
        Piece(_polygon((-width - 0.2, eaves), (0, -1.05), (width + 0.2, eaves)), "second", "roof"),
        Piece(_rectangle(door - 0.17, 0.3, door + 0.17, 0.9), "dark", "door"),
        Piece(_rectangle(0.1, 0.12, 0.58, 0.56), "light", "window"),
        Piece(_rectangle(0.31, 0.12, 0.37, 0.56), "dark"),
        Piece(_rectangle(0.1, 0.31, 0.58, 0.37), "dark"),
    ]
    return pieces


def _boat(rng: np.random.Generator) -> list[Piece]:
    mast, deck = between(rng, -0.15, 0.15), between(rng, 0.4, 0.5)
    jib = between(rng, 0.45, 0.75)
    return [
        Piece(_rectangle(mast - 0.045, -1.1, mast + 0.045, deck), "dark", "mast"),
        Piece(
            _polygon((mast + 0.09, -1.0), (mast + 0.09, 0.28), (mast + 0.8, 0.28)),
            "light",
            "sail",
        ),
        Piece(_polygon((mast - 0.09, -0.75), (mast - 0.09, 0.28), (mast - jib, 0.28)), "second"),
        Piece(_polygon((-1, deck), (1, deck), (0.68, 0.95), (-0.68, 0.95)), "main", "hull"),
        Piece(
            _polygon((-0.93, deck + 0.1), (0.93, deck + 0.1), (0.85, 0.66), (-0.85, 0.66)), "third"
        ),
    ]


def _flower(rng: np.random.Generator) -> list[Piece]:
    petals, start = 5 + int(3 * rng.random()), between(rng, 0, 2 * math.pi)
    leaf = between(rng, 0.55, 0.75)
    pieces = [
        Piece(_rectangle(-0.05, -0.2, 0.05, 1.1), "second", "stem"),
        Piece(_ellipse(0.26, leaf, 0.27, 0.11, -0.6), "second"),
        Piece(_ellipse(-0.26, leaf + 0.15, 0.27, 0.11, 0.6), "second"),
    ]
    for turn in np.linspace(start, start + 2 * math.pi, petals, endpoint=False):
        x, y = 0.43 * math.cos(turn), 0.43 * math.sin(turn) - 0.35
        pieces.append(Piece(_ellipse(x, y, 0.3, 0.9 / petals + 0.02, turn), "main"))
    pieces.append(Piece(_ellipse(0, -0.35, 0.25, 0.25), "light", "centre"))
    return [*pieces, Piece(_ellipse(0, -0.35, 0.13, 0.13), "dark")]


def _butterfly(rng: np.random.Generator) -> list[Piece]:
    spread, lower = between(rng, 0.45, 0.65), between(rng, 0.26, 0.36)
    pieces = []
    feeler = _arc_band(0.35, -0.6, 0.3, 0.07, 2.6, 5.2)
    for side, part in ((-1, "left_wing"), (1, "right_wing")):
        pieces.append(Piece(feeler * (side, 1), "dark"))
        pieces.append(Piece(_ellipse(side * 0.42, 0.42, 0.36, lower, side * 0.7), "second"))
        pieces.append(Piece(_ellipse(side * 0.55, -0.28, spread, 0.36, side * -0.6), "main", part))
        pieces.append(Piece(_ellipse(side * 0.65, -0.36, 0.19, 0.16), "light"))
        pieces.append(Piece(_ellipse(side * 0.65, -0.36, 0.09, 0.08), "third"))
        pieces.append(Piece(_ellipse(side * 0.45, 0.45, 0.13, 0.11), "third"))
    return [*pieces, Piece(_ellipse(0, 0.05, 0.1, 0.62), "dark", "body")]


def _mushroom(rng: np.random.Generator) -> list[Piece]:
    width, height = between(rng, 0.8, 1.0), between(rng, 0.75, 1.0)
    stalk = between(rng, 0.2, 0.3)
    pieces = [
        Piece(
            _polygon((-stalk, 0), (stalk, 0), (stalk + 0.12, 0.95), (-stalk - 0.12, 0.95)),
            "second",
            "stalk",
        ),
        Piece(_rectangle(-stalk - 0.08, 0.3, stalk + 0.08, 0.4), "dark"),
        Piece(_dome(0, 0.1, width, height), "main", "cap"),
        Piece(_ellipse(0, 0.1, width, 0.12), "third"),
    ]
    for x, y, radius in ((-0.45, 0.3, 0.14), (0.05, 0.62, 0.17), (0.48, 0.35, 0.13)):
        pieces.append(Piece(_ellipse(width * x, 0.1 - height * y, radius, radius), "light"))
    return pieces


def _car(rng: np.random.Generator) -> list[Piece]:
    roof, wheel = between(rng, -0.55, -0.42), between(rng, 0.2, 0.26)
    back = between(rng, -0.75, -0.55)
    pieces = [
        Piece(_polygon((back, 0), (back + 0.22, roof), (0.3, roof), (0.6, 0)), "second"),
        Piece(
            _polygon(
                (back + 0.15, -0.03), (back + 0.3, roof + 0.1), (-0.12, roof + 0.1), (-0.12, -0.03)
            ),
            "light",
            "window",
        ),
        Piece(
            _polygon((-0.02, -0.03), (-0.02, roof + 0.1), (0.24, roof + 0.1), (0.44, -0.03)),
            "light",
        ),
        Piece(_polygon((-1.05, 0), (0.95, 0), (1.1, 0.2), (1.1, 0.45), (-1.05, 0.45)), "main"),
        Piece(_rectangle(-1.05, 0.2, 1.1, 0.27), "third"),
    ]
    for x, part in ((-0.58, "back_wheel"), (0.6, "front_wheel")):
        pieces.append(Piece(_ellipse(x, 0.45, wheel, wheel), "dark", part))
        pieces.append(Piece(_ellipse(x, 0.45, wheel * 0.45, wheel * 0.45), "light"))
    return pieces


def _cup(rng: np.random.Generator) -> list[Piece]:
    top, foot = between(rng, 0.6, 0.72), between(rng, 0.4, 0.52)
    band, handle = between(rng, 0.05, 0.3), between(rng, 0.3, 0.36)
    pieces = [
        Piece(_ellipse(-0.1, 0.88, 0.85, 0.14), "second", "saucer"),
        Piece(_arc_band(top - 0.22, 0.1, handle, 0.15, -1.75, 1.9), "main", "handle"),
        Piece(
            _polygon(
                (-top - 0.1, -0.45), (top - 0.1, -0.45), (foot - 0.1, 0.78), (-foot - 0.1, 0.78)
            ),
            "main",
        ),
        Piece(_rectangle(-foot - 0.16, band, foot - 0.04, band + 0.2), "third"),
        Piece(_ellipse(-0.1, -0.45, top, 0.17), "light", "rim"),
        Piece(_ellipse(-0.1, -0.44, top - 0.1, 0.1), "dark"),
    ]
    return pieces


def _tree(rng: np.random.Generator) -> list[Piece]:
    width, trunk = between(rng, 0.6, 0.8), between(rng, 0.1, 0.15)
    pieces = [Piece(_rectangle(-trunk, 0.4, trunk, 1.05), "dark", "trunk")]
    tiers: tuple[tuple[Number, Number, Role], ...] = (
        (0.55, 1.0, "main"),
        (0.08, 0.8, "second"),
        (-0.38, 0.58, "main"),
    )
    for foot, share, role in tiers:
        reach = width * share
        pieces.append(Piece(_polygon((-reach, foot), (0, foot - 0.75), (reach, foot)), role))
    for x, y, role in (
        (-0.3, 0.4, "third"),
        (0.25, 0.3, "light"),
        (-0.1, -0.1, "light"),
        (0.12, -0.5, "third"),
    ):
        pieces.append(Piece(_ellipse(x * width / 0.7, y, 0.09, 0.09), role))
    return [*pieces, Piece(_ellipse(0, -1.1, 0.12, 0.12), "light", "top")]


KINDS: Mapping[str, Kind] = {
    "face": Kind(_face, tilt=18, mirrored=False),
    "fish": Kind(_fish, tilt=35, mirrored=True),
    "house": Kind(_house, tilt=6, mirrored=True),
    "boat": Kind(_boat, tilt=14, mirrored=True),
    "flower": Kind(_flower, tilt=25, mirrored=False),
    "butterfly": Kind(_butterfly, tilt=50, mirrored=False),
    "mushroom": Kind(_mushroom, tilt=20, mirrored=False),
    "car": Kind(_car, tilt=14, mirrored=True),
    "cup": Kind(_cup, tilt=12, mirrored=True),
    "tree": Kind(_tree, tilt=10, mirrored=False),
}
