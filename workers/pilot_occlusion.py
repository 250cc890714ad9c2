"""Measure occlusion for a plan: a few positions of one image and of one hit, timed and weighed.

A sweep's multiply-adds are counted exactly (``workers.extents``); what one of them takes is
measured, apart from what an image takes once: its clean activations, its pictures.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from deconvoy.schema import OCCLUSION_ARRAYS, layer_path
from deconvoy.store import FolderStore
from workers.actor import Actor
from workers.extents import Extents, wanted_below
from workers.graph import Layer, Network
from workers.grids import Grid, Squares, grid_over_box
from workers.job import Job
from workers.leases import OcclusionLease
from workers.occluding import parts_of
from workers.occlusion import steps_to_all_layers, sweep, unit_sweeps
from workers.occlusion_items import Occluding
from workers.occlusion_writer import create_group, create_unit_array, shapes
from workers.portions import portions_on
from workers.topk import Fold
from workers.windows import Span

MEASURED_SIDE = 4
"""Rows and columns of the squares that are measured: sixteen positions."""

MEASURED_HITS = 4
"""Hits of a layer whose work is counted."""


@dataclass(frozen=True)
class HitWork:
    """What covering a hit of a layer takes, on average."""

    positions: float
    multiply_adds: float


@dataclass(frozen=True)
class OcclusionSample:
    """What occlusion of this job takes, in seconds of one lane and in bytes."""

    clean_seconds: float
    """Of one image's clean activations, as each part of a grid computes them."""
    picture_seconds: float
    """Of an image's pictures, projections and files."""
    seconds: float
    """Of one multiply-add under squares over an image."""
    hit_seconds: float
    """Of one under squares over a hit's field."""
    image_work: int
    """Multiply-adds of one image's sweep."""
    hits: dict[str, HitWork]
    """By layer whose hits are covered."""
    stored: dict[str, float]
    """Of the arrays of an image, stored bytes over bytes before compression."""
    metadata: int
    """The zarr.json of the group."""
    unit_metadata: int
    """That of a layer's array."""


def measure_occlusion(
    job: Job, actor: Actor, run: FolderStore, fold: Fold
) -> OcclusionSample | None:
    """Cover some of the pilot's first readable image; None where the job covers nothing.

    Args:
        actor: of the pilot, whose run has a part of the images table.
        fold: what the pilot has found.
    """
    occluding = job.occluding
    ids = fold.image[fold.image >= 0]
    if occluding is None or not len(ids):
        return None
    image = int(ids[0])
    network, pixels, colour = actor.at_hand(image, occluding.fill)
    few, one = _few(occluding.grid, MEASURED_SIDE), _few(occluding.grid, 1)
    steps = steps_to_all_layers(network)
    works = [_work(Extents(network, steps, grid.squares())) for grid in (one, few)]
    sweep(network, pixels, one, colour)  # to warm up
    times = [_seconds(partial(sweep, network, pixels, grid, colour)) for grid in (one, few)]
    more = works[1] - works[0]  # none where the grid has one position
    apart = max(times[1] - times[0], 0.1 * times[1])
    each = apart / more if more > 0 else times[1] / max(1, works[1])
    clean = max(0.0, times[0] - works[0] * each)
    rest, stored, metadata = _picture(job, actor, run, occluding, one, image, times[0])
    hits = {
        layer.name: hit_work(network, layer, occluding, _positions(job, fold, layer))
        for layer in occluding.layers
    }
    for layer in occluding.layers[:1]:
        squares = occluding.unit_squares(layer)
        run.zarr("r+").require_group(layer_path(layer.name))
        create_unit_array(run, layer.name, layer.units, job.k, squares, occluding.fill)
    file = run.root / layer_path(occluding.layers[0].name) if occluding.layers else None
    return OcclusionSample(
        clean_seconds=clean,
        picture_seconds=rest,
        seconds=each,
        hit_seconds=_hit_seconds(job, network, occluding, fold, pixels, colour, each),
        image_work=image_work(network, occluding.grid),
        hits=hits,
        stored=stored,
        metadata=metadata,
        unit_metadata=(file / "occlusion" / "zarr.json").stat().st_size if file else 0,
    )


