"""Verify a run: that its bytes are those that were written, complete, and what its ledger says.

Three questions.  Does every chunk have its checksum, and can every images part and marker be read?
Is everything there that the markers promise?  And are the tables the fold of the markers?  None
needs the model or torch; ``workers.replay`` asks the fourth: does a plain forward pass find the
same?  What no checksum covers is the attributes (``zarr.json``): they must be well-formed.
"""

import io
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deconvoy.errors import DeconvoyError
from deconvoy.run import Run
from deconvoy.schema import LAYER_ARRAYS, MISSING_LABEL, image_part_path, images_schema, layer_path
from deconvoy.store import RunStore
from workers.checksums import Chunks, Fault
from workers.topk import Fold, Partial, UnitIndex

PICTURES = ("patch", "projection", "scale", "projected")
"""Arrays that the projection's work items fill."""

TABLES = tuple(f.name for f in LAYER_ARRAYS if f.name not in PICTURES)

SHOWN = 200
"""Faults that are kept of each kind: a wholly broken disk need not fill the memory, too."""


@dataclass
class Report:
    """What was checked, and what is wrong."""

    chunks: int = 0
    files: int = 0
    """Markers, parts of the images table, metadata."""
    hits: int = 0
    """Recomputed with a plain forward pass."""
    faults: list[Fault] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        counts = {"chunks": self.chunks, "files": self.files, "hits": self.hits}
        return {**counts, "faults": [vars(fault) for fault in self.faults]}


def verify(url: str, sample: int, seed: int = 0) -> Report:
    """Check a run.

    Args:
        sample: hits to recompute; 0 needs neither model nor torch.
        seed: of the choice of hits.

    Raises:
        RunNotFound, RunUnreadable: no run, or none that can be opened.
        RequestError: the model or the images of the run are not there any more.
    """
    opened = Run(url)
    report = Report()
    chunks = Chunks(RunStore(url))
    report.faults += list(chunks.faults())[:SHOWN]
    for kind in (_Scan, _Projection):
        check = kind(chunks, opened.attributes, report)
        report.faults += list(check.faults())[:SHOWN]
    report.chunks, report.files = chunks.read, report.files + chunks.files
    # Of a broken run the hits cannot be read; before its scan is done a run has none.
    if sample and not report.faults and "results" in opened.attributes:
        from workers.replay import replay

        replayed = replay(url, sample, seed)
        report.hits = replayed.hits
        report.faults += replayed.faults[:SHOWN]
    return report


