"""What follows from a correspondence analysis: the parts, and the images that have them.

Settled with the job, so that what does not fit is refused before anything is computed.  What the
crop leaves of a part, and which images can be read, is known only after the scan.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
from jaxtyping import Int32

from deconvoy.errors import RequestError
from deconvoy.spec import CorrespondenceSpec, NamedImages, Transform
from workers.correspondence import FEWEST, coverings_together
from workers.datasets import Listing
from workers.graph import Layer, Network
from workers.image_choice import count_of, drawn, places_of
from workers.independence import require_independent
from workers.occlusion_items import fill_of
from workers.part_boxes import PartBoxes, names_of

KIND = "correspondence"

DRAWS_AN_ITEM = 7
"""Coverings of a work item, and of a chunk; a run of the clean images is shared by those whose
signs fit in memory together."""

TOLD = 5
"""Names that an error lists at most."""


@dataclass(frozen=True)
class Corresponding:
    """A correspondence analysis with all that follows from it before the scan."""

    spec: CorrespondenceSpec
    parts: tuple[str, ...]
    """Covered one after the other."""
    fill: tuple[float, ...]
    """Of what is covered, 0–255, a number a channel."""
    named: tuple[int, ...]
    """Images that the spec names itself, by their place in the listing."""
    able: tuple[int, ...]
    """Images with a box for every part, by their place in the listing: a sample is drawn from
    them, but for those that cannot be read, or of which the crop leaves a part out."""


@dataclass(frozen=True)
class CorrespondenceItem:
    """Some draws of one part."""

    name: str
    part: int
    start: int
    stop: int


def items_of(corresponding: Corresponding) -> list[CorrespondenceItem]:
    """Cut from the spec alone."""
    draws = corresponding.spec.random + 1
    return [
        CorrespondenceItem(
            f"{KIND}/{name}/item-{number:06d}", part, start, min(start + DRAWS_AN_ITEM, draws)
        )
        for part, name in enumerate(corresponding.parts)
        for number, start in enumerate(range(0, draws, DRAWS_AN_ITEM))
    ]


def corresponding_of(
    asked: CorrespondenceSpec | None,
    transform: Transform,
    network: Network,
    layers: Sequence[Layer],
    listing: Listing,
    boxes: PartBoxes | None,
) -> Corresponding | None:
    """What a correspondence analysis comes down to; None where none is asked for.

    Args:
        layers: of the job.

    Raises:
        RequestError: nothing is known of parts, a part or an image is not there, too few images
            have all the parts, too many are to be compared, or the colour does not fit.
        ModelUnsupported: an image's activations depend on the other images of its batch.
    """
    if asked is None:
        return None
    require_independent(network, KIND)
    if boxes is None:
        raise RequestError(
            f"analyses.{KIND} covers parts of objects, but the data says of none where it is: give "
            "data.parts."
        )
    parts = _parts(asked, boxes, listing)
    able = tuple(
        place for place, uri in enumerate(listing.uris) if set(parts) <= boxes.of(uri).keys()
    )
    named: tuple[int, ...] = ()
    if isinstance(asked.images, NamedImages):
        named = places_of(asked.images.ids, listing, KIND)
        for place in named:
            require_parts(listing.uris[place], boxes.of(listing.uris[place]), parts)
    images = count_of(asked.images, named, len(able))
    _require_pair(images, parts)
    coverings_together(layers, images)
    return Corresponding(asked, parts, fill_of(asked, transform), named, able)


def drawn_images(
    corresponding: Corresponding,
    placed: Mapping[int, Mapping[str, Int32[np.ndarray, "4"]]],
    seed: int,
) -> list[int]:
    """Of a sample, the ids to compare, in order.

    Args:
        placed: of every readable image of ``able``, by its id, the parts that the crop leaves
            (``parts_in_input``).

    Raises:
        RequestError: fewer than two have all the parts.
    """
    assert not isinstance(corresponding.spec.images, NamedImages)
    parts = corresponding.parts
    whole = sorted(image for image, own in placed.items() if set(parts) <= own.keys())
    _require_pair(len(whole), parts)
    return drawn(whole, corresponding.spec.images.sample, seed, KIND)


def require_parts(uri: str, own: Iterable[str], parts: Sequence[str]) -> None:
    """Of an image that the spec names itself.

    Args:
        own: names of the parts that the image has, or that the crop leaves.

    Raises:
        RequestError: it lacks one of ``parts``.
    """
    lacking = sorted(set(parts) - set(own))
    if lacking:
        raise RequestError(
            f"analyses.{KIND}.images.ids names {uri!r}, of which the part {_listed(lacking)} is "
            "not in the data's parts or outside the crop: name images that have them all, or leave "
            "the part out of the analysis."
        )


def _parts(asked: CorrespondenceSpec, boxes: PartBoxes, listing: Listing) -> tuple[str, ...]:
    known = names_of(boxes, listing.uris)
    if asked.parts == "all":
        return known
    for name in asked.parts:
        if name not in known:
            near = get_close_matches(name, known, n=3, cutoff=0.3) or known[:TOLD]
            raise RequestError(
                f"analyses.{KIND}.parts has {name!r}, but no image has a part of that name; "
                f"nearest: {', '.join(near) or 'none, as no image has any'}."
            )
    return tuple(dict.fromkeys(asked.parts))


def _require_pair(count: int, parts: Sequence[str]) -> None:
    if count < FEWEST:
        raise RequestError(
            f"analyses.{KIND} compares images in pairs, but {count or 'none'} of them "
            f"{'has' if count == 1 else 'have'} all of the parts {_listed(parts)}: name fewer "
            f"in analyses.{KIND}.parts, or add images or rows to data.parts."
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return ", ".join(map(repr, names[:TOLD])) + more
