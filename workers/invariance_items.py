"""What follows from an invariance analysis: the moves, the images, and the work items.

Settled with the job, so that what does not fit is refused before anything is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deconvoy.spec import (
    InvarianceSpec,
    JobSpec,
    NamedImages,
    Steps,
    Transform,
    amounts_of,
)
from workers.datasets import Listing
from workers.graph import Network
from workers.image_choice import places_of
from workers.independence import require_independent
from workers.transformations import Move

SHIFT = 60 / 224
"""An automatic translation reaches so much of the image's side either way: the paper's 60 pixels
of 224."""

SHIFTS = 13


@dataclass(frozen=True)
class Moving:
    """An invariance analysis with all that follows from it before the scan."""

    spec: InvarianceSpec
    moves: tuple[Move, ...]
    fill: tuple[float, ...]
    """What lies beyond the border where that is ``mean``: 0–255, a number a channel."""
    named: tuple[int, ...]
    """Images that the spec names itself, by their place in the listing."""


@dataclass(frozen=True)
class InvarianceItem:
    """One image to move."""

    name: str
    row: int
    """In the arrays."""
    image: int
    """Its id."""


def moving_of(
    spec: JobSpec, transform: Transform, network: Network, listing: Listing
) -> Moving | None:
    """What a spec's invariance analysis comes down to; None where it has none.

    Raises:
        RequestError: an image that it names is not there.
        ModelUnsupported: an image's activations depend on the other images of its batch.
    """
    asked = spec.invariance
    if asked is None:
        return None
    require_independent(network, "invariance")
    named: tuple[int, ...] = ()
    if isinstance(asked.images, NamedImages):
        named = places_of(asked.images.ids, listing, "invariance")
    fill = tuple(255 * mean for mean in transform.mean)
    return Moving(asked, moves_of(asked, transform.crop), fill, named)


def moves_of(asked: InvarianceSpec, side: int) -> tuple[Move, ...]:
    """In the order of the arrays: translations, scales, rotations, each as given.

    Args:
        side: of the preprocessed image, in pixels.
    """
    down = asked.translation
    if down == "auto":
        furthest = round(SHIFT * side)
        pixels = np.linspace(-furthest, furthest, SHIFTS).round()
        down = tuple(dict.fromkeys(pixels.tolist()))  # of a tiny image some are the same
    return (
        *(Move("translation", a) for a in _listed(down)),
        *(Move("scale", a) for a in _listed(asked.scale)),
        *(Move("rotation", a) for a in _listed(asked.rotation)),
    )


def _listed(given: Steps | Sequence[float] | None) -> Sequence[float]:
    if given is None:
        return ()
    return amounts_of(given if isinstance(given, Steps) else tuple(given))


def invariance_items(images: Sequence[int]) -> list[InvarianceItem]:
    """One for each image id."""
    return [
        InvarianceItem(f"invariance/item-{row:06d}", row, image) for row, image in enumerate(images)
    ]