class _Scan:
    """The scan's part of a run: markers, images, and the tables that are the fold of them."""

    def __init__(self, chunks: Chunks, attributes: dict[str, Any], report: Report) -> None:
        self.chunks, self.run, self.attributes, self.report = chunks, chunks.run, attributes, report
        self.merged = "results" in attributes
        """Whether the scan is complete and its tables are written."""

    def faults(self) -> Iterator[Fault]:
        """Markers and images parts; then the tables, which are the fold of both."""
        faults = [*self._read_markers(), *self._read_images()]
        yield from faults
        if not self.merged:
            return
        yield from self._absent()
        groups = {layer_path(layer) for layer in self.attributes["layers"]}
        if not faults and not groups & self.chunks.unopened:
            yield from self._compare_tables()

    def _read_markers(self) -> Iterator[Fault]:
        names = self.run.names("ledger/scan")
        prefixes = [name for name in names if name.startswith("prefix-")]
        start = _number(prefixes[-1]) + 1 if prefixes else 0
        numbers = {_number(name): name for name in names if name.startswith("part-")}
        self.parts = [*range(start), *sorted(number for number in numbers if number >= start)]
        self.partials: list[Partial] = []
        for name in [*prefixes[-1:], *(numbers[n] for n in self.parts[start:])]:
            self.report.files += 1
            try:
                content = self.run.read(f"ledger/scan/{name}")
                self.partials.append(Partial.from_bytes(content, name))
            except DeconvoyError as error:
                yield Fault(f"ledger/scan/{name}", str(error))
        if self.merged:
            for number in sorted(set(range(self._shards)) - set(self.parts)):
                yield Fault(f"ledger/scan/part-{number:06d}.npz", "is missing")

    @property
    def _images(self) -> int:
        return int(self.attributes["provenance"]["images"])

    @property
    def _shard_size(self) -> int:
        return int(self.attributes["spec"]["compute"]["shard_size"])

    @property
    def _shards(self) -> int:
        return -(-self._images // self._shard_size)

    def _read_images(self) -> Iterator[Fault]:
        """A part of the images table is written before its marker, so a marker promises it."""
        self.images: list[pa.Table] = []
        for part in self.parts:
            path = image_part_path(part)
            if not self.run.exists(path):
                yield Fault(path, "is missing, but its shard is committed")
                continue
            self.report.files += 1
            try:
                content = io.BytesIO(self.run.read(path))
                table = pq.read_table(content, page_checksum_verification=True)
            except (OSError, pa.ArrowException) as error:
                yield Fault(path, f"cannot be read: {error}")
                continue
            rows = min(self._shard_size, self._images - part * self._shard_size)
            if table.schema != images_schema() or table.num_rows != rows:
                yield Fault(path, f"has {table.num_rows} images of {rows}, or other columns")
            self.images.append(table)

    def _absent(self) -> Iterator[Fault]:
        """Tables that are not there at all, or have no bytes where a hit must have left some."""
        for layer in self.attributes["layers"]:
            for name in TABLES:
                path = f"{layer_path(layer)}/{name}"
                if not self.run.exists(f"{path}/zarr.json"):
                    self.chunks.broken.add(path)
                    yield Fault(f"{path}/zarr.json", "is missing")
            hits = self.chunks.array(layer, "image")
            # A box ends behind its first pixel, so the table of a layer with hits is not all zero.
            if hits is not None and (hits >= 0).any():
                for name in ("box", "window"):
                    for place in self.chunks.absent_of(layer, name):
                        yield self.chunks.absent(layer, name, place)

    def _compare_tables(self) -> Iterator[Fault]:
        layers: Sequence[str] = self.attributes["layers"]
        groups = [self.run.zarr()[layer_path(layer)].attrs for layer in layers]
        units = [int(str(attributes["units"])) for attributes in groups]
        fold = self._fold(UnitIndex.of(units))
        read = max(fold.images, 1)
        label = self._labels(fold.image)
        for layer, start, count in zip(layers, itertools.accumulate([0, *units]), units,
                                       strict=False):  # fmt: skip
            at = slice(start, start + count)
            promised = {
                "score": fold.score[at],
                "image": fold.image[at],
                "label": label[at],
                "position": fold.position[at],
                "mean": fold.sums.maxima[at] / read,
                "density": fold.sums.active[at] / read,
                "histogram": fold.sums.histogram[at],
            }
            for name, values in promised.items():
                yield from self._compare(layer, name, values)

    def _fold(self, index: UnitIndex) -> Fold:
        """The fold of all markers, without outliers where the run leaves some out."""
        (top,) = (a for a in self.attributes["spec"]["analyses"] if a["kind"] == "top")
        k, asked = int(top["k"]), top.get("outliers")
        spare = int(asked["at_most"]) if asked else 0
        fold = Fold(index.total, k + spare, layers=index.layers if asked else 0, spare=spare)
        for partial in self.partials:
            fold.add(partial)
        if not asked:
            return fold
        return fold.without(fold.norms.outliers(float(asked["multiple"])), index, k)

    def _labels(self, ids: np.ndarray) -> np.ndarray:
        """Labels of hits from the images table, whose row number is the image's id."""
        column = "label" if self.attributes["labels"] == "true" else "predicted"
        table = pa.concat_tables(self.images)
        labels = pc.fill_null(table[column], MISSING_LABEL).to_numpy()
        return np.where(ids >= 0, labels[np.maximum(ids, 0)], MISSING_LABEL)

    def _compare(self, layer: str, name: str, promised: np.ndarray) -> Iterator[Fault]:
        stored = self.chunks.array(layer, name)
        if stored is None:
            return
        if stored.shape != promised.shape:
            yield Fault(f"{layer_path(layer)}/{name}", f"has the shape {stored.shape}, but the "
                        f"ledger has {promised.shape}")  # fmt: skip
            return
        differing = np.argwhere(stored != promised)
        if not len(differing):
            return
        for place in self.chunks.absent_of(layer, name):
            yield self.chunks.absent(layer, name, place)
            return
        first = tuple(int(i) for i in differing[0])
        yield Fault(
            f"{layer_path(layer)}/{name}",
            f"differs from the ledger in {len(differing)} values, first at {list(first)}: "
            f"{stored[first]} here, {promised[first]} there",
        )


class _Projection:
    """The projection's part of a run: markers, and the pictures they promise."""

    def __init__(self, chunks: Chunks, attributes: dict[str, Any], report: Report) -> None:
        self.chunks, self.run, self.attributes, self.report = chunks, chunks.run, attributes, report

    def faults(self) -> Iterator[Fault]:
        """Pictures the markers promise; and markers of pictures that are there."""
        for folder in self.run.names("ledger/projection"):
            layer = unquote(folder)
            shard = self._shard_units(layer)
            if shard is None:
                yield Fault(f"{layer_path(layer)}/patch/zarr.json", "cannot be read")
                continue
            committed: set[int] = set()
            for name in self.run.names(f"ledger/projection/{folder}"):
                self.report.files += 1
                path = f"ledger/projection/{folder}/{name}"
                try:
                    marker = json.loads(self.run.read(path))
                    committed |= set(marker["units"])
                    filled = bool(marker["projections"])
                except (ValueError, KeyError, TypeError) as error:
                    yield Fault(path, f"cannot be read: {error}")
                    continue
                yield from self._promised(layer, _number(name), filled)
            yield from self._flags(layer, committed)

    def _shard_units(self, layer: str) -> int | None:
        path = f"{layer_path(layer)}/patch"
        if not self.run.exists(f"{path}/zarr.json") or path in self.chunks.unopened:
            return None
        array: Any = self.run.zarr()[path]
        return int((array.shards or array.chunks)[0])

    def _promised(self, layer: str, item: int, filled: bool) -> Iterator[Fault]:
        for name in PICTURES if filled else ("projected",):
            for place in self.chunks.absent_of(layer, name):
                if place[0] == item:
                    yield self.chunks.absent(layer, name, place)

    def _flags(self, layer: str, committed: set[int]) -> Iterator[Fault]:
        flags = self.chunks.array(layer, "projected")
        if flags is None or f"{layer_path(layer)}/projected" in self.chunks.missing:
            return
        there = set(np.flatnonzero(flags).tolist())
        place = f"{layer_path(layer)}/projected"
        if there - committed:
            yield Fault(place, f"unit {min(there - committed)} is projected, but no marker says so")
        if committed - there:
            yield Fault(place, f"unit {min(committed - there)} is not projected, but has a marker")


def _number(name: str) -> int:
    return int(name.rpartition("-")[2].partition(".")[0])
