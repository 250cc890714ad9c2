"""Foretell a job: its layers, its work, its time on this machine, and the bytes it will store.

Work is counted from the traced graph; speed and compression are measured by a pilot on a few of the
job's own images (``workers.pilot``) and scaled to all of them the way the driver cuts the job into
leases.  Nothing of the pilot stays.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import nn

from deconvoy.errors import DiskTooSmall
from deconvoy.spec import ComputeSpec, Method, Transform
from deconvoy.store import RunStore
from workers.actor import CACHE_BYTES
from workers.examples import Ranking
from workers.graph import Layer, Network
from workers.job import Job, ProjectionItem, trace
from workers.machine import cores
from workers.occlusion_items import UNITS_AN_ITEM
from workers.outliers import NORM_BINS
from workers.parts import spans
from workers.pictures import stored_size
from workers.pilot import (
    LayerSample,
    MarkerSizes,
    Pilot,
    drawn,
    images_in_lane,
    measure,
    rounds,
)
from workers.plan_further import Further, further_of
from workers.plan_occlusion import (
    MARKER_BYTES,
    HitsExpected,
    OcclusionForecast,
    foretold,
    most_bytes_of_occlusion,
    occlusion_items,
)
from workers.shards import COMPACT_EVERY
from workers.steps import Step
from workers.topk import BINS, kept_by
from workers.writer import layer_attributes, projection_dtype

PILOT_LANES = 8
"""Lanes the pilot fills at most; more are taken to be as fast each."""

RAY_SECONDS = 12.0
"""Starting Ray, and torch in its actors: measured on two cores, both at once."""

EXAMPLE_BYTES, EXAMPLE_METADATA = 5.0, 820
"""A compressed entry of a ranking in a table; the zarr.json of such a table."""

NORM_BINS_FILLED, NORM_BIN_BYTES = 64, 5
"""Norms of a layer mostly lie within two octaves, in bins of which a marker holds the counts."""

HIT_BYTES, ENTRY_BYTES, SUMS_BYTES, BIN_BYTES = 32, 36, 16, 14
"""What a marker holds before compression: a hit, an entry of a ranking, a unit's sums, a bin."""

FILE_BYTES = 10_000
"""A marker's directory, at most: some thirty arrays with a name and a header each."""

LOG_BYTES = 150
"""A line of the ledger's log; two an item."""

ITEM_MARKER_BYTES = 60
"""A projection marker without its units, which are about five bytes each."""


@dataclass(frozen=True)
class LayerPlan:
    """What is known of a layer beforehand, and what its projections will take."""

    name: str
    op: str
    units: int
    height: int
    width: int
    receptive_field: Mapping[str, Any]
    """size, stride, offset, whole_image: as in the attributes of the run's layer."""
    obstacle: str | None
    """Why it cannot be projected; None where it can."""
    projected_units: int
    multiply_adds: int
    """From one image to this layer."""
    seconds: float
    """Lane-seconds of its projections: seconds of one thread, all lanes being busy."""
    bytes: int
    """Of its pictures."""

    @property
    def projectable(self) -> bool:
        return self.obstacle is None


@dataclass(frozen=True)
class Plan:
    """A job foretold.  Seconds are for ``workers`` × ``threads`` on this machine."""

    model: str
    weights: str
    """Where they come from."""
    layers: tuple[LayerPlan, ...]
    transform: Transform
    transform_from: str
    images: int
    labels_from: str
    shards: int
    batch_size: int
    workers: int
    threads: int
    multiply_adds_per_image: int
    multiply_adds: int
    """Of the whole scan."""
    projections: int
    """About so many hits will be projected."""
    method: Method
    """Of these."""
    squares: int
    """About so many positions of a square, over images and over hits."""
    further: Mapping[str, int]
    """What other analyses do, by kind, in the unit of their progress: moves of images."""
    seconds: Mapping[str, float]
    """start, scan, merge, projection, total; rescan of candidates, occlusion and further analyses
    where they are asked for."""
    bytes: Mapping[str, int]
    """patch, projection, tables, images, ledger, metadata, total; occlusion and further analyses
    where they are asked for."""
    free_bytes: int | None
    """None where nobody can know: in a bucket."""
    candidates_pay_from: int | None
    """Images from which on a scan for candidates and the exact scan of theirs together take less
    time than an exact scan of all; None where they never do, or the scan is exact."""
    pilot_images: int
    """Images measured for this."""

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        fields["transform"] = self.transform.model_dump(mode="json")
        for layer, row in zip(self.layers, fields["layers"], strict=True):
            row["projectable"] = layer.projectable
        return fields


