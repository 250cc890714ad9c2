"""Recompute positions of a run's squares with plain forward passes of the covered image.

As in ``workers.replay``, the model is traced but neither folded nor batched, and nothing of what
made the run takes part: the whole image is run for each position.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deconvoy.errors import ImageUnreadable, RunNotFound
from deconvoy.run import Run
from workers.checksums import Fault
from workers.graph import Layer
from workers.images import normalise
from workers.job import Job
from workers.plain import TOLERANCE, PlainForward

MOST = 12
"""Positions recomputed of images, and of hits: each takes a forward pass of its own."""


@dataclass(frozen=True)
class Square:
    """A covered image, and what the run says of it."""

    image: int
    uri: str
    box: tuple[int, int, int, int]
    """y0, x0, y1, x1: what is covered."""
    fill: Sequence[float]
    seen: "OnImage | OnHit"


@dataclass(frozen=True)
class OnImage:
    target: int
    probability: float
    label: int
    unit: dict[str, int]
    activity: dict[str, float]


@dataclass(frozen=True)
class OnHit:
    layer: str
    unit: int
    place: tuple[int, int]
    activation: float


def faults_of_squares(squares: Sequence[Square], job: Job, plain: PlainForward) -> Iterator[Fault]:
    """Recompute each position, and say what differs."""
    layers = {layer.name: layer for layer in job.layers}
    for square in squares:
        try:
            picture = job.listing.source.read(square.uri, job.packed.transform)
        except ImageUnreadable as error:
            yield Fault(f"image {square.uri}", f"cannot be read any more: {error}")
            continue
        covered = _covered(normalise(picture.pixels[None], job.packed.transform), square, job)
        maps: dict[str, Tensor] = {}
        logits = plain(covered, partial(_keep, maps))
        if isinstance(square.seen, OnImage):
            reason = _of_image(square.seen, logits, maps, layers)
        else:
            reason = _of_hit(square.seen, maps, layers)
        if reason is not None:
            y, x = square.box[:2]
            yield Fault(f"image {square.uri}, square at {y}, {x}", reason)


def squares_of(run: Run, sample: int, seed: int) -> list[Square]:
    """At most ``MOST`` positions drawn over the images, and as many over the hits."""
    count, rng = min(sample, MOST), random.Random(f"{seed}/occlusion")
    return [*_of_images(run, count, rng), *_of_hits(run, count, rng)]


def _of_images(run: Run, count: int, rng: random.Random) -> Iterator[Square]:
    try:
        images = run.occluded().column("image_id").to_pylist()
    except RunNotFound:
        return
    for image in rng.choices(images, k=count) if images else ():
        one = run.occlusion(image)
        row, col = rng.randrange(len(one.y)), rng.randrange(len(one.x))
        y, x = int(one.y[row]), int(one.x[col])
        seen = OnImage(
            one.target,
            float(one.probability[row, col]),
            int(one.label[row, col]),
            dict(one.unit),
            {name: float(values[row, col]) for name, values in one.activity.items()},
        )
        yield Square(image, one.uri, (y, x, y + one.patch, x + one.patch), one.fill, seen)


def _of_hits(run: Run, count: int, rng: random.Random) -> Iterator[Square]:
    layers = [name for name in run.layer_names if "occlusion" in run.layer_group(name)]
    rows = {name: run.table(name) for name in layers}
    layers = [name for name in layers if len(rows[name])]
    for name in rng.choices(layers, k=count) if layers else ():
        hit = rows[name].slice(rng.randrange(len(rows[name])), 1).to_pylist()[0]
        one = run.unit(name, hit["unit"]).occlusion[hit["rank"]]
        if not one.activation.size:
            continue
        row, col = (rng.randrange(size) for size in one.activation.shape)
        y, x = int(one.y[row]), int(one.x[col])
        box = y, x, min(y + one.patch, hit["y1"]), min(x + one.patch, hit["x1"])
        seen = OnHit(name, hit["unit"], (hit["y"], hit["x"]), float(one.activation[row, col]))
        yield Square(hit["image_id"], hit["uri"], box, one.fill, seen)


def _keep(maps: dict[str, Tensor], layer: str, values: Tensor) -> None:
    maps[layer] = values.clone()  # what follows may overwrite it


def _covered(
    image: Float[Tensor, "1 channel row col"], square: Square, job: Job
) -> Float[Tensor, "1 channel row col"]:
    transform, (y0, x0, y1, x1) = job.packed.transform, square.box
    for channel, grey in enumerate(square.fill):
        mean, std = transform.mean[channel], transform.std[channel]
        image[:, channel, y0:y1, x0:x1] = (grey / 255 - mean) / std
    return image


def _of_image(
    seen: OnImage, logits: Tensor, maps: dict[str, Tensor], layers: dict[str, Layer]
) -> str | None:
    shares = torch.softmax(logits.flatten().double(), 0).numpy()
    if abs(shares[seen.target] - seen.probability) > TOLERANCE:
        return (
            f"the probability is {seen.probability:.6g}, but a plain forward pass finds "
            f"{shares[seen.target]:.6g}"
        )
    if shares.max() - shares[seen.label] > TOLERANCE:
        return f"the class is {seen.label}, but a plain forward pass finds {shares.argmax()}"
    for name, unit in seen.unit.items():
        own = _activation(maps[name][unit], layers[name])
        if abs(own.sum() - seen.activity[name]) > TOLERANCE * np.abs(own).sum() + 1e-6:
            return (
                f"the activity of unit {unit} of {name} is {seen.activity[name]:.6g}, but a plain "
                f"forward pass finds {own.sum():.6g}"
            )
    return None


def _of_hit(seen: OnHit, maps: dict[str, Tensor], layers: dict[str, Layer]) -> str | None:
    own = _activation(maps[seen.layer], layers[seen.layer])
    found = own[seen.unit][seen.place]
    if abs(found - seen.activation) > TOLERANCE * np.abs(own).max() + 1e-6:
        return (
            f"unit {seen.unit} of {seen.layer} is {seen.activation:.6g} there, but a plain forward "
            f"pass finds {found:.6g}"
        )
    return None


def _activation(maps: Tensor, layer: Layer) -> np.ndarray:
    """What the layer gives; of a rectifier with a ceiling its input was seen."""
    capped = maps if layer.ceiling is None else maps.clamp(max=layer.ceiling)
    return capped.double().cpu().numpy()
