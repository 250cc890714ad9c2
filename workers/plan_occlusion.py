"""Foretell the occlusion of a job: positions, seconds and bytes, by a pilot's sample."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from deconvoy.spec import DrawnImages, NamedImages
from workers.graph import Layer
from workers.job import Job
from workers.occlusion_items import UNITS_AN_ITEM, Occluding
from workers.pilot_occlusion import OcclusionSample, raw_bytes
from workers.portions import portions_on

MARKER_BYTES = 60
"""A marker of an image or of some units."""

SMALL_FILE_BYTES = 30
"""A chunk of one number, compressed, with its checksum."""

FLOATS_STORED = 0.95
"""Activations hardly get smaller."""


@dataclass(frozen=True)
class HitsExpected:
    """Hits of a layer, and distinct images among those of one item."""

    hits: float
    images_an_item: float


@dataclass(frozen=True)
class OcclusionForecast:
    """What the occlusion of a job is expected to be."""

    positions: int
    leases: tuple[float, ...]
    """Seconds of each."""
    bytes: int
    items: int


def images_of(job: Job, occluding: Occluding) -> int:
    """How many images the square slides over, at most."""
    match occluding.spec.images:
        case DrawnImages(sample=count):
            return min(count, len(job.listing))
        case NamedImages():
            return len(occluding.named)
        case units:
            return min(job.k * len(units.top_of), len(job.listing))


def occlusion_items(job: Job) -> int:
    """Work items, at most."""
    occluding = job.occluding
    if occluding is None:
        return 0
    units = sum(math.ceil(layer.units / UNITS_AN_ITEM) for layer in occluding.layers)
    return images_of(job, occluding) + units


def foretold(
    job: Job,
    sample: OcclusionSample,
    lanes: int,
    expected: Callable[[Layer], HitsExpected],
    forward_seconds: Callable[[Layer], float],
) -> OcclusionForecast:
    """Scale a sample to the job.

    Args:
        lanes: of one worker.
        expected: hits of a layer.
        forward_seconds: of one image to a layer, in one lane.
    """
    occluding = job.occluding
    assert occluding is not None
    images, grid = images_of(job, occluding), occluding.grid
    parts = min(portions_on("cpu").grid_parts, -(-len(grid.y) // 2))
    swept = parts * sample.clean_seconds + sample.image_work * sample.seconds
    image_seconds = swept / min(lanes, parts) + sample.picture_seconds
    positions, leases = float(images * len(grid.y) * len(grid.x)), [image_seconds] * images
    size = images * image_bytes(job, sample) + sample.metadata
    for layer in occluding.layers:
        found, work = expected(layer), sample.hits[layer.name]
        items = math.ceil(layer.units / UNITS_AN_ITEM)
        covered = found.hits * work.multiply_adds * sample.hit_seconds
        clean = 2 * forward_seconds(layer) * found.images_an_item * items
        leases += [(covered + clean) / items / lanes] * items
        positions += found.hits * work.positions
        size += round(4 * FLOATS_STORED * found.hits * work.positions) + sample.unit_metadata
    return OcclusionForecast(round(positions), tuple(leases), size, len(leases))


def image_bytes(job: Job, sample: OcclusionSample) -> int:
    """Of one image's chunks."""
    assert job.occluding is not None
    raw = raw_bytes(job, job.occluding.grid)
    return round(
        sum(
            SMALL_FILE_BYTES if size <= SMALL_FILE_BYTES else size * min(1.0, sample.stored[name])
            for name, size in raw.items()
        )
    )


def most_bytes_of_occlusion(job: Job) -> int:
    """What occlusion stores at most: its bytes before compression."""
    occluding = job.occluding
    if occluding is None:
        return 0
    raw = raw_bytes(job, occluding.grid)
    size = images_of(job, occluding) * (sum(raw.values()) + (SMALL_FILE_BYTES + 10) * len(raw))
    boxes = 16 * 100 if job.boxes else 0
    size += images_of(job, occluding) * (MARKER_BYTES + boxes) + 60_000
    for layer in occluding.layers:
        rows, cols = occluding.unit_squares(layer).shape
        size += layer.units * (job.k * rows * cols * 4 + 64) + 8_000
        size += math.ceil(layer.units / UNITS_AN_ITEM) * MARKER_BYTES
    return size
