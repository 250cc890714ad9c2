"""Move an image: shift it down, scale it, turn it; sampled bilinearly where pixels fall between.

Source: Zeiler & Fergus (ECCV 2014, arXiv:1311.2901), Fig. 5: images under vertical translation,
scale and rotation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor
from torch.nn import functional

Transformation = Literal["translation", "scale", "rotation"]
TRANSFORMATIONS: tuple[Transformation, ...] = ("translation", "scale", "rotation")

Border = Literal["mean", "edge", "reflect"]
_PADDING = {"mean": "zeros", "edge": "border", "reflect": "reflection"}


FINEST = 2.0**-16
"""Levels of moved pixels are multiples of it."""


@dataclass(frozen=True)
class Move:
    """One of them, and by how much: pixels down, a factor, degrees counter-clockwise."""

    transformation: Transformation
    amount: float


def moved(
    pixels: UInt8[Tensor, "channel row col"],
    moves: Sequence[Move],
    border: Border,
    fill: Sequence[float],
) -> Float[Tensor, "move channel row col"]:
    """The image under each move, about its centre, 0–255, in float32.

    A pixel of the result shows what lies at its place in the image before, bilinearly between the
    four pixels around it.  A move of nothing gives the same pixels.

    Args:
        border: what lies beyond the image: ``fill``, its nearest pixel, or its reflection.
        fill: 0–255, a number a channel.
    """
    image = pixels.to(torch.float64)
    ground = torch.zeros_like(image)
    if border == "mean":  # beyond the image the sampler sees zeros
        ground += torch.tensor(fill, dtype=torch.float64).view(-1, 1, 1)
    _, height, width = image.shape
    inverse = torch.stack([_inverse(move, height, width) for move in moves])
    size = [len(moves), *image.shape]
    places = functional.affine_grid(inverse, size, align_corners=False)
    sampled = functional.grid_sample(
        (image - ground).expand(size),
        places,
        padding_mode=_PADDING[border],
        align_corners=False,
    )
    # Rounded far below a level: where whole pixels are met they are the same to the bit.
    levels = ((sampled + ground) / FINEST).round() * FINEST
    return levels.clamp(0, 255).to(torch.float32)


def _inverse(move: Move, height: int, width: int) -> Float64[Tensor, "2 3"]:
    """Where a pixel of the result is in the image before; in halves of its sides, (x, y)."""
    match move.transformation:
        case "translation":
            rows = [[1.0, 0.0, 0.0], [0.0, 1.0, -2 * move.amount / height]]
        case "scale":
            rows = [[1 / move.amount, 0.0, 0.0], [0.0, 1 / move.amount, 0.0]]
        case "rotation":
            # y points down, so this turns the picture to the left.
            cos, sin = _cos_sin(move.amount)
            tall = height / width
            rows = [[cos, -sin * tall, 0.0], [sin / tall, cos, 0.0]]
    return torch.tensor(rows, dtype=torch.float64)


def _cos_sin(degrees: float) -> tuple[float, float]:
    """Exact at multiples of a right angle."""
    quarter, rest = divmod(degrees, 90)
    if rest == 0:
        return ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(quarter) % 4]
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
