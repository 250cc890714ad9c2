"""Which of a job's images the scan has read, by their ids."""

from collections.abc import Sequence

from deconvoy.images_table import images_part
from deconvoy.schema import image_part_path
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


def file_sizes(job: Job, run: RunStore, ids: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Height and width of images in their files."""
    size, found = job.spec.compute.shard_size, dict[int, tuple[int, int]]()
    for part in sorted({image_id // size for image_id in ids}):
        table = images_part(run, image_part_path(part), ["id", "width", "height"])
        for row in table.to_pylist():
            found[row["id"]] = row["height"], row["width"]
    return found
