"""Which of a job's images the scan has read, by their ids."""

from collections.abc import Sequence

from deconvoy.store import RunStore
from workers.image_choice import left_out, unusable
from workers.job import Job


def read_images(job: Job, run: RunStore) -> list[int]:
    """Those that were read, in reading order."""
    every = [job.id_of(place) for place in range(len(job.listing))]
    without = left_out(run, every, job.spec.compute.shard_size)
    return [image_id for image_id in every if image_id not in without]


def require_used(job: Job, run: RunStore, ids: Sequence[int], kind: str) -> None:
    """Of images that an analysis names itself.

    Raises:
        RequestError: the scan left one out; says why.
    """
    for image_id, reason in left_out(run, ids, job.spec.compute.shard_size).items():
        raise unusable(job.listing.uris[job.place_of(image_id)], reason, kind)
