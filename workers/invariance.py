"""How far a layer's features move when the image does.

An image and its moved copies go through the network together, and of every layer the Euclidean
distance between the features of the one and of each other is kept, of all its maps and places
together; beside it the probabilities of the classes.

Source: Zeiler & Fergus (ECCV 2014, arXiv:1311.2901), Fig. 5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, UInt8
from torch import Tensor

from deconvoy.spec import Transform
from workers.graph import Layer, Network
from workers.images import chunks, normalise_levels
from workers.lanes import Lanes
from workers.transformations import Border, Move, moved


@dataclass(frozen=True)
class Moved:
    """What moving one image does to it."""

    distance: Float64[np.ndarray, "move layer"]
    """Euclidean, between the features of the image and those of the moved one."""
    norm: Float64[np.ndarray, " layer"]
    """Euclidean, of the image's features."""
    logits: Float32[np.ndarray, "move output"]
    clean_logits: Float32[np.ndarray, " output"]


def invariance(
    network: Network,
    layers: Sequence[Layer],
    pixels: UInt8[Tensor, "channel row col"],
    moves: Sequence[Move],
    border: Border,
    fill: Sequence[float],
    transform: Transform,
    batch_size: int,
    lanes: Lanes = map,
    advance: Callable[[int], None] = lambda count: None,
) -> Moved:
    """Move one image and compare.

    Args:
        pixels: the preprocessed image, before normalisation.
        border: what lies beyond it; ``fill`` where that is ``mean``.
        fill: 0–255, a number a channel.
        batch_size: images a forward pass, at least 2: the unmoved one is the first in every pass,
            so that both sides of a distance come from one pass.
        lanes: batches are cut from ``moves`` alone, so results do not depend on how many there are.
        advance: told how many moves a batch had.
    """

    def compare_batch(batch: Sequence[Move]) -> Compared:
        images = torch.zeros((batch_size, *pixels.shape), dtype=torch.float32)
        images[0] = pixels
        images[1 : len(batch) + 1] = moved(pixels, batch, border, fill)
        images = normalise_levels(images.to(network.device), transform)
        compared = compare(network, layers, images, len(batch))
        advance(len(batch))
        return compared

    found: list[Compared] = list(lanes(compare_batch, chunks(moves, batch_size - 1)))
    return Moved(
        distance=np.concatenate([one.distance for one in found]),
        norm=found[0].norm,
        logits=np.concatenate([one.logits[1:] for one in found]),
        clean_logits=found[0].logits[0],
    )


@dataclass(frozen=True)
class Compared:
    """One image beside others."""

    distance: Float64[np.ndarray, "other layer"]
    norm: Float64[np.ndarray, " layer"]
    """Of the one."""
    logits: Float[np.ndarray, "image output"]
    """Of the one, then of the others."""


@torch.inference_mode()
def compare(
    network: Network,
    layers: Sequence[Layer],
    images: Float[Tensor, "image channel row col"],
    others: int,
) -> Compared:
    """How far the features of the images 1 to ``others`` are from those of image 0.

    Args:
        images: normalised; more than ``others`` + 1 only fill the batch.
    """
    numbers = {layer.name: number for number, layer in enumerate(layers)}
    distance, norm = np.zeros((others, len(layers))), np.zeros(len(layers))

    def see(layer: Layer, values: Tensor) -> None:
        number = numbers.get(layer.name)
        if number is None:
            return
        if layer.ceiling is not None:  # seen before it is cut off
            values = values.clamp(0, layer.ceiling)
        norm[number] = _length(values[0])
        for other in range(others):  # one by one: a batch of maps in float64 is twice as large
            distance[other, number] = _length(values[other + 1] - values[0])

    logits = network.forward(images, see).flatten(1)
    return Compared(distance, norm, logits[: others + 1].cpu().numpy())


def _length(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values.flatten(), dtype=torch.float64))