def plan(job: Job, at: str = ".", measuring: Callable[[], None] = lambda: None) -> Plan:
    """Foretell a settled job; takes seconds, since a few of its images are run.

    Args:
        at: where the run would be; its disk's free space is told.
        measuring: called when nothing is left to refuse and those images are about to be run.

    Raises:
        RequestError: no run of this job could do what it asks for.
    """
    job.require_doable()
    work = works_of(job)
    crew = _crew_of(job.spec.compute)
    measuring()
    pilot = measure(job, min(crew.lanes, PILOT_LANES), work)
    forecast = _Forecast(job, crew, work, pilot)
    total = max(work.values())
    return Plan(
        model=job.packed.name,
        weights=job.weights_from,
        layers=tuple(forecast.layer_plan(layer) for layer in job.layers),
        transform=job.packed.transform,
        transform_from=job.packed.transform_from,
        images=len(job.listing),
        labels_from=job.labels_from,
        shards=job.shards,
        batch_size=job.batch_size,
        workers=crew.workers,
        threads=crew.threads,
        multiply_adds_per_image=total,
        multiply_adds=total * len(job.listing),
        projections=round(sum(cost.hits for cost in forecast.costs)),
        method=job.spec.method,
        squares=forecast.occlusion.positions if forecast.occlusion else 0,
        further={kind: one.work for kind, one in forecast.further.items()},
        seconds=_totalled(forecast.seconds()),
        bytes=_totalled(forecast.bytes()),
        free_bytes=RunStore(at).bytes_free(),
        candidates_pay_from=_pay_from(job, pilot),
        pilot_images=pilot.images,
    )


def _pay_from(job: Job, pilot: Pilot) -> int | None:
    """Every candidate of every unit may be an image of its own, which is scanned again."""
    if job.spec.compute.exact:
        return None
    gain = 1 - pilot.candidate_seconds / pilot.batch_seconds
    return math.ceil(job.index.total * kept_by(job.spec) / gain) if gain > 0 else None


def require_room(job: Job, run: RunStore) -> None:
    """Refuse a job that its disk cannot hold.

    The bytes before compression are compared first, which costs nothing; only where they do not
    fit does a pilot measure what compression leaves of them.

    Raises:
        DiskTooSmall: says what is needed, what is free, and what to do.
    """
    room = run.bytes_free()
    if room is None:  # a bucket grows
        return
    free = room + run.bytes_used()
    if most_bytes(job) <= free:
        return
    needed = plan(job, run.url).bytes["total"]
    if needed > free:
        raise DiskTooSmall(
            f"The run needs about {_amount(float(needed))}, but {run.url!r} has room for "
            f"{_amount(float(free))}: free some space or choose another --out; or store less by a "
            "smaller storage.max_side, fewer analyses.projection.layers, or a sample of their "
            "units (units: {sample: 0.1})."
        )


def most_bytes(job: Job) -> int:
    """What a run stores at most: its bytes before compression."""
    pictures = sum(
        len(item.units) * sum(_raw_bytes(job, item.layer)) for item in job.projection_items()
    )
    units, layers = job.index.total, len(job.layers)
    tables = units * (job.k * (4 + 8 + 3 * 16) + 8 * BINS + 16) + layers * job.spare * 16
    tables += units * sum(_groups(job, ranking) * ranking.k for ranking in job.rankings) * (4 + 8)
    metadata = (
        layers * (40_000 + 2_000 * _extra_arrays(job)) + 40_000 + 50 * len(job.packed.classes)
    )
    markers = min(job.shards, COMPACT_EVERY) * _most_of_marker(job, job.spec.compute.shard_size)
    if job.shards >= COMPACT_EVERY:  # while one is written, the one before it is still there
        markers += 2 * _most_of_marker(job, len(job.listing))
    items = job.shards + len(job.projection_items())
    images = 400 * len(job.listing) + 8_000 * job.shards
    further = further_of(job, lambda batches: 0.0).values()
    items += occlusion_items(job) + sum(one.items for one in further)
    logged = items * 4 * LOG_BYTES
    rest = most_bytes_of_occlusion(job) + sum(one.bytes for one in further)
    return pictures + tables + markers + metadata + images + logged + rest


