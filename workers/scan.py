"""Scan a shard of images: one forward pass serves all layers and finds each unit's strongest hits.

Per feature map the spatial maximum is taken, and its place, before the next step may overwrite it:
on a CPU in the pass that rectifies it (``workers.peaks``).  When the model is through, the maxima
of all layers are counted and ranked at once: on a CPU in one loop (``workers.tally``), on a GPU,
which must not be waited for at every layer, by operations on tensors.  A lease brings the scores
known so far, so that a partial result holds only hits that can still enter.
(Top nine: Zeiler & Fergus 2013, Fig. 2.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from deconvoy.errors import ActivationInvalid
from deconvoy.schema import MISSING_IMAGE, MISSING_SCORE, histogram_edges
from workers import loops
from workers.graph import Layer, Network
from workers.peaks import can_find, peaks
from workers.tally import merge, take_in
from workers.topk import BINS, Hits, UnitIndex, UnitSums


@dataclass(frozen=True)
class Prediction:
    """The model's answer to a batch."""

    predicted: Int64[np.ndarray, " image"]
    probability: Float32[np.ndarray, " image"]


class ShardScan:
    """The running result of one lane of a shard; batches come in increasing order of image ids.

    A shard is scanned by as many lanes as the worker has threads, and ``combined`` joins them:
    which lane took which batch leaves no trace.

    Args:
        floor: score each unit's hit must reach to enter the final k; −inf where any may.
    """

    def __init__(
        self, network: Network, layers: Sequence[Layer], k: int, floor: Float[Tensor, " unit"]
    ) -> None:
        self._network = network
        self._index = UnitIndex.of([layer.units for layer in layers])
        self._number = {layer.name: number for number, layer in enumerate(layers)}
        units, device = self._index.total, floor.device
        self._k = k
        self._floor = floor
        self._score = torch.full((units, k), MISSING_SCORE, device=device)
        self._image = torch.full((units, k), MISSING_IMAGE, dtype=torch.int64, device=device)
        self._place = torch.zeros((units, k), dtype=torch.int64, device=device)
        self._edges = torch.tensor(histogram_edges(), dtype=torch.float32, device=device)
        self._maxima: list[tuple[int, Float64[Tensor, " unit"]]] = []
        self._active = torch.zeros(units, dtype=torch.int64, device=device)
        self._histogram = torch.zeros((units, BINS), dtype=torch.int64, device=device)
        self._layers = layers
        rectified = [layer.rectified for layer in layers for _ in range(layer.units)]
        self._rectified = torch.tensor(rectified, device=device)
        """A zero is no hit."""

    @torch.inference_mode()
    def add(
        self,
        images: Float[Tensor, "image channel row col"],
        ids: Int64[Tensor, " image"],
        valid: Bool[Tensor, " image"],
        uris: Sequence[str] = (),
        copies: Bool[Tensor, " image"] | None = None,
        scores: Float32[np.ndarray, "image unit"] | None = None,
    ) -> Prediction:
        """Scan one batch.

        Args:
            valid: False for rows that only fill the batch up; they leave no trace.
            uris: names of the images, for errors.
            copies: True for images that are counted but cannot be hits: one just like each came
                before.
            scores: filled with the maxima of all units.

        Raises:
            ActivationInvalid: a layer is NaN or infinite on an image; names both.
        """
        first = int(ids[0])
        seen: dict[int, tuple[Tensor, Tensor]] = {}

        def visit(layer: Layer, maps: Tensor, rectify: bool = False) -> None:
            if layer.name in self._number:
                seen[self._number[layer.name]] = _peaks_of(layer, maps, rectify)
            elif rectify:
                maps.clamp_(min=0)

        logits = self._network.forward(images, visit, partial(visit, rectify=True)).flatten(1)
        in_order = (seen[number] for number in range(len(self._layers)))
        maxima, places = (torch.cat(each, 1) for each in zip(*in_order, strict=True))
        eligible = valid if copies is None else valid & ~copies
        self._require_finite(maxima, logits, ids, valid, uris)
        self._maxima.append((first, self._score.new_zeros(len(self._score), dtype=torch.float64)))
        if loops.serve(maxima.device):
            self._take_in(maxima, places, ids, valid, eligible)
        else:
            self._count(maxima, valid)
            self._keep_strongest(maxima, places, ids, eligible)
        if scores is not None:
            scores[:] = maxima.float().cpu().numpy()
        probability, predicted = logits.float().softmax(1).max(1)
        return Prediction(predicted.cpu().numpy(), probability.cpu().numpy())

    def _require_finite(
        self,
        maxima: Float[Tensor, "image unit"],
        logits: Float[Tensor, "image output"],
        ids: Int64[Tensor, " image"],
        valid: Bool[Tensor, " image"],
        uris: Sequence[str],
    ) -> None:
        """Names the first layer that is NaN or infinite on an image, the first such image, and its
        first such unit; the model's output is looked at, too, where it is not among the layers."""
        if bool((torch.isfinite(maxima).all(1) & torch.isfinite(logits).all(1) | ~valid).all()):
            return
        numbered = [
            *((layer, maxima[:, self._index.units_of(n)]) for n, layer in enumerate(self._layers)),
            (self._network.layers[-1], logits),
        ]
        layer, values = next(
            (layer, values) for layer, values in numbered if not torch.isfinite(values[valid]).all()
        )
        row, unit = (int(i) for i in (~torch.isfinite(values) & valid[:, None]).nonzero()[0])
        image = str(int(ids[row]))
        name = f" ({uris[row]})" if uris and uris[row] != image else ""
        raise ActivationInvalid(
            f"Layer {layer.name!r}, unit {unit}: the activation over image {image}{name} is "
            f"{float(values[row, unit])}, but activations must be finite: check the weights for "
            "NaN and the transform for the right mean and deviation, and start a new run."
        )

    def _take_in(
        self,
        maxima: Float[Tensor, "image unit"],
        places: Int64[Tensor, "image unit"],
        ids: Int64[Tensor, " image"],
        valid: Bool[Tensor, " image"],
        eligible: Bool[Tensor, " image"],
    ) -> None:
        """Count and rank, in one loop."""
        take_in(
            maxima.numpy(), places.numpy(), ids.numpy(), valid.numpy(), eligible.numpy(),
            self._rectified.numpy(), self._floor.numpy(), self._edges.numpy(),
            self._score.numpy(), self._image.numpy(), self._place.numpy(),
            self._maxima[-1][1].numpy(), self._active.numpy(), self._histogram.numpy(),
        )  # fmt: skip

    def _count(self, maxima: Float[Tensor, "image unit"], valid: Bool[Tensor, " image"]) -> None:
        counts = valid[:, None]
        self._maxima[-1][1].add_(maxima.masked_fill(~counts, 0).sum(0, dtype=torch.float64))
        self._active += ((maxima > 0) & counts).sum(0)
        bins = torch.bucketize(maxima, self._edges, right=True).clamp_(1, BINS) - 1
        self._histogram.scatter_add_(1, bins.T, counts.T.expand_as(bins.T).long())

    def _keep_strongest(
        self,
        maxima: Float[Tensor, "image unit"],
        places: Int64[Tensor, "image unit"],
        ids: Int64[Tensor, " image"],
        eligible: Bool[Tensor, " image"],
    ) -> None:
        """Waits for the device once, to learn of which units any maximum enters."""
        maxima = maxima.float()
        no_hit = ~eligible[:, None] | (self._rectified & (maxima <= 0))
        # Ids increase, so a later image that only equals the last rank loses the tie; against the
        # floor, which may come from later images, an equal one must stay.
        enters = (maxima > self._score[:, -1]) & (maxima >= self._floor) & ~no_hit
        units = enters.any(0).nonzero().squeeze(1)
        entering = maxima.masked_fill(~enters, MISSING_SCORE)[:, units].T
        everyone = torch.cat([self._score[units], entering], dim=1)
        ranked, source = everyone.sort(dim=1, descending=True, stable=True)
        source = source[:, : self._k]
        image = torch.cat([self._image[units], ids.expand(len(units), -1)], dim=1)
        place = torch.cat([self._place[units], places[:, units].T], dim=1)
        self._score[units] = ranked[:, : self._k]
        self._image[units] = image.gather(1, source)
        self._place[units] = place.gather(1, source)

    def strongest(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores, image ids and places of the hits that may still enter, (unit, rank)."""
        score, image, place = (t.cpu().numpy() for t in (self._score, self._image, self._place))
        return score, image, place

    def hits(self) -> Hits:
        """The hits that may still enter, by unit and rank."""
        return combined([self])[0]

    def _as_hits(self, score: np.ndarray, image: np.ndarray, place: np.ndarray) -> Hits:
        unit, rank = np.nonzero(image != MISSING_IMAGE)
        width = np.repeat(
            [layer.width for layer in self._layers], [layer.units for layer in self._layers]
        )[unit]
        at = place[unit, rank]
        position = np.stack([at // width, at % width], axis=1).astype(np.int32)
        found = image[unit, rank]
        return Hits(unit.astype(np.int32), score[unit, rank], found, position, content=found)

    def sums(self) -> UnitSums:
        return combined([self])[1]


def _peaks_of(
    layer: Layer, maps: Tensor, rectify: bool
) -> tuple[Float[Tensor, "image unit"], Int64[Tensor, "image unit"]]:
    """The maxima of a layer's maps and their places, row by row; of equals the first.

    Args:
        rectify: set what is below zero to zero first, in place.
    """
    if rectify and not can_find(maps):
        maps.clamp_(min=0)
    if maps.dtype == torch.bfloat16 and loops.serve(maps.device):
        maps = maps.float()
    if can_find(maps):
        maxima, places = peaks(maps, rectify)
    elif maps.ndim == 2:
        maxima, places = maps, torch.zeros_like(maps, dtype=torch.int64)
    elif maps.is_contiguous(memory_format=torch.channels_last):
        maxima, places = maps.permute(0, 2, 3, 1).flatten(1, 2).max(1)
    else:
        maxima, places = maps.flatten(2).max(2)
    maxima = maxima.to(torch.promote_types(maxima.dtype, torch.float32))
    return maxima if layer.ceiling is None else maxima.clamp(min=0), places


def combined(lanes: Sequence[ShardScan]) -> tuple[Hits, UnitSums]:
    """The result of a shard from those of its lanes; floating sums are added in image order."""
    score, image, place = map(np.stack, zip(*(lane.strongest() for lane in lanes), strict=True))
    hits = lanes[0]._as_hits(*merge(score, image, place))
    batches = sorted((batch for lane in lanes for batch in lane._maxima), key=lambda b: b[0])
    sums = UnitSums.zero(len(lanes[0]._score))
    for _, maxima in batches:
        sums.maxima.__iadd__(maxima.cpu().numpy())
    for lane in lanes:
        sums.active.__iadd__(lane._active.cpu().numpy())
        sums.histogram.__iadd__(lane._histogram.cpu().numpy())
    return hits, sums
