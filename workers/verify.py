"""Verify a run: that its bytes are those that were written, complete, and what its ledger says.

Three questions.  Does every chunk have its checksum, can every images part and marker be read, and
are files without a checksum of their own those that the seal of a finished run names?
Is everything there that the markers promise?  And are the tables the fold of the markers?  None
needs the model or torch; ``workers.replay`` asks the fourth: does a plain forward pass find the
same?  Of a run that is not done, or older than seals, attributes (``zarr.json``) must be
well-formed, no more.
"""

import io
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deconvoy.errors import DeconvoyError
from deconvoy.run import Run
from deconvoy.schema import (
    LAYER_ARRAYS,
    MISSING_LABEL,
    OUTLIER_ARRAYS,
    image_part_path,
    images_schema,
    layer_path,
)
from deconvoy.spec import JobSpec
from deconvoy.store import METADATA, RunStore
from workers.candidates import candidate_images, decided
from workers.checksums import Chunks, Fault
from workers.examples import Entries, Ranking, rankings_of
from workers.outliers import LeftOut
from workers.parts import number_of, spans
from workers.seal import Sealed
from workers.tables import (
    entries_of,
    example_arrays,
    example_fields,
    hit_arrays,
    outlier_arrays,
    outlier_limit,
    sum_arrays,
    sums_of,
)
from workers.topk import Fold, Partial, UnitIndex, empty_fold, outliers_of, without_outliers
from workers.verify_evolution import Evolutions
from workers.verify_groups import Correspondences, Invariance, Probes
from workers.verify_occlusion import ImageOcclusion, UnitOcclusions
from workers.verify_study import StudyGroup, recomputed

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
    squares: int = 0
    """Positions of an occlusion analysis, recomputed likewise."""
    networks: int = 0
    """Of a study, judged again by their weights."""
    faults: list[Fault] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in _COUNTS}
        return {**counts, "faults": [vars(fault) for fault in self.faults]}


_COUNTS = ("chunks", "files", "hits", "squares", "networks")


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
    if opened.kind == "study":
        return _verified_study(opened, chunks, report, sample)
    for kind in (_Scan, _Projection):
        check = kind(chunks, opened.attributes, report)
        report.faults += _found(check.faults())
    for analysis in _ANALYSES:
        further = analysis(chunks, opened.attributes)
        report.faults += _found(further.faults())
        report.files += further.files
    report.chunks, report.files = chunks.read, report.files + chunks.files
    _compare_with_seal(opened, report)
    # Of a broken run the hits cannot be read; before its scan is done a run has none.
    if sample and not report.faults and "results" in opened.attributes:
        from workers.replay import replay

        replayed = replay(url, sample, seed)
        report.hits, report.squares = replayed.hits, replayed.squares
        report.faults += replayed.faults[:SHOWN]
    return report


def _found(faults: Iterator[Fault]) -> list[Fault]:
    """The first of them.  Attributes that were damaged may lead anywhere, and then say so."""
    found: list[Fault] = []
    try:
        for fault in itertools.islice(faults, SHOWN):
            found.append(fault)
    except DeconvoyError:
        raise
    except Exception as error:  # whatever reading by wrong names and numbers raises
        told = f"does not fit the rest of the run: {type(error).__name__}: {error}"
        found.append(Fault(METADATA, told))
    return found


def _compare_with_seal(opened: Run, report: Report) -> None:
    """Of a file that has a fault already, that it differs is no news."""
    named = {fault.place for fault in report.faults}
    sealed = Sealed(RunStore(opened.url), opened.attributes)
    report.faults += [fault for fault in sealed.faults() if fault.place not in named][:SHOWN]
    report.files += sealed.files


def _verified_study(opened: Run, chunks: Chunks, report: Report, sample: int) -> Report:
    check = StudyGroup(chunks, opened.attributes)
    report.faults += _found(check.faults())
    report.chunks, report.files = chunks.read, chunks.files + check.files
    _compare_with_seal(opened, report)
    if sample and not report.faults and "results" in opened.attributes:
        report.networks, wrong = recomputed(opened.url, sample)
        report.faults += wrong[:SHOWN]
    return report


