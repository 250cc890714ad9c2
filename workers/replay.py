"""Recompute hits of a run with a plain forward pass, and compare: is the score there, at its place?

The model is traced but neither folded nor batched, and each image goes through alone, so little of
what made the run takes part.  Scores agree within ``TOLERANCE`` of the layer's largest activation
on the image; the stored place must reach the largest of its map within the same.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from deconvoy.errors import ImageUnreadable, RequestError
from deconvoy.run import Run
from workers import pipeline
from workers.checksums import Fault
from workers.images import normalise
from workers.job import Job
from workers.plain import TOLERANCE, PlainForward
from workers.replay_occlusion import faults_of_squares, squares_of

Row = dict[str, Any]


@dataclass(frozen=True)
class Replayed:
    hits: int
    squares: int
    """Positions of squares on images and on hits."""
    faults: list[Fault]


def replay(url: str, sample: int, seed: int = 0) -> Replayed:
    """Recompute that many hits, drawn over all layers.

    Raises:
        RequestError: the weights or images the run began with are not there any more.
    """
    run = Run(url)
    if run.spec.model.name.startswith("object/"):
        raise RequestError(
            f"{url!r} was made from a model object, which no file holds, so hits cannot be "
            "recomputed: `deconvoy verify --sample 0` checks everything else."
        )
    job, _ = pipeline.reopen(url)
    by_image: dict[int, list[Row]] = {}
    for row in drawn(run, sample, seed):
        by_image.setdefault(row["image_id"], []).append(row)
    plain = PlainForward(job)
    faults: list[Fault] = []
    for image_id in sorted(by_image):
        faults += _faults_of(job, plain, by_image[image_id])
    squares = squares_of(run, sample, seed)
    faults += faults_of_squares(squares, job, plain)
    return Replayed(sum(map(len, by_image.values())), len(squares), faults)


def drawn(run: Run, sample: int, seed: int) -> Iterator[Row]:
    """Hits drawn evenly over all there are, layer by layer."""
    totals = [run.table(layer).num_rows for layer in run.layer_names]
    total = sum(totals)
    chosen = sorted(random.Random(seed).sample(range(total), min(sample, total)))
    start = 0
    for layer, count in zip(run.layer_names, totals, strict=True):
        rows = [row - start for row in chosen if start <= row < start + count]
        if rows:
            yield from run.table(layer).take(rows).to_pylist()
        start += count


def _faults_of(job: Job, plain: "PlainForward", rows: list[Row]) -> Iterator[Fault]:
    """What is wrong with hits of one image."""
    uri = rows[0]["uri"]
    try:
        picture = job.listing.source.read(uri, job.packed.transform)
    except ImageUnreadable as error:
        yield Fault(f"image {uri}", f"was read in the scan and cannot be read any more: {error}")
        return
    image = normalise(picture.pixels[None], job.packed.transform)
    by_layer: dict[str, list[Row]] = {}
    for row in rows:
        by_layer.setdefault(row["layer"], []).append(row)
    found: list[Fault] = []

    def see(layer: str, maps: Float[Tensor, "unit row col"]) -> None:
        scale = float(maps.abs().max())
        for row in by_layer.get(layer, ()):
            reason = _difference(row, maps[row["unit"]], TOLERANCE * scale)
            if reason is not None:
                place = f"{layer}, unit {row['unit']}, rank {row['rank'] + 1}, image {uri}"
                found.append(Fault(place, reason))

    plain(image, see)
    yield from found


def _difference(row: Row, own: Float[Tensor, "row col"], tolerance: float) -> str | None:
    here, largest = float(own[row["y"], row["x"]]), float(own.max())
    if abs(largest - row["score"]) > tolerance:
        return f"its score is {row['score']:.6g}, but a plain forward pass finds {largest:.6g}"
    if largest - here > tolerance:
        y, x = divmod(int(own.argmax()), own.shape[1])
        return f"its place is {row['y']}, {row['x']}, but a plain forward pass finds it at {y}, {x}"
    return None
