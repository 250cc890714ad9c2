"""The driver's part in correspondence: what is left, what is asked, how it is committed."""

import json

import numpy as np
from jaxtyping import Int32, Int64

from deconvoy.errors import RequestError
from deconvoy.spec import NamedImages
from deconvoy.store import RunStore
from workers.correspondence import coverings
from workers.correspondence_items import (
    KIND,
    Corresponding,
    drawn_images,
    items_of,
    require_parts,
)
from workers.correspondence_writer import create_correspondence
from workers.job import Job
from workers.leases import CorrespondenceLease, CorrespondenceResult
from workers.part_boxes import parts_in_input
from workers.parts import marker_path
from workers.read_images import file_sizes, read_images, require_used
from workers.stages import Work


def correspondence_work(job: Job, run: RunStore) -> Work | None:
    """Cover the parts the spec chooses, and boxes at random; None where it chooses none."""
    corresponding = job.corresponding
    if corresponding is None:
        return None
    items = {item.name: item for item in items_of(corresponding)}
    left = [name for name in items if not run.exists(marker_path(name))]
    images, boxes = _placed(job, run, corresponding)
    if len(left) == len(items):  # with a marker its arrays must not be made anew
        side = job.packed.transform.crop
        create_correspondence(run, corresponding, [x.name for x in job.layers], side, images)
    side, ids, draws = job.packed.transform.crop, images.tolist(), corresponding.spec.random
    every = [
        coverings(boxes[part], ids, side, job.spec.seed, name, draws)
        for part, name in enumerate(corresponding.parts)
    ]

    def lease_of(name: str) -> CorrespondenceLease:
        item = items[name]
        own = every[item.part][item.start : item.stop]
        return CorrespondenceLease(name, item.part, item.start, images, own, corresponding.fill)

    def count(name: str) -> int:
        return (items[name].stop - items[name].start) * len(images)

    def commit(name: str, result: CorrespondenceResult) -> int:
        fields = {"draws": [items[name].start, items[name].stop], "images": result.images}
        run.write(marker_path(name), json.dumps(fields).encode())
        return result.images

    total = sum(map(count, items))
    done = total - sum(map(count, left))
    return Work("correspondence", left, lease_of, commit, done, total)


def _placed(
    job: Job, run: RunStore, corresponding: Corresponding
) -> tuple[Int64[np.ndarray, " image"], Int32[np.ndarray, "part image 4"]]:
    """The images, and where their parts are in the preprocessed ones.

    Raises:
        RequestError: an image that the spec names was left out of the scan, or the crop leaves a
            part of it out; or fewer than two images have all the parts.
    """
    named = isinstance(corresponding.spec.images, NamedImages)
    places = corresponding.named if named else corresponding.able
    ids = [job.id_of(place) for place in places]
    if named:
        require_used(job, run, ids, KIND)
    else:
        readable = set(read_images(job, run))
        ids = [image for image in ids if image in readable]
    sizes = file_sizes(job, run, ids)
    placed = {image: _parts_of(job, image, sizes[image]) for image in ids}
    if named:
        for image in ids:
            uri = job.listing.uris[job.place_of(image)]
            require_parts(uri, placed[image], corresponding.parts)
    else:
        ids = drawn_images(corresponding, placed, job.spec.seed)
    boxes = [[placed[image][part] for image in ids] for part in corresponding.parts]
    return np.array(ids, np.int64), np.array(boxes, np.int32)


def _parts_of(job: Job, image: int, size: tuple[int, int]) -> dict[str, Int32[np.ndarray, "4"]]:
    """Those that the crop leaves, in the preprocessed image."""
    assert job.part_boxes is not None
    uri = job.listing.uris[job.place_of(image)]
    try:
        return parts_in_input(job.part_boxes.of(uri), size, job.packed.transform)
    except RequestError as error:
        raise RequestError(f"data.parts {job.spec.data.parts!r}, {uri!r}: {error}") from None
