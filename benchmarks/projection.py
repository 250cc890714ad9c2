"""How fast hits are projected beside Captum's NeuronDeconvolution on the same hits.

The hits are real: the nine strongest images of every unit among photographs (or noise, where there
are none), of a model with random weights or those given.  Ours projects whole work items of a layer
as a worker does, in lanes of one thread each, with what it keeps from the items before; Captum, one
unit at a time, the nine images of it in one call, on all cores.  They take turns in one process.
What is compared is the time of a hit, each layer's weighted by its units.

``apart`` is the same with every hit on an image of its own, as in a data set of millions.  The
difference is the median over the hits compared; where rounding flips a switch, one is larger.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from captum.attr import NeuronDeconvolution
from jaxtyping import Float, Int64
from torch import Tensor, nn

from benchmarks.comparison import Comparison, largest_difference
from benchmarks.multiply_adds import counted, in_full
from deconvoy.spec import ModelSpec, StorageSpec, Transform
from workers.graph import Layer, Network
from workers.images import Picture, decode, normalise, read_ahead
from workers.job import trace
from workers.machine import cores
from workers.models import pack
from workers.projector import Batch, Hits, Projector, expected_reuse
from workers.writer import units_per_item

K = 9
PEER_UNITS = 48
"""Of a model, that Captum projects: at least one of each layer."""

TURNS = 3
SCANNED = 8
"""Images in a batch of the scan for the hits."""

SUBJECTS = {
    "alexnet": (25.0, 6.0),
    "vgg16": (12.0, 2.5),
    "squeezenet1_1": (8.0, None),
    "resnet18": (5.0, None),
}
"""The models, and how many times as fast ours is to be: on the real images, and apart."""


@dataclass(frozen=True)
class LayerHits:
    """The strongest images of each unit of a layer; -1 where there is none."""

    image: Int64[np.ndarray, "unit rank"]
    position: Int64[np.ndarray, "unit rank yx"]
    score: Float[np.ndarray, "unit rank"]


def measure(folder: Path | None, count: int) -> Iterator[Comparison]:
    """A row or two a model.

    Args:
        folder: of photographs; None for noise.
        count: images.
    """
    for name, targets in SUBJECTS.items():
        yield from _Subject(name, folder, count).rows(targets)


class _Subject:
    def __init__(self, name: str, folder: Path | None, count: int) -> None:
        self.name = name
        packed = pack(ModelSpec(name=f"torchvision/{name}"), seed=0)
        self.transform = packed.transform
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = trace(packed).to(self.device)
        self.model = packed.build().eval().to(self.device)
        modules: Iterator[Any] = iter(self.model.modules())
        for module in modules:  # Captum's hooks need what a rectifier overwrites
            if hasattr(module, "inplace"):
                module.inplace = False
        self.pictures = _pictures(folder, count, self.transform)
        self.hits = _top(self.network, self.pictures, self.transform, self.device)
        self.modules = _outputs(self.network, self.model)
        self.layers = [
            layer
            for layer in self.network.layers
            if layer.name in self.hits and layer.name in self.modules
        ]
        torch.set_num_threads(1)
        lanes = 1 if self.device.type == "cuda" else cores()
        self.lanes = ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(1,))

    def rows(self, targets: tuple[float, float | None]) -> Iterator[Comparison]:
        for apart, target in zip((False, True), targets, strict=True):
            if target is not None:
                yield self._row(apart, target)

    def _row(self, apart: bool, target: float) -> Comparison:
        projector = Projector(self.network, self.transform, self.device)
        if not apart:
            self._fill(projector)
        found: dict[str, list[tuple[float, float]]] = {layer.name: [] for layer in self.layers}
        differences: list[float] = []
        units = max(1, PEER_UNITS // len(self.layers))
        for turn in range(TURNS):
            for layer in self.layers:
                chosen = int(np.random.default_rng(turn % units).integers(layer.units))
                theirs, picture = self._captums(layer, chosen)
                ours, signal, _ = self._ours(projector, layer, chosen, apart)
                if theirs is None or ours is None:
                    continue
                found[layer.name].append((ours, theirs))
                if signal is not None and picture is not None:
                    differences.append(largest_difference(signal, picture))
        weights = {n: self.network.layer(n).units for n, pairs in found.items() if pairs}
        each = [
            [_weighted(weights, {n: found[n][turn % len(found[n])][who] for n in weights})
             for turn in range(TURNS)]
            for who in (0, 1)
        ]  # fmt: skip
        return Comparison(
            what="projection, every hit its own image" if apart else "projection",
            model=self.name,
            against=f"Captum NeuronDeconvolution, {K} images a call",
            per="hit",
            ours=each[0],
            theirs=each[1],
            at_least=target,
            difference=median(differences),
            work=self._share_of_work(projector, apart, weights),
            details={
                "images": len(self.pictures),
                "largest_difference": max(differences),
                "compared": len(differences),
                "differ_by_more_than_1e-4": sum(d > 1e-4 for d in differences),
                "layers_ms": {
                    n: [[1e3 * seconds for seconds in pair] for pair in pairs]
                    for n, pairs in found.items()
                },
            },
        )

    def _share_of_work(
        self, projector: Projector, apart: bool, weights: Mapping[str, int]
    ) -> float:
        """Of an item of every layer; each layer's weighted by its units."""
        done, full = {}, {}
        for name in weights:
            layer = self.network.layer(name)
            with counted() as each:
                hits = self._ours(projector, layer, layer.units // 2, apart)[2]
            done[name] = sum(each) / max(1, hits)
            full[name] = in_full(self.network, layer)
        return _weighted(weights, done) / _weighted(weights, full)

    def _fill(self, projector: Projector) -> None:
        """One item of every layer, as a worker that is under way has done."""
        for layer in self.layers:
            self._ours(projector, layer, 0, False)

    def _ours(
        self, projector: Projector, layer: Layer, unit: int, apart: bool
    ) -> tuple[float | None, Tensor | None, int]:
        """Seconds a hit of the work item that the unit is in; the unit's first projection; how many
        hits."""
        size = units_per_item(layer, K, StorageSpec())
        start = unit // size * size
        item = _item(self.hits[layer.name], start, start + size)
        if not len(item.unit):
            return None, None, 0
        leases = -(-layer.units // size)
        reuse, pictures = expected_reuse(leases, K * size, len(self.pictures)), self.pictures
        if apart:
            reuse, pictures = 1.0, [self.pictures[i] for i in item.image]
            item = replace(item, image=np.arange(len(item.image)))
        first = np.flatnonzero(item.unit == unit)[:1]
        wanted: list[Tensor] = []

        def project(batch: Batch) -> None:
            side = self.transform.crop
            for which, projection in projector.project(layer, item, batch):
                for at in np.flatnonzero(np.isin(which, first)):
                    whole = projection.whole(side, side)[at].cpu()
                    wanted.append(whole / item.seed[first[0]])

        def in_lanes(work: Any, things: Any) -> Iterator[Any]:
            for future in read_ahead(self.lanes, work, things, ahead=cores()):
                yield future.result()

        torch.set_num_threads(1)
        begin = time.perf_counter()
        given = projector.batches(
            layer, item, reuse, lambda ids: iter([pictures[i] for i in ids]), in_lanes
        )
        for _ in in_lanes(project, given):
            pass
        spent = _since(begin)
        return spent / len(item.unit), wanted[0] if wanted else None, len(item.unit)

    def _captums(self, layer: Layer, unit: int) -> tuple[float | None, Tensor | None]:
        """Seconds a hit; the first projection."""
        hits = self.hits[layer.name]
        there = hits.image[unit] >= 0
        if not there.any():
            return None, None
        peer = NeuronDeconvolution(self.model, self.modules[layer.name])
        pixels = torch.stack([self.pictures[i].pixels for i in hits.image[unit][there]])
        images = normalise(pixels.to(self.device), self.transform).requires_grad_()
        y, x = hits.position[unit][there][0].tolist()
        torch.set_num_threads(cores())
        begin = time.perf_counter()
        signal = peer.attribute(images, (unit, y, x))
        spent = _since(begin)
        torch.set_num_threads(1)
        return spent / int(there.sum()), signal[0].detach().cpu()


def _since(begin: float) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _outputs(network: Network, model: nn.Module) -> dict[str, nn.Module]:
    """The module whose output a layer is, where the layer is its last call: that is what Captum
    takes of a module that is called several times."""
    modules, last = dict(model.named_modules()), dict[str, str]()
    for layer in network.layers:
        step = network.steps[layer.step]
        if step.node.op == "call_module":
            last[str(step.node.target)] = layer.name
    return {name: modules[target] for target, name in last.items()}


def _weighted(weights: Mapping[str, int], seconds: Mapping[str, float]) -> float:
    """Of a hit, each layer's weighted by its units."""
    return sum(weights[n] * seconds[n] for n in weights) / sum(weights.values())


def _item(hits: LayerHits, start: int, stop: int) -> Hits:
    """All hits of some units."""
    row, rank = np.nonzero(hits.image[start:stop] >= 0)
    at = row + start, rank
    return Hits(hits.image[at], at[0], hits.position[at], torch.from_numpy(hits.score[at]))


def _pictures(folder: Path | None, count: int, transform: Transform) -> list[Picture]:
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        shape = count, 3, transform.crop, transform.crop
        noise = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        return [Picture(pixels, transform.crop, transform.crop) for pixels in noise]
    places = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    chosen = places[:: max(1, len(places) // count)][:count]
    return [decode(place.read_bytes(), transform) for place in chosen]


@torch.inference_mode()
def _top(
    network: Network, pictures: Sequence[Picture], transform: Transform, device: torch.device
) -> dict[str, LayerHits]:
    """The strongest images of every unit of every layer of maps."""
    best: dict[str, tuple[Tensor, ...]] = {}
    start = 0

    def visit(layer: Layer, maps: Tensor) -> None:
        if not layer.is_map:
            return
        score, place = maps.flatten(2).max(2)
        image = torch.arange(start, start + len(maps), device=maps.device)
        image = image[:, None].expand_as(place)
        known = best.get(layer.name, ())
        parts = [torch.cat(pair) for pair in zip(known, (score, place, image), strict=False)] or [
            score.clone(), place, image,
        ]  # fmt: skip
        _, order = parts[0].topk(min(K, len(parts[0])), 0)
        best[layer.name] = tuple(part.gather(0, order) for part in parts)

    for start in range(0, len(pictures), SCANNED):
        pixels = torch.stack([picture.pixels for picture in pictures[start : start + SCANNED]])
        network.forward(normalise(pixels.to(device), transform), visit)
    return {
        name: _hits(network.layer(name), *(part.cpu() for part in parts))
        for name, parts in best.items()
    }


def _hits(layer: Layer, score: Tensor, place: Tensor, image: Tensor) -> LayerHits:
    position = torch.stack([place // layer.width, place % layer.width], -1).transpose(0, 1)
    image = torch.where(score > 0, image, -1)
    return LayerHits(image.T.numpy(), position.numpy(), score.T.numpy())
