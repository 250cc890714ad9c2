"""The driver's part in invariance: what is left, what each item is asked, how it is committed."""

import json

import numpy as np

from deconvoy.schema import INVARIANCE_ARRAYS, INVARIANCE_GROUP
from deconvoy.spec import NamedImages
from deconvoy.store import RunStore
from workers.groups import create_group
from workers.image_choice import drawn
from workers.invariance_items import Moving, invariance_items
from workers.job import Job
from workers.leases import InvarianceLease, InvarianceResult
from workers.parts import marker_path
from workers.read_images import read_images, require_used
from workers.stages import Work
from workers.transformations import TRANSFORMATIONS


def invariance_work(job: Job, run: RunStore) -> Work | None:
    """Move the images the spec chooses; None where it chooses none."""
    moving = job.moving
    if moving is None:
        return None
    items = {item.name: item for item in invariance_items(_chosen(job, moving, run))}
    left = [name for name in items if not run.exists(marker_path(name))]
    if len(left) == len(items):  # with a marker its arrays must not be made anew
        _create(job, moving, run, len(items))

    def lease_of(name: str) -> InvarianceLease:
        item = items[name]
        label = job.listing.labels[job.place_of(item.image)]
        return InvarianceLease(
            name, item.row, item.image, label, moving.moves, moving.spec.border, moving.fill
        )

    def commit(name: str, result: InvarianceResult) -> int:
        fields = {"image": items[name].image, "moves": result.moves}
        run.write(marker_path(name), json.dumps(fields).encode())
        return result.moves

    each = len(moving.moves)
    done = (len(items) - len(left)) * each
    return Work("invariance", left, lease_of, commit, done, len(items) * each)


def _chosen(job: Job, moving: Moving, run: RunStore) -> list[int]:
    """Ids of the images that are moved, in the order of the arrays.

    Raises:
        RequestError: one that the spec names was left out of the scan; says why.
    """
    images = moving.spec.images
    if isinstance(images, NamedImages):
        ids = [job.id_of(place) for place in moving.named]
        require_used(job, run, ids, "invariance")
        return ids
    return drawn(read_images(job, run), images.sample, job.spec.seed, "invariance")


def _create(job: Job, moving: Moving, run: RunStore, images: int) -> None:
    transformation = [TRANSFORMATIONS.index(move.transformation) for move in moving.moves]
    whole = {
        "transformation": np.array(transformation, np.uint8),
        "amount": np.array([move.amount for move in moving.moves]),
    }
    lengths = {"image": images, "step": len(moving.moves), "layer": len(job.layers)}
    side = job.packed.transform.crop
    told = {
        "transformations": list(TRANSFORMATIONS),
        "border": moving.spec.border,
        "fill": list(moving.fill),
        "size": [side, side],
        "layers": [layer.name for layer in job.layers],
        "labels": "true" if job.listing.labelled else "predicted",
    }
    create_group(run, INVARIANCE_GROUP, INVARIANCE_ARRAYS, lengths, whole, told)
