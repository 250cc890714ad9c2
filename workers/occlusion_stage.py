"""The driver's part in occlusion: which items are left, what each is asked, how it is committed."""

import json
from collections.abc import Sequence

import numpy as np

from deconvoy.errors import RequestError
from deconvoy.schema import MISSING_IMAGE
from deconvoy.spec import DrawnImages, NamedImages
from deconvoy.store import RunStore
from workers.annotations import require_within
from workers.image_choice import drawn
from workers.job import Job
from workers.leases import OcclusionLease, OcclusionResult, UnitOcclusionLease
from workers.occlusion_items import (
    Occluding,
    OcclusionItem,
    UnitOcclusionItem,
    image_items,
    unit_items,
)
from workers.occlusion_writer import create_group, create_unit_array, shapes
from workers.parts import marker_path
from workers.read_images import file_sizes, read_images, require_used
from workers.stages import Work
from workers.topk import Fold


def image_work(job: Job, run: RunStore, fold: Fold) -> Work | None:
    """Slide the square over the images the spec chooses; None where it does not."""
    occluding = job.occluding
    if occluding is None:
        return None
    items = {item.name: item for item in image_items(chosen_images(job, occluding, run, fold))}
    left = [name for name in items if not run.exists(marker_path(name))]
    _require_boxes_inside(job, run, [items[name] for name in left])
    most_boxes = max((len(_boxes_of(job, item)) for item in items.values()), default=0)
    if len(left) == len(items):  # with a marker its arrays must not be made anew
        side, storage = job.packed.transform.crop, job.spec.storage
        names = [layer.name for layer in job.layers]
        lengths = shapes(
            occluding.grid, side, len(names), job.outputs, len(items), most_boxes, storage
        )
        labels = "true" if job.listing.labelled else "predicted"
        create_group(run, occluding, lengths, names, side, labels, storage)

    def lease_of(name: str) -> OcclusionLease:
        item = items[name]
        return OcclusionLease(
            name,
            item.row,
            item.image,
            job.listing.labels[job.place_of(item.image)],
            occluding.grid,
            occluding.fill,
            occluding.spec.top5,
            _boxes_of(job, item) if most_boxes else None,
            most_boxes,
        )

    def commit(name: str, result: OcclusionResult) -> int:
        fields = {"image": items[name].image, "positions": result.positions}
        run.write(marker_path(name), json.dumps(fields).encode())
        return result.positions

    each = len(occluding.grid.y) * len(occluding.grid.x)
    done = (len(items) - len(left)) * each
    return Work("occlusion", left, lease_of, commit, done, len(items) * each)


def _require_boxes_inside(job: Job, run: RunStore, items: Sequence[OcclusionItem]) -> None:
    """Compare all boxes with the sizes the scan found, before any image is covered.

    Raises:
        RequestError: one reaches beyond its file; names both.
    """
    if job.spec.data.boxes is None:
        return
    sizes = file_sizes(job, run, [item.image for item in items])
    for item in items:
        try:
            require_within(_boxes_of(job, item), sizes[item.image])
        except RequestError as error:
            uri = job.listing.uris[job.place_of(item.image)]
            raise RequestError(f"data.boxes {job.spec.data.boxes!r}, {uri!r}: {error}") from None


def _boxes_of(job: Job, item: OcclusionItem) -> np.ndarray:
    if job.boxes is None:
        return np.zeros((0, 4))
    return job.boxes.of(job.listing.uris[job.place_of(item.image)])


def unit_work(job: Job, run: RunStore, fold: Fold) -> Work | None:
    """Slide squares over the hits of the layers the spec names; None where it names none."""
    occluding = job.occluding
    if occluding is None or not occluding.layers:
        return None
    items = {item.name: item for item in unit_items(occluding.layers)}
    left = [name for name in items if not run.exists(marker_path(name))]
    for layer in occluding.layers:
        if all(item.name in left for item in items.values() if item.layer is layer):
            squares = occluding.unit_squares(layer)
            create_unit_array(run, layer.name, layer.units, job.k, squares, occluding.fill)

    def rows_of(item: UnitOcclusionItem) -> slice:
        first = job.index.offsets[job.layers.index(item.layer)]
        return slice(first + item.start, first + item.stop)

    def positions(name: str) -> int:
        item, rows = items[name], rows_of(items[name])
        found = fold.image[rows] >= 0
        boxes = item.layer.field.boxes(fold.position[rows][found].astype(np.int64))
        return int(occluding.unit_squares(item.layer).positions(boxes).sum())

    def lease_of(name: str) -> UnitOcclusionLease:
        item, rows = items[name], rows_of(items[name])
        squares = occluding.unit_squares(item.layer)
        return UnitOcclusionLease(
            name,
            item.layer.name,
            item.start,
            fold.image[rows],
            fold.position[rows],
            squares.patch,
            squares.stride,
            squares.shape,
            occluding.fill,
        )

    def commit(name: str, result: OcclusionResult) -> int:
        item = items[name]
        fields = {"units": [item.start, item.stop], "positions": result.positions}
        run.write(marker_path(name), json.dumps(fields).encode())
        return positions(name)

    total = sum(map(positions, items))
    done = total - sum(map(positions, left))
    return Work("unit-occlusion", left, lease_of, commit, done, total)


def chosen_images(job: Job, occluding: Occluding, run: RunStore, fold: Fold) -> list[int]:
    """Ids of the images the square slides over, in the order of the arrays.

    Raises:
        RequestError: one that the spec names was left out of the scan; says why.
    """
    images = occluding.spec.images
    if isinstance(images, NamedImages):
        ids = [job.id_of(place) for place in occluding.named]
        require_used(job, run, ids, "occlusion")
        return ids
    if isinstance(images, DrawnImages):
        return drawn(read_images(job, run), images.sample, job.spec.seed, "occlusion")
    by_name = {layer.name: number for number, layer in enumerate(job.layers)}
    rows = [job.index.offsets[by_name[name.layer]] + name.unit for name in images.top_of]
    hits = [int(i) for row in rows for i in fold.image[row] if i != MISSING_IMAGE]
    return list(dict.fromkeys(hits))