_ANALYSES = (ImageOcclusion, UnitOcclusions, Invariance, Correspondences, Probes, Evolutions)


class _Scan:
    """The scan's part of a run: markers, images, and the tables that are the fold of them."""

    def __init__(self, chunks: Chunks, attributes: dict[str, Any], report: Report) -> None:
        self.chunks, self.run, self.attributes, self.report = chunks, chunks.run, attributes, report
        self.spec = JobSpec.parse(attributes["spec"])
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
        gone = [f"{group}/zarr.json" for group in sorted(groups)]
        gone = [path for path in gone if path not in self.chunks.present]
        yield from (Fault(path, "is missing") for path in gone)
        if not faults and not gone and not groups & self.chunks.unopened:
            yield from self._compare_tables()

    def _read_markers(self) -> Iterator[Fault]:
        names = self.run.names("ledger/scan")
        prefixes = [name for name in names if name.startswith("prefix-")]
        start = number_of(prefixes[-1]) + 1 if prefixes else 0
        numbers = {number_of(name): name for name in names if name.startswith("part-")}
        self.parts = [*range(start), *sorted(number for number in numbers if number >= start)]
        self.partials: dict[str, Partial] = {}
        for name in [*prefixes[-1:], *(numbers[n] for n in self.parts[start:])]:
            self.report.files += 1
            try:
                content = self.run.read(f"ledger/scan/{name}")
                self.partials[f"ledger/scan/{name}"] = Partial.from_bytes(content, name)
            except DeconvoyError as error:
                yield Fault(f"ledger/scan/{name}", str(error))
        yield from self._read_rescanned()
        shards = len(self._rows) if self._rows is not None else max(self.parts, default=-1) + 1
        for number in [part for part in self.parts if part >= shards]:
            yield Fault(f"ledger/scan/part-{number:06d}.npz", f"is of none of the {shards} shards")
        self.parts = [part for part in self.parts if part < shards]
        if self.merged:
            for number in sorted(set(range(shards)) - set(self.parts)):
                yield Fault(f"ledger/scan/part-{number:06d}.npz", "is missing")

    def _read_rescanned(self) -> Iterator[Fault]:
        """Markers of the exact scan of candidates, where the scan found only those."""
        self.rescanned: dict[str, Partial] = {}
        for name in self.run.names("ledger/rescan"):
            path = f"ledger/rescan/{name}"
            self.report.files += 1
            try:
                self.rescanned[path] = Partial.from_bytes(self.run.read(path), name)
            except DeconvoyError as error:
                yield Fault(path, str(error))

    @cached_property
    def _rows(self) -> list[int] | None:
        """Images of every part; None where the run does not tell: one of several places that is
        older than ``provenance.places``."""
        provenance = self.attributes["provenance"]
        several = isinstance(self.spec.data.uri, tuple)
        places = provenance.get("places", None if several else [provenance["images"]])
        if places is None:
            return None
        return [stop - start for start, stop in spans(places, self.spec.compute.shard_size)]

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
            yield from self._judge_part(path, part, table)
            self.images.append(table)
        if self.merged and self._rows is None and len(self.images) == len(self.parts):
            total = int(self.attributes["provenance"]["images"])
            found = sum(table.num_rows for table in self.images)
            if found != total:
                yield Fault("images", f"has {found} images of {total}")

    def _judge_part(self, path: str, part: int, table: pa.Table) -> Iterator[Fault]:
        if table.schema != images_schema():
            yield Fault(path, f"has the columns {', '.join(table.column_names)}")
            return
        size, count = self.spec.compute.shard_size, table.num_rows
        rows = f"1 to {size}" if self._rows is None else str(self._rows[part])
        if not (1 <= count <= size if self._rows is None else count == self._rows[part]):
            yield Fault(path, f"has {count} images of {rows}")
        elif not np.array_equal(table["id"].to_numpy(), part * size + np.arange(count)):
            yield Fault(path, f"has other ids than those from {part * size} on")

    def _absent(self) -> Iterator[Fault]:
        """Tables that are not there at all, or have no bytes where a hit must have left some."""
        asked = [field.name for ranking in self._rankings for field in example_fields(ranking)]
        if self.spec.top.outliers:
            asked += [field.name for field in OUTLIER_ARRAYS]
        for layer in self.attributes["layers"]:
            for name in (*TABLES, *asked):
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

    @property
    def _rankings(self) -> Sequence[Ranking]:
        return rankings_of(self.spec.top, self.spec.seed)

    def _compare_tables(self) -> Iterator[Fault]:
        layers: Sequence[str] = self.attributes["layers"]
        groups = [self.run.zarr()[layer_path(layer)].attrs for layer in layers]
        index = UnitIndex.of([int(str(attributes["units"])) for attributes in groups])
        whole = empty_fold(self.spec, index)
        for path, partial in self.partials.items():
            if len(partial.sums.maxima) != index.total:
                count = len(partial.sums.maxima)
                yield Fault(path, f"is of {count} units, but the run has {index.total}")
                return
            whole.add(partial)
        yield from self._unscanned(whole)
        if self.spec.compute.exact:
            fold = without_outliers(self.spec.top, index, whole)
        else:
            fold = decided(whole, self.rescanned.values(), self.spec.top.k)
        outliers = outliers_of(self.spec.top, whole)
        labels = self._labels(fold.image)
        for number, layer in enumerate(layers):
            units = index.units_of(number)
            sums = sums_of(fold, units)
            promised = {**hit_arrays(fold, units, labels), **sum_arrays(sums, fold.images)}
            for ranking in self._rankings:
                own = entries_of(fold, units, ranking)
                promised |= example_arrays(
                    ranking, own, sums.histogram, self.spec.top, self._outputs(layer, own)
                )
            if outliers:
                promised |= outlier_arrays(outliers[number], whole.spare)
                yield from self._compare_limit(layer, groups[number], outliers[number])
            for name, values in promised.items():
                yield from self._compare(layer, name, values)

    def _unscanned(self, candidates: Fold) -> Iterator[Fault]:
        """Parts of the exact scan that are missing."""
        if self.spec.compute.exact:
            return
        parts = spans([len(candidate_images(candidates))], self.spec.compute.shard_size)
        for part in range(len(parts)):
            path = f"ledger/rescan/part-{part:06d}.npz"
            if path not in self.rescanned:
                yield Fault(path, "is missing")

    def _outputs(self, layer: str, entries: Entries) -> int:
        """Outputs of the model: the classes there are.  A run that is older than
        ``provenance.outputs`` shows them by its arrays alone."""
        told = self.attributes["provenance"].get("outputs")
        if told is not None:
            return int(told)
        stored = self.chunks.array(layer, "class_image")
        shown = stored.shape[1] if stored is not None and stored.ndim == 3 else 1
        return max(shown, int(entries.group.max(initial=0)) + 1)

    def _labels(self, ids: np.ndarray) -> np.ndarray:
        """Labels of hits from the images table; ids increase, but need not be dense."""
        column = "label" if self.attributes["labels"] == "true" else "predicted"
        table = pa.concat_tables(self.images)
        known = table["id"].to_numpy()
        labels = pc.fill_null(table[column], MISSING_LABEL).to_numpy()
        row = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        return np.where(known[row] == ids, labels[row], MISSING_LABEL)

    def _compare_limit(self, layer: str, stored: Any, outliers: LeftOut) -> Iterator[Fault]:
        here, there = stored.get("outlier_limit"), outlier_limit(outliers)
        if here != there:
            yield Fault(
                f"{layer_path(layer)}/zarr.json",
                f"outlier_limit differs from the ledger: {here} here, {there} there",
            )

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
                yield from self._promised(layer, number_of(name), filled)
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
