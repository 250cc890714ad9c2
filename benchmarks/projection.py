"""How fast hits are projected beside Captum's NeuronDeconvolution on the same hits.

The hits are real: the nine strongest images of every unit among photographs (or noise, where there
are none), of a model with random weights.  Ours projects all hits of a layer, as a work item does;
Captum, one unit at a time, the nine images of it in one call, for a few units of each layer.  They
take turns in one process.  What is compared is the time of a hit, weighted by the hits of a layer.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from captum.attr import NeuronDeconvolution
from jaxtyping import Float, Int64
from torch import Tensor, nn

from deconvoy.spec import ModelSpec
from workers.actor import FORWARD_IMAGES
from workers.cones import Cone
from workers.deconvnet import Deconvnet
from workers.graph import Layer, Network
from workers.images import decode, normalise
from workers.job import trace
from workers.models import pack
from workers.switches import Switches

K = 9
UNITS = 3
"""Of each layer that Captum projects in a turn."""

TURNS = 3

SUBJECTS = {"alexnet": 25.0, "vgg16": 12.0, "squeezenet1_1": 8.0, "resnet18": 5.0}
"""The models, and how many times as fast ours is to be."""


@dataclass(frozen=True)
class LayerHits:
    """All hits of one layer."""

    unit: Int64[Tensor, " hit"]
    image: Int64[Tensor, " hit"]
    position: Int64[Tensor, "hit yx"]
    score: Float[Tensor, " hit"]


def measure(folder: str | None, count: int) -> Iterator[dict[str, Any]]:
    """One row a model.

    Args:
        folder: of photographs; None for noise.
        count: images.
    """
    for name, target in SUBJECTS.items():
        yield _measure(name, target, folder, count)


def _measure(name: str, target: float, folder: str | None, count: int) -> dict[str, Any]:
    packed = pack(ModelSpec(name=f"torchvision/{name}"), seed=0)
    network, model = trace(packed), packed.build().eval()
    for module in model.modules():  # Captum's hooks need what a rectifier overwrites
        if hasattr(module, "inplace"):
            module.inplace = False
    images = _images(folder, count)
    hits = _top(network, images)
    modules = dict(model.named_modules())
    compared = [
        layer
        for layer in network.layers
        if layer.is_map and isinstance(modules.get(layer.name), nn.Module)
    ]
    seconds: dict[str, list[tuple[float, float]]] = {layer.name: [] for layer in compared}
    for turn in range(TURNS + 1):
        for layer in compared:
            ours = _ours(network, layer, images, hits[layer.name])
            theirs = _captums(model, modules[layer.name], layer, images, hits[layer.name], turn)
            if turn:  # the first warms up
                seconds[layer.name].append((ours, theirs))
    weights = {layer.name: len(hits[layer.name].unit) for layer in compared}
    ours, theirs = (
        sum(weights[n] * median(pair[who] for pair in pairs) for n, pairs in seconds.items())
        / sum(weights.values())
        for who in (0, 1)
    )
    return {
        "model": name,
        "images": len(images),
        "hits": sum(weights.values()),
        "ours_ms": 1e3 * ours,
        "captum_ms": 1e3 * theirs,
        "ratio": theirs / ours,
        "target": target,
        "layers": {
            n: [1e3 * median(pair[who] for pair in pairs) for who in (0, 1)]
            for n, pairs in seconds.items()
        },
    }


def _images(folder: str | None, count: int) -> Float[Tensor, "image channel row col"]:
    transform = pack(ModelSpec(name="torchvision/alexnet"), seed=0).transform
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, 3, transform.crop, transform.crop, generator=generator)
    places = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    chosen = places[:: max(1, len(places) // count)][:count]
    pixels = torch.stack([decode(place.read_bytes(), transform).pixels for place in chosen])
    return normalise(pixels, transform)


@torch.inference_mode()
def _top(network: Network, images: Tensor) -> dict[str, LayerHits]:
    """The strongest images of every unit of every layer of maps."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def visit(layer: Layer, maps: Tensor) -> None:
        if layer.is_map:
            score, place = maps.flatten(2).max(2)
            found.setdefault(layer.name, []).append((score.clone(), place.clone()))

    for batch in images.split(FORWARD_IMAGES):
        network.forward(batch.clone(), visit)
    return {name: _hits(network.layer(name), parts) for name, parts in found.items()}


def _hits(layer: Layer, parts: list[tuple[Tensor, Tensor]]) -> LayerHits:
    scores, places = (torch.cat([part[i] for part in parts]).T for i in (0, 1))
    score, image = scores.topk(min(K, scores.shape[1]))
    place = places.gather(1, image)
    unit = torch.arange(layer.units)[:, None].expand_as(image)
    there = score > 0
    position = torch.stack([place // layer.width, place % layer.width], -1)
    return LayerHits(unit[there], image[there], position[there], score[there])


@torch.no_grad()
def _ours(network: Network, layer: Layer, images: Tensor, hits: LayerHits) -> float:
    """Seconds a hit, with the forward pass of each image in it once."""
    begin = time.perf_counter()
    cone, deconvnet = Cone(network, layer), Deconvnet(network)
    used = hits.image.unique()
    switches = Switches.joined(
        [network.switches(images[part], cone.path) for part in used.split(FORWARD_IMAGES)]
    )
    row, position = torch.searchsorted(used, hits.image), hits.position.numpy()
    for group in cone.batches(position, number_bytes=4):
        at = torch.from_numpy(group.hits)
        deconvnet.project(
            cone, group, switches, row[at], hits.unit[at], position[group.hits], hits.score[at]
        )
    return (time.perf_counter() - begin) / len(hits.unit)


def _captums(
    model: nn.Module, module: nn.Module, layer: Layer, images: Tensor, hits: LayerHits, turn: int
) -> float:
    """Seconds a hit."""
    peer = NeuronDeconvolution(model, module)
    units = hits.unit.unique()
    generator = torch.Generator().manual_seed(turn)
    times = []
    for unit in units[torch.randperm(len(units), generator=generator)[:UNITS]].tolist():
        own = hits.unit == unit
        y, x = hits.position[own][0].tolist()
        begin = time.perf_counter()
        peer.attribute(images[hits.image[own]].clone().requires_grad_(), (unit, y, x))
        times.append((time.perf_counter() - begin) / int(own.sum()))
    return median(times)
