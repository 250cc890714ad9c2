"""Foretell the analyses that follow the scan and need no pilot of their own: their work is forward
passes, which the scan's pilot has timed."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from workers.correspondence_items import items_of
from workers.evolution_items import evolution_items
from workers.graph import Layer
from workers.image_choice import count_of
from workers.job import Job
from workers.parts import spans
from workers.pictures import stored_size
from workers.plan_occlusion import MARKER_BYTES, SMALL_FILE_BYTES
from workers.pooling import cells, count
from workers.probe_items import Probing
from workers.scratch_items import images_of
from workers.writer import projection_dtype

HIT_BYTES = 32
"""What a marker holds of a hit before compression."""

FIT_RATE = 2e7
"""Features × images × classes that a worker of two threads fits a second, all iterations together:
of ten classes it was 2.6·10⁷, of forty 2.1·10⁷, on two cores."""

TRAINING_PASSES = 3.0
"""Forward passes of the scan that a step of training takes as long as.  On one core a step took 2.4
to 2.7 of torch's own, which are slower; of a job foretold so 15.4 s were 14.1 s."""

METADATA_BYTES = 9_000
"""Of a group: its attributes and those of its ten arrays."""


@dataclass(frozen=True)
class Further:
    """What one analysis is expected to be."""

    work: int
    """In the unit of its progress: moves of images, images by checkpoints, projections."""
    leases: tuple[float, ...]
    """Seconds of each."""
    bytes: int
    """At most: floats hardly get smaller."""

    @property
    def items(self) -> int:
        return len(self.leases)


Passes = Callable[[int], float]
"""Seconds that so many forward passes of a batch take one worker."""


def further_of(job: Job, passes: Passes) -> dict[str, Further]:
    """By kind, in the order of the stages."""
    found = {
        "invariance": _invariance(job, passes),
        "correspondence": _correspondence(job, passes),
        **_probe(job, passes),
        **_evolution(job, passes),
    }
    return {kind: one for kind, one in found.items() if one is not None}


def _invariance(job: Job, passes: Passes) -> Further | None:
    moving = job.moving
    if moving is None:
        return None
    images, moves = count_of(moving.spec.images, moving.named, len(job.listing)), len(moving.moves)
    batches = math.ceil(moves / (max(2, job.batch_size) - 1))
    floats = moves * (8 * len(job.layers) + 4 + 8) + 8 * len(job.layers)
    each = floats + 7 * SMALL_FILE_BYTES + MARKER_BYTES
    size = METADATA_BYTES + 10 * moves + images * each
    return Further(images * moves, (passes(batches),) * images, size)


def _correspondence(job: Job, passes: Passes) -> Further | None:
    """The clean images are run once an item, and once for every draw with a box covered."""
    corresponding = job.corresponding
    if corresponding is None:
        return None
    named = corresponding.named
    images = count_of(corresponding.spec.images, named, len(corresponding.able))
    batches = math.ceil(images / job.batch_size)
    items = items_of(corresponding)
    draws = [item.stop - item.start for item in items]
    each = tuple(passes((count + 1) * batches) for count in draws)
    size = METADATA_BYTES + sum(draws) * 16 * len(job.layers) + MARKER_BYTES * len(items)
    return Further(sum(draws) * images, each, size)


def _probe(job: Job, passes: Passes) -> dict[str, Further | None]:
    """Its stages; how long fits take the pilot has not measured (``FIT_RATE``)."""
    probing = job.probing
    if probing is None:
        return {}
    images, weights = len(probing.listing), probing.weights
    shards = spans([images], job.spec.compute.shard_size)
    leases = [passes(math.ceil((stop - start) / job.batch_size)) for start, stop in shards]
    features = [
        count(layer, cells(layer, probing.spec.pool, probing.spec.features))
        for layer in probing.layers
    ]
    size = METADATA_BYTES * (1 + 2 * weights * len(features)) + MARKER_BYTES * len(shards)
    size += weights * images * (4 * sum(features) + 1)
    first = Further(weights * images, tuple(leases) * weights, size)
    kinds, _, folds = probing.fits.shape
    classes = len(probing.classes)
    learned = sum(n * classes for n in probing.spec.train) * kinds * folds
    each = [learned * n * classes / FIT_RATE for n in features]
    fits = weights * len(features) * math.prod(probing.fits.shape)
    rows = len(features) * weights * (math.prod(probing.fits.shape) * 9 + MARKER_BYTES)
    second = Further(fits, tuple(each) * weights, rows)
    return {
        "probe-features": first,
        "probe": second,
        "probe-scratch": _scratch(job, probing, passes),
    }


def _scratch(job: Job, probing: Probing, passes: Passes) -> Further | None:
    """A training keeps one lane busy, however many there are."""
    asked, fits, label = probing.spec.scratch, probing.fits, probing.label
    if asked is None:
        return None
    work, leases = 0, []
    for size, fold in np.ndindex(fits.shape[1:]):
        images = fits.images(label, size, fold)
        learned, judged = len(images.train), len(images.test)
        work += images_of(asked, learned, judged)
        batches = (TRAINING_PASSES * asked.epochs * learned + judged) / job.batch_size
        leases.append(passes(1) * batches)
    stored = len(leases) * (SMALL_FILE_BYTES + MARKER_BYTES) + METADATA_BYTES // 10
    return Further(work, tuple(leases), stored)


def _evolution(job: Job, passes: Passes) -> dict[str, Further | None]:
    """Both of its stages; a projection is taken for two passes, down and the forward one before."""
    evolving = job.evolving
    if evolving is None:
        return {}
    checkpoints, size = len(evolving.checkpoints), job.spec.compute.shard_size
    shards = [stop - start for start, stop in map(job.shard, range(job.shards))]
    leases = tuple(checkpoints * passes(math.ceil(n / job.batch_size)) for n in shards)
    marker = checkpoints * job.index.total * min(job.k, size) * HIT_BYTES
    scan = Further(checkpoints * len(job.listing), leases, len(shards) * marker)
    items = evolution_items(evolving, job.spec.storage, job.spec.seed)
    projected = [len(item.units) * evolving.columns for item in items]
    tables = job.index.total * evolving.columns * (4 + 8 + 8 + 4 + 4)
    metadata = METADATA_BYTES * (1 + len(job.layers))
    pictures = sum(
        count * raw_picture_bytes(job, item.layer)
        for count, item in zip(projected, items, strict=True)
    )
    each = tuple(passes(math.ceil(2 * count / job.batch_size)) for count in projected)
    stored = tables + metadata + pictures + MARKER_BYTES * len(items)
    return {"evolution-scan": scan, "evolution": Further(sum(projected), each, stored)}


def raw_picture_bytes(job: Job, layer: Layer) -> int:
    """Of one patch and one projection, before compression."""
    height, width = stored_size(layer.field.window_size, job.spec.storage.max_side)
    return height * width * 3 * (1 + projection_dtype(job.spec.storage).itemsize)