def image_work(network: Network, grid: Grid) -> int:
    """Multiply-adds of the sweep over an image, part by part; one in the middle stands for all."""
    parts = parts_of(grid, portions_on("cpu").grid_parts)
    middle = replace(grid, y=grid.y[parts[len(parts) // 2]])
    one = _work(Extents(network, steps_to_all_layers(network), middle.squares()))
    return round(one * len(grid.y) / len(middle.y))


def hit_work(
    network: Network, layer: Layer, occluding: Occluding, yx: Int64[np.ndarray, "hit yx"]
) -> HitWork:
    """Of a layer: positions by all of these hits, multiply-adds by a few of them."""
    squares = occluding.unit_squares(layer)
    boxes = layer.field.boxes(yx)
    yx, boxes = yx[boxes[:, 2] > boxes[:, 0]], boxes[boxes[:, 2] > boxes[:, 0]]
    if not len(yx):
        return HitWork(0.0, 0.0)
    works = []
    for some in np.linspace(0, len(yx) - 1, min(MEASURED_HITS, len(yx))).astype(int):
        y0, x0, y1, x1 = boxes[some].tolist()
        grid = grid_over_box((y0, x0, y1, x1), squares.patch, squares.stride)
        works.append(_work(_extents_of_hit(network, layer, yx[some], grid.squares())))
    return HitWork(float(squares.positions(boxes).mean()), float(np.mean(works)))


def _extents_of_hit(
    network: Network, layer: Layer, place: Int64[np.ndarray, " yx"], squares: Squares
) -> Extents:
    path = network.path_to(layer)
    y, x = (np.full(len(squares), at, np.int64) for at in place)
    wanted = wanted_below(network, path, (Span(y, y + 1), Span(x, x + 1)))
    return Extents(network, path, squares, wanted)


def _work(extents: Extents) -> int:
    return extents.multiply_adds(extents.batches(portions_on("cpu").square_bytes))


def _few(grid: Grid, count: int) -> Grid:
    """Some rows and columns, evenly spaced."""
    y, x = (axis[np.linspace(0, len(axis) - 1, count).round().astype(int)] for axis in
            (grid.y, grid.x))  # fmt: skip
    return replace(grid, y=np.unique(y), x=np.unique(x))


def _positions(job: Job, fold: Fold, layer: Layer) -> Int64[np.ndarray, "hit yx"]:
    """Of the hits the pilot has found."""
    rows = job.index.units_of(job.layers.index(layer))
    found: np.ndarray = fold.position[rows][fold.image[rows] >= 0]
    return found.astype(np.int64)


def _hit_seconds(
    job: Job,
    network: Network,
    occluding: Occluding,
    fold: Fold,
    pixels: Tensor,
    colour: Tensor,
    otherwise: float,
) -> float:
    """Of a multiply-add under a few squares over one hit of the middle layer."""
    for layer in occluding.layers[len(occluding.layers) // 2 :]:
        places = _positions(job, fold, layer)
        box = layer.field.boxes(places[:1])
        if not len(places) or box[0, 2] <= box[0, 0]:
            continue
        y0, x0, y1, x1 = box[0].tolist()
        patch = occluding.unit_squares(layer).patch
        stride = max(1, -(-(max(y1 - y0, x1 - x0) - patch) // (MEASURED_SIDE - 1)))
        grid = grid_over_box((y0, x0, y1, x1), patch, stride)
        work = _work(_extents_of_hit(network, layer, places[0], grid.squares()))
        # The second covers all of the field once: little more than the clean image.
        whole = max(y1 - y0, x1 - x0)
        covers = [
            partial(unit_sweeps, network, layer, pixels, np.zeros(1, np.int64), places[:1], *square)
            for square in ((patch, stride, colour), (whole, whole, colour))
        ]
        covers[0]()  # to warm up
        some, once = map(_seconds, covers)
        return max(some - once, 0.1 * some) / max(1, work)
    return otherwise


def _picture(
    job: Job,
    actor: Actor,
    run: FolderStore,
    occluding: Occluding,
    grid: Grid,
    image: int,
    swept: float,
) -> tuple[float, dict[str, float], int]:
    """Seconds of a lease beside its sweep; stored share of each array; bytes of metadata."""
    coarse = replace(occluding, grid=_few(occluding.grid, MEASURED_SIDE))
    side, storage = job.packed.transform.crop, job.spec.storage
    names = [layer.name for layer in job.layers]
    lengths = shapes(coarse.grid, side, len(names), job.outputs, 1, 0, storage)
    create_group(run, coarse, lengths, names, side, "true", storage)
    lease = OcclusionLease(
        "pilot", 0, image, None, coarse.grid, occluding.fill, occluding.spec.top5
    )
    actor.work(lease)
    root = run.root / "occlusion"
    raw = raw_bytes(job, coarse.grid)
    stored = {name: _bytes_below(root / name / "c") / max(1, raw[name]) for name in raw}
    metadata = sum(path.stat().st_size for path in root.rglob("zarr.json"))
    bare = replace(coarse, grid=grid)
    create_group(run, bare, lengths | {"gy": 1, "gx": 1}, names, side, "true", storage)
    seconds = _seconds(lambda: actor.work(replace(lease, grid=grid)))
    return max(0.0, seconds - swept), stored, metadata


def raw_bytes(job: Job, grid: Grid) -> dict[str, int]:
    """Of one image, by array, before compression."""
    occluding = job.occluding
    assert occluding is not None
    side, storage = job.packed.transform.crop, job.spec.storage
    lengths = shapes(grid, side, len(job.layers), job.outputs, 1, 0, storage)
    found = {}
    for field in OCCLUSION_ARRAYS:
        if field.name in ("y", "x", "box"):
            continue
        if field.name.startswith("top5") and not occluding.spec.top5:
            continue
        kind = np.dtype(storage.projection if field.name == "projection" else field.dtype)
        found[field.name] = math.prod(lengths[dim] for dim in field.dims) * kind.itemsize
    return found


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