def _most_of_marker(job: Job, images: int) -> int:
    """A marker of so many images before compression."""
    hits = min(kept_by(job.spec), images) * HIT_BYTES
    entries = sum(min(r.groups(job.outputs) * r.k, images) for r in job.rankings) * ENTRY_BYTES
    of_unit = hits + entries + SUMS_BYTES + BIN_BYTES * min(BINS, images)
    largest = min(job.spare, images) * ENTRY_BYTES
    of_layer = largest + BIN_BYTES * min(NORM_BINS, images) if job.spare else 0
    return job.index.total * of_unit + len(job.layers) * of_layer + FILE_BYTES


def _extra_arrays(job: Job) -> int:
    """Tables of a layer besides those of its strongest hits: two a ranking, two of outliers."""
    return 2 * len(job.rankings) + (2 if job.spare else 0)


def _groups(job: Job, ranking: Ranking) -> int:
    """Of a ranking, in the tables; markers of bands hold the bins the bands are cut from."""
    bands = job.spec.top.bands
    return bands.count if ranking.name == "band" and bands else ranking.groups(job.outputs)


def works_of(job: Job) -> dict[str, int]:
    """Multiply-adds from one image to each layer, by name; the last is the whole pass."""
    network: Network = trace(job.packed)
    return {
        layer.name: sum(map(_multiply_adds, network.path_to(network.layer(layer.name))))
        for layer in network.layers
    }


def _multiply_adds(step: Step) -> int:
    match step.module:
        case nn.Conv2d() | nn.Linear():
            return math.prod(step.shape) * step.module.weight[0].numel()
    return 0


@dataclass(frozen=True)
class _Crew:
    workers: int
    threads: int
    lanes_each: int

    @property
    def lanes(self) -> int:
        return self.workers * self.lanes_each


