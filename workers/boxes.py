"""Where the objects of a data set are, and where that is in the pixels a model sees.

Boxes are those a file lists (``workers.annotations``); ``shapes`` knows its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int32

from deconvoy.errors import RequestError
from deconvoy.spec import DataSpec, Transform
from workers.annotations import AnnotationFile, Box, require_within, sha256_of
from workers.datasets import Listing
from workers.images import fitted_size
from workers.shapes import outline
from workers.sources import JoinedSource, ShapesSource, Source, split_joined


@runtime_checkable
class Boxes(Protocol):
    """Boxes of a data set."""

    def of(self, uri: str) -> Float64[np.ndarray, "box x0y0x1y1"]:
        """Those of one image, in pixels of its file; none where nobody drew one."""
        ...


@dataclass(frozen=True)
class FileBoxes:
    """Those a file lists."""

    known: Mapping[str, Float64[np.ndarray, "_ x0y0x1y1"]]

    def of(self, uri: str) -> Float64[np.ndarray, "box x0y0x1y1"]:
        return self.known.get(uri, np.zeros((0, 4)))


@dataclass(frozen=True)
class ShapesBoxes:
    """Those of the drawings."""

    seed: int

    def of(self, uri: str) -> Float64[np.ndarray, "box x0y0x1y1"]:
        y0, x0, y1, x1 = outline(self.seed, int(uri)).box
        return np.array([[x0, y0, x1, y1]], np.float64)


@dataclass(frozen=True)
class JoinedBoxes:
    """Those of several places."""

    places: tuple[Boxes | None, ...]

    def of(self, uri: str) -> Float64[np.ndarray, "box x0y0x1y1"]:
        number, own = split_joined(uri)
        place = self.places[number]
        return np.zeros((0, 4)) if place is None else place.of(own)


def boxes_of(data: DataSpec, listing: Listing) -> Boxes | None:
    """The boxes of a data set; None where it has none.

    Raises:
        RequestError: the file cannot be read, names no image that is there, or has a box that is
            none.
    """
    if data.boxes is None:
        return _own(listing.source)
    if _own(listing.source) is not None:
        raise RequestError("data.boxes is for files: shapes knows its own boxes; leave it out.")
    file = AnnotationFile(data.boxes, "data.boxes")
    read: dict[str, list[Box]] = {}
    for one in file.read():
        read.setdefault(one.path, []).append(one.box)
    found = FileBoxes({path: np.array(boxes, np.float64) for path, boxes in read.items()})
    file.require_fitting(found.known, data, listing)
    return found


def in_input(
    boxes: Float64[np.ndarray, "box x0y0x1y1"], file_size: tuple[int, int], transform: Transform
) -> Int32[np.ndarray, "kept y0x0y1x1"]:
    """Boxes in pixels of the preprocessed image: whole pixels that a box touches, clipped to the
    image; those that the crop leaves nothing of are dropped.

    Args:
        file_size: height and width.

    Raises:
        RequestError: a box reaches beyond its file.
    """
    require_within(boxes, file_size)
    side = transform.crop
    drawn = fitted_size(file_size, transform)
    placed = []
    for axis, (length, now) in enumerate(zip(file_size, drawn, strict=True)):
        # A smaller image is padded, a larger one cropped, as in ``workers.images``.
        offset = (side - now) // 2 if now < side else -round((now - side) / 2.0)
        ends = boxes[:, [1 - axis, 3 - axis]] * (now / length) + offset
        # Rounding of the scale must not make a box touch one pixel more.
        low, high = np.floor(ends[:, 0] + 1e-6), np.ceil(ends[:, 1] - 1e-6)
        inside = max(offset, 0), min(offset + now, side)
        placed += [np.clip(low, *inside), np.clip(high, *inside)]
    y0, y1, x0, x1 = placed
    found = np.stack([y0, x0, y1, x1], axis=1).astype(np.int32)
    return found[(found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])]


def digest_of(boxes: Boxes | None) -> str | None:
    """sha256 of the boxes of a file; None where there is none."""
    if not isinstance(boxes, FileBoxes):
        return None
    return sha256_of({path: own.tolist() for path, own in boxes.known.items()})


def _own(source: Source) -> Boxes | None:
    """What a source knows of its own images."""
    if isinstance(source, ShapesSource):
        return ShapesBoxes(source.seed)
    if isinstance(source, JoinedSource):
        places = tuple(_own(place) for place in source.sources)
        return JoinedBoxes(places) if any(places) else None
    return None
