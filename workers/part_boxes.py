"""Where the named parts of the objects are, an eye or a nose, and where in the pixels a model sees.

Boxes are those a file lists (``workers.annotations``), one a part and image; ``shapes`` knows its
own.  (The parts that Zeiler & Fergus 2013, section 4.3, mask.)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int32

from deconvoy.errors import RequestError
from deconvoy.spec import DataSpec, Transform
from workers.annotations import AnnotationFile, sha256_of
from workers.boxes import in_input
from workers.datasets import Listing
from workers.shapes import outline
from workers.sources import JoinedSource, ShapesSource, Source, split_joined


@runtime_checkable
class PartBoxes(Protocol):
    """Boxes of the parts of a data set's objects."""

    def of(self, uri: str) -> Mapping[str, Float64[np.ndarray, " x0y0x1y1"]]:
        """Those of one image by the part's name, in pixels of its file."""
        ...


@dataclass(frozen=True)
class FilePartBoxes:
    """Those a file lists."""

    known: Mapping[str, Mapping[str, Float64[np.ndarray, " x0y0x1y1"]]]

    def of(self, uri: str) -> Mapping[str, Float64[np.ndarray, " x0y0x1y1"]]:
        return self.known.get(uri, {})


@dataclass(frozen=True)
class ShapesPartBoxes:
    """Those of the drawings."""

    seed: int

    def of(self, uri: str) -> Mapping[str, Float64[np.ndarray, " x0y0x1y1"]]:
        return {
            name: np.array([x0, y0, x1, y1], np.float64)
            for name, (y0, x0, y1, x1) in outline(self.seed, int(uri)).parts.items()
        }


@dataclass(frozen=True)
class JoinedPartBoxes:
    """Those of several places."""

    places: tuple[PartBoxes | None, ...]

    def of(self, uri: str) -> Mapping[str, Float64[np.ndarray, " x0y0x1y1"]]:
        number, own = split_joined(uri)
        place = self.places[number]
        return {} if place is None else place.of(own)


def part_boxes_of(data: DataSpec, listing: Listing) -> PartBoxes | None:
    """The parts of a data set; None where it has none.

    Raises:
        RequestError: the file cannot be read, names no image that is there, has a box that is none,
            or a part of an image twice.
    """
    if data.parts is None:
        return _own(listing.source)
    if _own(listing.source) is not None:
        raise RequestError("data.parts is for files: shapes knows its own parts; leave it out.")
    file = AnnotationFile(data.parts, "data.parts", name_column="part")
    known: dict[str, dict[str, Float64[np.ndarray, " x0y0x1y1"]]] = {}
    for number, one in enumerate(file.read(), start=1):
        assert one.name is not None
        own = known.setdefault(one.path, {})
        if one.name in own:
            raise RequestError(
                f"data.parts {data.parts!r}, row {number} ({one.path!r}): the part {one.name!r} "
                "has a box in this image already, but a part has one an image: name the two "
                "differently, as in left_eye and right_eye."
            )
        own[one.name] = np.array(one.box, np.float64)
    boxes = {path: np.stack([*own.values()]) for path, own in known.items()}
    file.require_fitting(boxes, data, listing)
    return FilePartBoxes(known)


def names_of(parts: PartBoxes, uris: Iterable[str]) -> tuple[str, ...]:
    """Of all parts that any of the images has, in alphabetical order."""
    return tuple(sorted({name for uri in uris for name in parts.of(uri)}))


def parts_in_input(
    parts: Mapping[str, Float64[np.ndarray, " x0y0x1y1"]],
    file_size: tuple[int, int],
    transform: Transform,
) -> dict[str, Int32[np.ndarray, " y0x0y1x1"]]:
    """The parts of one image in pixels of the preprocessed image, as boxes are (``in_input``);
    without those that the crop leaves nothing of.

    Args:
        file_size: height and width.

    Raises:
        RequestError: a box reaches beyond its file.
    """
    placed = {name: in_input(box[None], file_size, transform) for name, box in parts.items()}
    return {name: found[0] for name, found in placed.items() if len(found)}


def digest_of_parts(parts: PartBoxes | None) -> str | None:
    """sha256 of the parts of a file; None where there is none."""
    if not isinstance(parts, FilePartBoxes):
        return None
    lists = ((path, sorted(own.items())) for path, own in parts.known.items())
    return sha256_of({path: [[name, box.tolist()] for name, box in own] for path, own in lists})


def _own(source: Source) -> PartBoxes | None:
    """What a source knows of its own images."""
    if isinstance(source, ShapesSource):
        return ShapesPartBoxes(source.seed)
    if isinstance(source, JoinedSource):
        places = tuple(_own(place) for place in source.sources)
        return JoinedPartBoxes(places) if any(places) else None
    return None