def _crew_of(compute: ComputeSpec) -> _Crew:
    """Workers and threads as the executors will choose them on this machine."""
    gpus = torch.cuda.device_count() if compute.gpus_per_worker != 0 else 0
    if compute.workers != "auto":
        workers = compute.workers
    elif gpus:
        each = 1.0 if compute.gpus_per_worker == "auto" else compute.gpus_per_worker
        workers = max(1, int(gpus / each))
    else:
        workers = max(1, cores() // (2 if compute.threads == "auto" else compute.threads))
    share = max(1, cores() // workers)
    threads = share if compute.threads == "auto" else compute.threads
    return _Crew(workers, threads, 1 if gpus else threads)


@dataclass(frozen=True)
class _ItemCost:
    """What one work item of the projection is expected to be."""

    item: ProjectionItem
    hits: float
    images: float
    """Distinct ones."""
    seconds: float
    """Of its lease."""


class _Forecast:
    """The pilot's numbers scaled to the whole job."""

    def __init__(self, job: Job, crew: _Crew, work: Mapping[str, int], pilot: Pilot) -> None:
        self.job, self.crew, self.work, self.pilot = job, crew, work, pilot
        self.total_work = max(1, *work.values())
        self.costs = [self._cost(item) for item in job.projection_items()]

    # Time -------------------------------------------------------------------------------------

    def seconds(self) -> dict[str, float]:
        job, crew = self.job, self.crew
        shards = [stop - start for start, stop in map(job.shard, range(job.shards))]
        batch = self.pilot.candidate_seconds or self.pilot.batch_seconds
        leases = [self._lease_rounds(images) * batch for images in shards]
        decoded = self._decoded_by_worker() * self.pilot.decode_seconds / crew.lanes_each
        covering = self.occlusion
        return {
            "start": self.pilot.start_seconds + RAY_SECONDS,
            "scan": _makespan(leases, crew.workers),
            **self._rescan_seconds(),
            "merge": self.pilot.merge_seconds * len(job.layers),
            "projection": decoded + _makespan([c.seconds for c in self.costs], crew.workers),
            **({"occlusion": _makespan(covering.leases, crew.workers)} if covering else {}),
            **{kind: _makespan(f.leases, crew.workers) for kind, f in self.further.items()},
        }

    def _lease_rounds(self, images: int) -> int:
        """Batches of a lease that the busiest lane scans."""
        return rounds(rounds(images, self.job.batch_size), self.crew.lanes_each)

    def _rescan_seconds(self) -> dict[str, float]:
        """The exact scan of the images that hold candidates, where the scan finds only those."""
        if self.job.spec.compute.exact:
            return {}
        kept, images = kept_by(self.job.spec), len(self.job.listing)
        candidates = self._distinct_among(
            self.pilot.fold.image, float(self._hits_of(kept, images).sum())
        )
        shards = spans([math.ceil(candidates)], self.job.spec.compute.shard_size)
        leases = [
            self._lease_rounds(stop - start) * self.pilot.batch_seconds for start, stop in shards
        ]
        return {"rescan": _makespan(leases, self.crew.workers)}

    @cached_property
    def occlusion(self) -> OcclusionForecast | None:
        if self.pilot.occlusion is None:
            return None

        def expected(layer: Layer) -> HitsExpected:
            start = self._start(layer)
            hits = float(self.expected_hits[start : start + layer.units].sum())
            each = hits * min(1.0, UNITS_AN_ITEM / layer.units)
            return HitsExpected(hits, self._distinct(layer, each))

        def forward_seconds(layer: Layer) -> float:
            return self._forward_seconds(self.work[layer.name])

        lanes = self.crew.lanes_each
        return foretold(self.job, self.pilot.occlusion, lanes, expected, forward_seconds)

    @cached_property
    def further(self) -> dict[str, Further]:
        lanes = self.crew.lanes_each
        return further_of(
            self.job, lambda batches: rounds(batches, lanes) * self.pilot.batch_seconds
        )

    def _decoded_by_worker(self) -> float:
        """Pictures one worker decodes for its projections; what fits in its cache but once."""
        side = self.job.packed.transform.crop
        asked = sum(cost.images for cost in self.costs) / self.crew.workers
        everything = float(len(self.job.listing))
        return min(asked, everything) if everything <= CACHE_BYTES // (3 * side**2) else asked

    def _cost(self, item: ProjectionItem) -> _ItemCost:
        start = self._start(item.layer)
        hits = float(self.expected_hits[start + item.units].sum())
        images = self._distinct(item.layer, hits)
        forward, backward = self._lane_seconds(item.layer)
        busiest = images_in_lane(math.ceil(images), self.crew.lanes_each)
        seconds = busiest * (forward + backward * hits / max(images, 1e-9))
        return _ItemCost(item, hits, images, seconds)

    def _lane_seconds(self, layer: Layer) -> tuple[float, float]:
        """Of a lane, to forward one image to a layer and to project one hit down from it."""
        forward = self._forward_seconds(self.work[layer.name])
        return forward, self._interpolated(layer, self._backward_seconds)

    def _forward_seconds(self, work: int) -> float:
        return self.pilot.batch_seconds / self.job.batch_size * work / self.total_work

    def _backward_seconds(self, sample: LayerSample) -> float:
        """What remains of a measured lease without its forward passes, for each hit."""
        busiest = images_in_lane(sample.images, self.pilot.lanes)
        each = sample.seconds / busiest - self._forward_seconds(sample.work)
        # A lease measured too short by a hiccup must not make projections free.
        return max(each, 0.1 * sample.seconds / busiest) * sample.images / sample.hits

    def _interpolated(self, layer: Layer, value: Callable[[LayerSample], float]) -> float:
        """A number measured at some layers, at this one: between those next to it in work."""
        samples = self.pilot.samples
        if not samples:
            return 0.0
        works = [sample.work for sample in samples]
        values = [value(sample) for sample in samples]
        return float(np.interp(self.work[layer.name], works, values))

    # Hits -------------------------------------------------------------------------------------

    @cached_property
    def expected_hits(self) -> Float64[np.ndarray, " unit"]:
        """How many hits each unit will have: k, unless it is silent on nearly all images."""
        return self._hits_of(self.job.k, len(self.job.listing))

    def _hits_of(self, k: int, images: int | float) -> Float64[np.ndarray, " unit"]:
        """Of each unit among so many images, where k are kept."""
        hits: Float64[np.ndarray, " unit"] = np.minimum(float(k), self._rate * images)
        return hits

    @cached_property
    def _rate(self) -> Float64[np.ndarray, " unit"]:
        """Share of the images that can be a hit of each unit: where rectified, a zero is none."""
        rate = np.ones(self.job.index.total)
        for number, layer in enumerate(self.job.layers):
            units = self.job.index.units_of(number)
            if layer.rectified:
                active = self.pilot.fold.sums.active[units]
                seen = max(1, self.pilot.images)
                rate[units] = np.where(active > 0, active, _waking(active) / 2) / seen
        return rate

    def _distinct(self, layer: Layer, hits: float) -> float:
        """Images among so many hits of a layer."""
        start = self._start(layer)
        return self._distinct_among(self.pilot.fold.image[start : start + layer.units], hits)

    def _distinct_among(self, ids: Int64[np.ndarray, "unit rank"], hits: float) -> float:
        """Images among so many hits of some units: some are hit far more often than others."""
        counts = np.bincount(ids[ids >= 0], minlength=1)
        counts = counts[counts > 0]
        if not len(counts):
            return 0.0
        spacing = max(1.0, len(self.job.listing) / max(1, self.pilot.images))
        share = counts / counts.sum() / spacing
        images = spacing * float((1 - (1 - share) ** hits).sum())
        return min(images, hits)

    def _start(self, layer: Layer) -> int:
        return self.job.index.offsets[self.job.layers.index(layer)]

    # Bytes ------------------------------------------------------------------------------------

    def bytes(self) -> dict[str, int]:
        job, sizes = self.job, self.pilot.sizes
        pictures = [self._picture_bytes(cost) for cost in self.costs]
        projected = job.projected_layers()
        index = 2 * sum(16 * (c.item.stop - c.item.start) + 4 for c in self.costs)
        scales = sum(len(c.item.units) * job.k * 4 for c in self.costs)
        metadata = sizes.layer_metadata * len(job.layers) + sizes.picture_metadata * len(projected)
        metadata += EXAMPLE_METADATA * _extra_arrays(job) * len(job.layers)
        return {
            "patch": round(sum(patch for patch, _ in pictures)),
            "projection": round(sum(projection for _, projection in pictures)),
            "tables": round(sizes.unit * job.index.total) + scales + index + self._example_bytes(),
            "images": round(sizes.images_part * job.shards + sizes.images_row * len(job.listing)),
            "ledger": self._ledger_bytes(),
            "metadata": round(metadata) + self._root_bytes(),
            **({"occlusion": self.occlusion.bytes} if self.occlusion else {}),
            **{kind: one.bytes for kind, one in self.further.items()},
        }

    def _picture_bytes(self, cost: _ItemCost) -> tuple[float, float]:
        patch, projection = _raw_bytes(self.job, cost.item.layer)
        share = cost.hits / self.job.k
        return (
            share * patch * self._interpolated(cost.item.layer, lambda s: s.patch),
            share * projection * self._interpolated(cost.item.layer, lambda s: s.projection),
        )

    def _example_bytes(self) -> int:
        """Of what rankings keep besides the strongest hits, in the tables."""
        total, units = len(self.job.listing), self.job.index.total
        cells = sum(
            min(self._entries(ranking, total), units * _groups(self.job, ranking) * ranking.k)
            for ranking in self.job.rankings
        )
        return round(EXAMPLE_BYTES * cells) + len(self.job.layers) * self.job.spare * 16

    def _entries(self, ranking: Ranking, images: int) -> float:
        """How many a ranking keeps of so many images."""
        match ranking.name:
            case "bottom":
                return float(self.job.index.total * min(ranking.k, images))
            case "class":
                each = self._class_shares * images
                return float(sum(self._hits_of(ranking.k, count).sum() for count in each.tolist()))
            case _:
                rng = np.random.default_rng(self.job.spec.seed)
                fold = self.pilot.fold
                bins = drawn(fold.sums, fold.images, images, rng).histogram
                return float(np.minimum(bins, ranking.k).sum())

    @cached_property
    def _class_shares(self) -> Float64[np.ndarray, " class"]:
        """Share of the images that are of each class, or where there are no labels are predicted
        to be."""
        listing = self.job.listing
        if not listing.labelled:
            shares: Float64[np.ndarray, " class"] = self.pilot.predicted / max(1, self.pilot.images)
            return shares
        known = [label for label in listing.labels if label is not None]
        shares = np.bincount(known, minlength=self.job.outputs) / max(1, len(listing))
        return shares

    def _marker_bytes(self, sizes: MarkerSizes, images: int, hits: float) -> float:
        job = self.job
        kept = [sizes.entry[r.name] * self._entries(r, images) for r in job.rankings]
        bins = NORM_BIN_BYTES * min(images, NORM_BINS_FILLED) if job.spare else 0
        norms = len(job.layers) * (sizes.norm * min(job.spare, images) + bins)
        return sizes.sums + sizes.hit * hits + sum(kept) + norms

    def _ledger_bytes(self) -> int:
        """Markers that remain at the end, and the log."""
        job, sizes = self.job, self.pilot.sizes
        kept, size = kept_by(job.spec), min(job.spec.compute.shard_size, len(job.listing))
        compacted = job.shards - job.shards % COMPACT_EVERY
        of_shard = float(self._hits_of(kept, size).sum())
        of_all = float(self._hits_of(kept, len(job.listing)).sum())
        # A lease knows the hits of the shards before it: after s of them, 1 in s still enters.
        known = (max(1, part - self.crew.workers + 1) for part in range(compacted, job.shards))
        bare = self._marker_bytes(sizes.shard, size, 0.0)
        markers = sum(bare + sizes.shard.hit * min(of_shard, of_all / part) for part in known)
        if compacted:
            images = min(compacted * size, len(job.listing))
            hits = float(self._hits_of(kept, images).sum())
            markers += self._marker_bytes(sizes.prefix, images, hits)
        covering = self.occlusion.items if self.occlusion else 0
        others = covering + sum(one.items for one in self.further.values())
        log = 2 * LOG_BYTES * (job.shards + len(self.costs) + others + self.crew.workers)
        items = sum(ITEM_MARKER_BYTES + 5 * len(cost.item.units) for cost in self.costs)
        items += covering * MARKER_BYTES
        return round(markers + log + items)

    def _root_bytes(self) -> int:
        """The root group's attributes, as Zarr indents them."""
        job = self.job
        names = [layer.name for layer in job.layers]
        written = [job.spec.to_json(), job.provenance(), names, list(job.packed.classes)]
        return sum(len(json.dumps([part], indent=2)) for part in written)

    def layer_plan(self, layer: Layer) -> LayerPlan:
        own = [cost for cost in self.costs if cost.item.layer is layer]
        forward, backward = self._lane_seconds(layer)
        return LayerPlan(
            name=layer.name,
            op=layer.op,
            units=layer.units,
            height=layer.height,
            width=layer.width,
            receptive_field=layer_attributes(layer)["receptive_field"],
            obstacle=layer.obstacle,
            projected_units=sum(len(cost.item.units) for cost in own),
            multiply_adds=self.work[layer.name],
            seconds=float(sum(c.images * forward + c.hits * backward for c in own)),
            bytes=round(sum(sum(self._picture_bytes(cost)) for cost in own)),
        )


def _waking(active: np.ndarray) -> float:
    """Share of the units silent so far that more images will wake.

    Chao (1984), "Nonparametric estimation of the number of classes": from how many units were
    active on exactly one image, and on exactly two.
    """
    silent, once, twice = (int((active == times).sum()) for times in (0, 1, 2))
    return min(1.0, once * (once - 1) / (2 * (twice + 1)) / silent) if silent else 0.0


def _makespan(leases: Iterable[float], workers: int) -> float:
    """Seconds until all leases are answered, each given to the worker that is free first."""
    busy = [0.0] * workers
    for seconds in leases:
        busy[busy.index(min(busy))] += seconds
    return max(busy)


def _raw_bytes(job: Job, layer: Layer) -> tuple[int, int]:
    """Patches and projections of one unit before compression."""
    height, width = stored_size(layer.field.window_size, job.spec.storage.max_side)
    values = job.k * height * width * 3
    return values, values * projection_dtype(job.spec.storage).itemsize


def _totalled(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {**parts, "total": sum(parts.values())}


def _amount(size: float) -> str:
    """Bytes for people: three digits and a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
