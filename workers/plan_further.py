"""Foretell the analyses that follow the scan and need no pilot of their own: their work is forward
passes, which the scan's pilot has timed."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from workers.image_choice import count_of
from workers.job import Job
from workers.plan_occlusion import MARKER_BYTES, SMALL_FILE_BYTES

METADATA_BYTES = 9_000
"""Of a group: its attributes and those of its ten arrays."""


@dataclass(frozen=True)
class Further:
    """What one analysis is expected to be."""

    work: int
    """In the unit of its progress: moves of images."""
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
    found = {"invariance": _invariance(job, passes)}
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
