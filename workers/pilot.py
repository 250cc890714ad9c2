"""Measure a job on a few of its images: a real actor answers small leases, timed and weighed.

Nothing is assumed about how an actor computes: each number is the time of a lease or the size of a
file it wrote, in a run folder that is thrown away.  What cannot be seen on a few images (how many
bins a histogram of all images fills) is drawn from what was seen.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from deconvoy.schema import image_part_path, layer_path
from deconvoy.store import FolderStore
from workers.actor import Actor, TorchSettings
from workers.datasets import ImageRef
from workers.examples import Entries
from workers.graph import Layer
from workers.job import Job, ProjectionItem
from workers.leases import ProjectionLease, ProjectionResult, ScanLease, ScanResult
from workers.outliers import Norms
from workers.pictures import stored_size
from workers.pilot_occlusion import OcclusionSample, measure_occlusion
from workers.topk import BINS, Fold, Hits, Partial, UnitSums
from workers.writer import create_layer, create_pictures, projection_dtype, write_hits

Kept = TypeVar("Kept", Hits, Entries)

ROUNDS = 2
"""Batches each lane scans: one to warm up, one to be timed."""

MEASURED_LAYERS = 12
"""Layers projected; those between are interpolated by their work."""

MEASURED_UNITS = (2, 8)
"""Units projected a layer, the fewer the more work one is."""

LAYER_WORK = 20_000_000_000
"""Multiply-adds the projections of one layer may take, for each two lanes."""


@dataclass(frozen=True)
class LayerSample:
    """What projecting a few units of one layer took and left."""

    work: int
    """Multiply-adds from the image to the layer."""
    images: int
    hits: int
    seconds: float
    patch: float
    """Stored bytes over bytes before compression."""
    projection: float


@dataclass(frozen=True)
class TableSizes:
    """Bytes of what is written once, for all units and images of the job."""

    layer_metadata: float
    """The zarr.json of one layer's group and tables."""
    picture_metadata: float
    """Those of its arrays of pictures."""
    unit: float
    """A unit's rows in the tables."""
    images_part: float
    """Fixed bytes of one file of the images table."""
    images_row: float
    shard: "MarkerSizes"
    """Of a shard's marker."""
    prefix: "MarkerSizes"
    """Of a marker of all images."""


@dataclass(frozen=True)
class MarkerSizes:
    """Bytes of what a marker of the scan holds."""

    sums: int
    """All that does not grow with what is kept."""
    hit: float
    """One of the strongest hits."""
    entry: Mapping[str, float]
    """One image that a ranking keeps, by ranking."""
    norm: float
    """One image kept for its norm in a layer."""


@dataclass(frozen=True)
class Pilot:
    """A job measured on ``images`` of its images by an actor of ``lanes`` lanes."""

    images: int
    lanes: int
    start_seconds: float
    """Building the actor."""
    batch_seconds: float
    """One batch scanned exactly in each lane, decoding included."""
    candidate_seconds: float
    """The same where the scan only finds candidates; else 0."""
    decode_seconds: float
    """One image in one lane."""
    merge_seconds: float
    """The tables of one layer."""
    fold: Fold
    """Hits and sums over its images."""
    predicted: Int64[np.ndarray, " class"]
    """How many of its images are predicted to be of each class."""
    samples: tuple[LayerSample, ...]
    """In order of increasing work."""
    sizes: TableSizes
    occlusion: OcclusionSample | None = None
    """None where the job covers nothing."""


def measure(job: Job, lanes: int, work: Mapping[str, int]) -> Pilot:
    """Scan some images of the job and project some units.

    Args:
        lanes: batches computed at once; as many as the job's workers will have in all.
        work: multiply-adds from the image to each layer, by name.
    """
    settings = TorchSettings.now()
    try:
        with tempfile.TemporaryDirectory(prefix="deconvoy-pilot-") as folder:
            return _Trial(job, lanes, work, Path(folder)).pilot()
    finally:
        settings.restore()


