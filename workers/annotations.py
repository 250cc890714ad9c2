"""Read the boxes that people drew on images, a row each of a CSV or Parquet file, and check them.

Boxes are given in pixels of the file, turned as EXIF says, as every annotation tool shows it:
x0, y0, x1, y1 with the far corner outside.
"""

import csv
import hashlib
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64

from deconvoy.errors import ImageUnreadable, RequestError
from deconvoy.files import split
from deconvoy.spec import DataSpec, Transform
from workers.datasets import Listing
from workers.sources import Source

logger = logging.getLogger(__name__)

CORNERS = ("x0", "y0", "x1", "y1")

LOOKED_AT = 8
"""Images whose size is compared with their boxes before a job starts: boxes of other pixels than
the file's are seen in any image, and each one has to be decoded."""

SLACK = 1.0
"""Pixels a box may reach beyond its file: some tools count from 1."""

Box: TypeAlias = tuple[float, float, float, float]
"""x0, y0, x1, y1."""

BoxesByPath: TypeAlias = Mapping[str, Float64[np.ndarray, "_ x0y0x1y1"]]


@dataclass(frozen=True)
class Annotation:
    """One row of a file."""

    path: str
    name: str | None
    """What is in the box, where the file has a column for it."""
    box: Box


@dataclass(frozen=True)
class AnnotationFile:
    """Where boxes are listed."""

    place: str
    field: str
    """Of the spec that names it: ``data.boxes``."""
    name_column: str | None = None
    """Which names what is in a box; None where every box is of the same kind."""

    @property
    def columns(self) -> tuple[str, ...]:
        return ("path", *([self.name_column] if self.name_column else []), *CORNERS)

    @property
    def _told(self) -> str:
        return f"{self.field} {self.place!r}"

    def read(self) -> list[Annotation]:
        """All rows, in their order.

        Raises:
            RequestError: the file cannot be read, lacks a column, or has a box that is none.
        """
        rows = self._rows()
        lacking = [name for name in self.columns if rows and name not in rows[0]]
        if lacking or not rows:
            has = ", ".join(map(str, rows[0])) if rows else "no rows"
            raise RequestError(
                f"{self._told} has {has}, but its columns are {', '.join(self.columns)}: one row a "
                "box, in pixels of the file."
            )
        found = [self._annotation(number, row) for number, row in enumerate(rows, start=1)]
        if all(max(one.box) <= 1 for one in found):
            raise RequestError(
                f"{self._told}: no coordinate is above 1, so they are shares of the image: "
                "give pixels of the file."
            )
        return found

    def require_fitting(self, known: BoxesByPath, data: DataSpec, listing: Listing) -> None:
        """Compare what was read with the images; says which paths are those of no image.

        Raises:
            RequestError: no image is named, or a box reaches beyond its file.
        """
        named = [uri for uri in listing.uris if uri in known]
        if not named:
            first = next(iter(known), "none")
            raise RequestError(
                f"{self._told} names none of the images; its paths are named as the images are, as "
                f"in {listing.uris[0]!r} (it has {first!r})."
            )
        if data.limit is None and data.where is None:
            self._warn_of_missing(list(known), listing)
        self._require_inside(known, named, listing.source)

    def _rows(self) -> list[dict[str, Any]]:
        files, file = split(self.place)
        try:
            content = files.read(file)
            if file.endswith(".parquet"):
                rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(content)).to_pylist()
                return rows
            return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
        except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
            raise RequestError(
                f"{self._told} cannot be read ({error}): it is a CSV or Parquet file with the "
                f"columns {', '.join(self.columns)}."
            ) from error

    def _annotation(self, number: int, row: Mapping[str, Any]) -> Annotation:
        told = f"{self._told}, row {number} ({row['path']!r})"
        name = row[self.name_column] if self.name_column else None
        if self.name_column and name in (None, ""):
            raise RequestError(f"{told}: its {self.name_column} is empty: name what is in the box.")
        return Annotation(str(row["path"]), None if name is None else str(name), _box(told, row))

    def _require_inside(self, known: BoxesByPath, named: Sequence[str], source: Source) -> None:
        """Compare the boxes of a few images with their size."""
        tiny = Transform(resize=1, crop=1)
        for uri in named[:: max(1, -(-len(named) // LOOKED_AT))]:
            try:
                picture = source.read(uri, tiny)
            except ImageUnreadable:
                continue  # the scan tells of those
            try:
                require_within(known[uri], (picture.height, picture.width))
            except RequestError as error:
                raise RequestError(f"{self._told}, {uri!r}: {error}") from None

    def _warn_of_missing(self, paths: Sequence[str], listing: Listing) -> None:
        there = set(listing.uris)
        missing = [path for path in paths if path not in there]
        if missing:
            logger.warning(
                "%s: %d of the %d images it names are not there (%s%s): their boxes go "
                "unused; mend the paths, unless the file is of a larger data set.",
                self._told, len(missing), len(paths),
                ", ".join(map(repr, missing[:3])), ", …" if len(missing) > 3 else "",
            )  # fmt: skip


def _box(told: str, row: Mapping[str, Any]) -> Box:
    try:
        x0, y0, x1, y1 = (float(row[name]) for name in CORNERS)
    except (TypeError, ValueError):
        given = ", ".join(f"{name} {row[name]!r}" for name in CORNERS)
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


def sha256_of(named: Mapping[str, Any]) -> str:
    """Of lists and numbers by name, whatever their order."""
    in_order = {name: named[name] for name in sorted(named)}
    return hashlib.sha256(json.dumps(in_order).encode()).hexdigest()
