"""Where the objects of a data set are: read, checked, and mapped to the pixels a model sees.

Boxes are given in pixels of the file, turned as EXIF says, as every annotation tool shows it:
x0, y0, x1, y1 with the far corner outside.  ``shapes`` knows its own.
"""

import csv
import hashlib
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64, Int32

from deconvoy.errors import ImageUnreadable, RequestError
from deconvoy.files import split
from deconvoy.spec import DataSpec, Transform
from workers.datasets import Listing
from workers.images import fitted_size
from workers.shapes import render
from workers.sources import JoinedSource, ShapesSource, Source, split_joined

logger = logging.getLogger(__name__)

COLUMNS = ("path", "x0", "y0", "x1", "y1")

LOOKED_AT = 8
"""Images whose size is compared with their boxes before a job starts: boxes of other pixels than
the file's are seen in any image, and each one has to be decoded."""

SLACK = 1.0
"""Pixels a box may reach beyond its file: some tools count from 1."""


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
        y0, x0, y1, x1 = render(self.seed, int(uri)).box
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
    read = _read(data.boxes)
    found = FileBoxes({path: np.array(boxes, np.float64) for path, boxes in read.items()})
    named = [uri for uri in listing.uris if uri in found.known]
    if not named:
        first = next(iter(found.known), "none")
        raise RequestError(
            f"data.boxes {data.boxes!r} names none of the images; its paths are named as the "
            f"images are, as in {listing.uris[0]!r} (it has {first!r})."
        )
    if data.limit is None and data.where is None:
        _warn_of_missing(data.boxes, list(found.known), listing)
    _require_inside(data.boxes, found, named, listing.source)
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


# -- checks --------------------------------------------------------------------------------------


def _own(source: Source) -> Boxes | None:
    """What a source knows of its own images."""
    if isinstance(source, ShapesSource):
        return ShapesBoxes(source.seed)
    if isinstance(source, JoinedSource):
        places = tuple(_own(place) for place in source.sources)
        return JoinedBoxes(places) if any(places) else None
    return None


def _read(place: str) -> dict[str, list[tuple[float, float, float, float]]]:
    files, file = split(place)
    known: dict[str, list[tuple[float, float, float, float]]] = {}
    try:
        content = files.read(file)
        if file.endswith(".parquet"):
            rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(content)).to_pylist()
        else:
            rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise RequestError(
            f"data.boxes {place!r} cannot be read ({error}): it is a CSV or Parquet file with the "
            f"columns {', '.join(COLUMNS)}."
        ) from error
    lacking = [name for name in COLUMNS if rows and name not in rows[0]]
    if lacking or not rows:
        has = ", ".join(map(str, rows[0])) if rows else "no rows"
        raise RequestError(
            f"data.boxes {place!r} has {has}, but its columns are {', '.join(COLUMNS)}: one row a "
            "box, in pixels of the file."
        )
    for number, row in enumerate(rows, start=1):
        known.setdefault(str(row["path"]), []).append(_box(place, number, row))
    if all(max(box) <= 1 for boxes in known.values() for box in boxes):
        raise RequestError(
            f"data.boxes {place!r}: no coordinate is above 1, so they are shares of the image: "
            "give pixels of the file."
        )
    return known


def _box(place: str, number: int, row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    told = f"data.boxes {place!r}, row {number} ({row['path']!r})"
    try:
        x0, y0, x1, y1 = (float(row[name]) for name in COLUMNS[1:])
    except (TypeError, ValueError):
        given = ", ".join(f"{name} {row[name]!r}" for name in COLUMNS[1:])
        raise RequestError(f"{told}: {given} are no four numbers: pixels of the file.") from None
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise RequestError(f"{told}: a corner is not finite: give pixels of the file.")
    if x0 >= x1 or y0 >= y1:
        raise RequestError(
            f"{told}: the box {x0:g}, {y0:g}, {x1:g}, {y1:g} ends before it begins: it is x0, y0, "
            "x1, y1 with x0 < x1 and y0 < y1, not a corner with width and height."
        )
    if min(x0, y0) < -SLACK:
        raise RequestError(
            f"{told}: the box begins at {x0:g}, {y0:g}, outside the file: pixels count from 0 at "
            "the top left."
        )
    return x0, y0, x1, y1


def require_within(boxes: Float64[np.ndarray, "box x0y0x1y1"], file_size: tuple[int, int]) -> None:
    """Raises RequestError where a box reaches beyond its file of that height and width."""
    height, width = file_size
    for x0, y0, x1, y1 in boxes.tolist():
        if x1 > width + SLACK or y1 > height + SLACK or min(x0, y0) < -SLACK:
            raise RequestError(
                f"The box {x0:g}, {y0:g}, {x1:g}, {y1:g} reaches beyond its file of {width}×"
                f"{height} pixels: boxes are x0, y0, x1, y1 in pixels of the file, turned as EXIF "
                "says, before any resizing."
            )


def digest_of(boxes: Boxes | None) -> str | None:
    """sha256 of the boxes of a file; None where there is none."""
    if not isinstance(boxes, FileBoxes):
        return None
    named = {path: boxes.known[path].tolist() for path in sorted(boxes.known)}
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def _require_inside(place: str, boxes: Boxes, named: Sequence[str], source: Source) -> None:
    """Compare the boxes of a few images with their size."""
    tiny = Transform(resize=1, crop=1)
    for uri in named[:: max(1, -(-len(named) // LOOKED_AT))]:
        try:
            picture = source.read(uri, tiny)
        except ImageUnreadable:
            continue  # the scan tells of those
        try:
            require_within(boxes.of(uri), (picture.height, picture.width))
        except RequestError as error:
            raise RequestError(f"data.boxes {place!r}, {uri!r}: {error}") from None


def _warn_of_missing(place: str, paths: Sequence[str], listing: Listing) -> None:
    there = set(listing.uris)
    missing = [path for path in paths if path not in there]
    if missing:
        logger.warning(
            "data.boxes %r: %d of the %d images it names are not there (%s%s): their boxes go "
            "unused; mend the paths, unless the file is of a larger data set.",
            place, len(missing), len(paths),
            ", ".join(map(repr, missing[:3])), ", …" if len(missing) > 3 else "",
        )  # fmt: skip