def rounds(pieces: int, lanes: int) -> int:
    """How often the busiest lane goes round."""
    return -(-pieces // lanes)


def images_in_lane(images: int, lanes: int) -> int:
    """Images the busiest lane forwards of a projection lease, one by one."""
    return rounds(images, lanes)


class _Trial:
    def __init__(self, job: Job, lanes: int, work: Mapping[str, int], folder: Path) -> None:
        self.job, self.lanes, self.work = job, lanes, work
        self.count = min(len(job.listing), ROUNDS * lanes * job.batch_size)
        self.run = FolderStore(folder / "run")
        self.run.zarr("w-")
        self.distinct = job.spec.data.distinct
        self.rng = np.random.default_rng(job.spec.seed)
        began = time.perf_counter()
        assignment = job.assignment(self.run.url, lanes)
        self.actor = Actor(replace(assignment, shard_size=self.count))
        self.start_seconds = time.perf_counter() - began
        self.fold = Fold(job.index.total, job.k)
        self.kept = job.empty_fold()
        """The same with all that a marker keeps besides: spare hits, examples, norms."""

    def pilot(self) -> Pilot:
        images, batch_seconds, candidate_seconds = self._scan()
        measured = _spread(
            [i for i in _middle_items(self.job) if self._hits_of(i.layer, i.units).any()],
            self.work,
        )
        layers = [item.layer for item in measured] or [self.job.layers[-1]]
        sums = drawn(self.fold.sums, self.fold.images, len(self.job.listing), self.rng)
        merge_seconds, table_bytes, metadata = self._tables(layers, sums)
        for layer in layers:
            spec = self.job.spec
            create_pictures(self.run, layer, self.job.k, spec.storage, spec.method)
        picture_metadata = (self._weigh("zarr.json") - metadata) / len(layers)
        decode_seconds = self._decode(measured[0]) if measured else 0.0
        samples = [self._project(item) for item in measured]
        row, part = self._images_sizes(images)
        sizes = TableSizes(
            metadata / len(layers),
            picture_metadata,
            table_bytes / sum(layer.units for layer in layers),
            part,
            row,
            *self._marker_sizes(sums),
        )
        predicted = images.column("predicted").drop_null().to_numpy()
        return Pilot(
            self.fold.images,
            self.lanes,
            self.start_seconds,
            batch_seconds,
            candidate_seconds,
            decode_seconds,
            merge_seconds / len(layers),
            self.fold,
            np.bincount(predicted, minlength=self.job.outputs),
            tuple(samples),
            sizes,
            measure_occlusion(self.job, self.actor, self.run, self.fold),
        )

    def _scan(self) -> tuple[pa.Table, float, float]:
        """Scan twice; only the second time counts."""
        listing, total = self.job.listing, len(self.job.listing)
        rows = [i * total // self.count for i in range(self.count)]
        refs = [ImageRef(i, listing.uris[r], listing.labels[r]) for i, r in enumerate(rows)]
        cut = min(self.count, self.lanes * self.job.batch_size)
        tables = []
        for part in (refs[:cut], refs[cut:]):
            if part:
                result, seconds = self._answer(part)
                self.fold.add(result.partial)
                self.kept.add(result.partial)
                tables.append(result.images)
        if cut == self.count:  # too few images for a second round: the same again
            _, seconds = self._answer(refs)
        turns = rounds(rounds(self.count - cut or cut, self.job.batch_size), self.lanes)
        images = pa.concat_tables(tables)
        self.run.write(image_part_path(0), _parquet(images))
        candidate_seconds = 0.0
        if not self.job.spec.compute.exact:
            for part in (refs[:cut], refs[cut:] or refs):  # the second time counts here, too
                _, candidate_seconds = self._answer(part, candidates=True)
        return images, seconds / turns, candidate_seconds / turns

    def _answer(
        self, refs: Sequence[ImageRef], candidates: bool = False
    ) -> tuple[ScanResult, float]:
        began = time.perf_counter()
        lease = ScanLease("pilot", refs, self.kept.floor, candidates=candidates)
        result = self.actor.work(lease)
        assert isinstance(result, ScanResult)
        return result, time.perf_counter() - began

    def _tables(self, layers: Sequence[Layer], sums: UnitSums) -> tuple[float, int, int]:
        """Write the tables of some layers: seconds, bytes of data, bytes of metadata."""
        spacing = max(1, len(self.job.listing) // self.count)
        spread = self.fold.image * spacing + self.rng.integers(spacing, size=self.fold.image.shape)
        image = np.where(self.fold.image >= 0, spread, self.fold.image)
        began = time.perf_counter()
        for layer in layers:
            units = self._rows(layer)
            create_layer(self.run, layer, self.job.k)
            own = UnitSums(sums.maxima[units], sums.active[units], sums.histogram[units])
            # The class of a hit is as good as any number below the outputs.
            label = self.rng.integers(self.job.outputs, size=image[units].shape)
            tables = self.fold.score[units], image[units], label, self.fold.position[units]
            write_hits(self.run, layer, *tables, own, len(self.job.listing))
        seconds = time.perf_counter() - began
        metadata = self._weigh("zarr.json")
        data = sum(_bytes_below(self.run.root / layer_path(layer.name)) for layer in layers)
        return seconds, data - metadata, metadata

    def _decode(self, item: ProjectionItem) -> float:
        """Seconds to decode one image: the same lease with nothing and with all in the cache."""
        room = (item.stop - item.start) * self.job.k
        image = np.unique(self.fold.image[self.fold.image >= 0])[:room]
        units = rounds(len(image), self.job.k)
        shape = (units, self.job.k)
        ids = np.full(units * self.job.k, -1)
        ids[: len(image)] = image
        tables = np.ones(shape, np.float32), ids.reshape(shape), np.zeros((*shape, 2), np.int32)
        lease = self._lease(item, item.start + np.arange(units), *tables)
        first, second = (self._timed(lease)[1] for _ in range(2))
        return max(0.0, first - second) * self.lanes / len(image)

    def _project(self, item: ProjectionItem) -> LayerSample:
        """Project some units of an item: those with the most hits, evenly spaced."""
        job, layer = self.job, item.layer
        hits = self._hits_of(layer, item.units)
        best = item.units[hits == hits.max()]
        fewest, most = MEASURED_UNITS
        affordable = LAYER_WORK // (job.k * max(1, self.work[layer.name]))
        count = max(fewest, min(most, affordable)) * rounds(self.lanes, 2)
        units = np.unique(best[np.linspace(0, len(best) - 1, min(count, len(best))).astype(int)])
        rows = self._rows(layer).start + units
        tables = self.fold.score[rows], self.fold.image[rows], self.fold.position[rows]
        result, seconds = self._timed(self._lease(item, units, *tables))
        height, width = stored_size(layer.field.window_size, job.spec.storage.max_side)
        values = result.projections * height * width * 3
        index = 16 * (item.stop - item.start) + 4  # of a Zarr shard: offset and length a chunk
        patch, projection = (
            _bytes_below(self.run.root / layer_path(layer.name) / name / "c") - index
            for name in ("patch", "projection")
        )
        return LayerSample(
            self.work[layer.name],
            result.images,
            result.projections,
            seconds,
            patch / values,
            projection / (values * projection_dtype(job.spec.storage).itemsize),
        )

    def _timed(self, lease: ProjectionLease) -> tuple[ProjectionResult, float]:
        began = time.perf_counter()
        result = self.actor.work(lease)
        assert isinstance(result, ProjectionResult)
        return result, time.perf_counter() - began

    def _lease(
        self,
        item: ProjectionItem,
        units: Int64[np.ndarray, " unit"],
        score: np.ndarray,
        image: np.ndarray,
        position: np.ndarray,
    ) -> ProjectionLease:
        return ProjectionLease(
            "pilot", item.layer.name, item.start, item.stop, units, score, image, position,
            reuse=item.reuse,
        )  # fmt: skip

    def _rows(self, layer: Layer) -> slice:
        return self.job.index.units_of(self.job.layers.index(layer))

    def _hits_of(self, layer: Layer, units: Int64[np.ndarray, " unit"]) -> np.ndarray:
        found: np.ndarray = (self.fold.image[self._rows(layer).start + units] >= 0).sum(1)
        return found

    def _weigh(self, name: str) -> int:
        """Bytes of all files below the layers that have this name."""
        return sum(p.stat().st_size for p in (self.run.root / "layers").rglob(name))

    def _images_sizes(self, images: pa.Table) -> tuple[float, float]:
        """Bytes of a row of the images table, and of a file without rows."""
        empty = len(_parquet(images.slice(0, 0)))
        return (len(_parquet(images)) - empty) / len(images), float(empty)

    def _marker_sizes(self, sums: UnitSums) -> tuple[MarkerSizes, MarkerSizes]:
        """Of a shard, and of all images."""
        shard = min(self.job.spec.compute.shard_size, len(self.job.listing))
        own = drawn(self.fold.sums, self.fold.images, shard, self.rng)
        return self._marker_of(own, shard), self._marker_of(sums, len(self.job.listing))

    def _marker_of(self, sums: UnitSums, images: int) -> MarkerSizes:
        found = self.kept.to_partial()
        layers = len(found.norms.histogram)
        examples = {name: Entries.none() for name in found.examples}
        nothing = Partial(
            Hits.none(), UnitSums.zero(0), 0, 0, 0, 0, examples, Norms.none(layers)
        )  # fmt: skip
        norms = replace(nothing.norms, largest=self._spread(found.norms.largest, images))

        def each(count: int, **kept: Any) -> float:
            added = len(replace(nothing, **kept).to_bytes()) - len(nothing.to_bytes())
            return added / max(1, count)

        return MarkerSizes(
            len(replace(nothing, sums=sums).to_bytes()),
            each(len(found.hits), hits=self._spread(found.hits, images)),
            {
                name: each(len(own), examples={**examples, name: self._spread(own, images)})
                for name, own in found.examples.items()
            },
            each(len(norms.largest), norms=norms),
        )

    def _spread(self, kept: Kept, images: int) -> Kept:
        """What is kept, with the ids it would have among so many images: larger ones take more."""
        spacing = max(1, images // self.count)
        image = kept.image * spacing + self.rng.integers(spacing, size=len(kept))
        return replace(kept, image=image, content=kept.content if self.distinct else image)


def _middle_items(job: Job) -> list[ProjectionItem]:
    """One work item of every layer to be projected: the one in the middle."""
    items: dict[str, list[ProjectionItem]] = {}
    for item in job.projection_items():
        items.setdefault(item.layer.name, []).append(item)
    return [own[len(own) // 2] for own in items.values()]


def _spread(items: list[ProjectionItem], work: Mapping[str, int]) -> list[ProjectionItem]:
    """Those to be measured: evenly spaced by order of their layers' work, both ends included."""
    ordered = sorted(items, key=lambda item: work[item.layer.name])
    if len(ordered) <= MEASURED_LAYERS:
        return ordered
    places = np.linspace(0, len(ordered) - 1, MEASURED_LAYERS).round().astype(int)
    return [ordered[place] for place in places]


def drawn(sums: UnitSums, seen: int, images: int, rng: np.random.Generator) -> UnitSums:
    """Sums as those of ``images`` images may be, drawn from those of the images seen.

    A few images fill few bins of a histogram, so their counts are spread over the bins beside
    them; the bin of the silent images stays what it is.
    """
    silent = BINS // 2
    share = sums.histogram / max(1, seen)
    voiced = share.copy()
    voiced[:, silent] = 0
    spread = voiced / 2
    spread[:, 1:] += voiced[:, :-1] / 4
    spread[:, :-1] += voiced[:, 1:] / 4
    spread[:, silent] = share[:, silent]
    # What was spread beyond the ends, or is missing where nothing was seen, counts as silent.
    spread[:, silent] += np.clip(1 - spread.sum(1), 0, 1)
    histogram = rng.multinomial(images, spread / spread.sum(1, keepdims=True))
    maxima = sums.maxima * (images / max(1, seen)) * rng.uniform(0.9, 1.1, len(sums.maxima))
    return UnitSums(maxima, histogram[:, silent + 1 :].sum(1), histogram.astype(np.int64))


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _bytes_below(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
