"""Scan a shard of images: one forward pass serves all layers and finds each unit's strongest hits.

Per feature map the spatial maximum is taken, and its place: on a CPU in the pass that rectifies it
(``workers.peaks``), on a GPU only of those maxima that enter the running k strongest.  A lease
brings the scores known so far, so that a partial result holds only hits that can still enter.
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
        self._histogram = torch.zeros(units * BINS, dtype=torch.int64, device=device)
        self._layers = layers

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
        eligible = valid if copies is None else valid & ~copies
        first = int(ids[0])
        self._maxima.append((first, self._score.new_zeros(len(self._score), dtype=torch.float64)))

        def visit(layer: Layer, maps: Tensor, rectify: bool = False) -> None:
            if layer.name in self._number:
                maxima = self._see(layer, maps, ids, valid, eligible, rectify)
                if scores is not None:
                    units = self._index.units_of(self._number[layer.name])
                    scores[:, units] = maxima.float().cpu().numpy()
            elif rectify:
                maps.clamp_(min=0)

        try:
            logits = self._network.forward(images, visit, partial(visit, rectify=True))
            _require_finite(self._network.layers[-1], logits.flatten(1), valid)
        except _NotFinite as found:
            image = str(int(ids[found.row]))
            name = f" ({uris[found.row]})" if uris and uris[found.row] != image else ""
            raise ActivationInvalid(
                f"Layer {found.layer!r}, unit {found.unit}: the activation over image "
                f"{image}{name} is {found.value}, but activations must be finite: check "
                "the weights for NaN and the transform for the right mean and deviation, and start "
                "a new run."
            ) from None
        probability, predicted = logits.flatten(1).float().softmax(1).max(1)
        return Prediction(predicted.cpu().numpy(), probability.cpu().numpy())

    def _see(
        self,
        layer: Layer,
        maps: Tensor,
        ids: Tensor,
        valid: Tensor,
        eligible: Tensor,
        rectify: bool,
    ) -> Float[Tensor, "image unit"]:
        places = None
        fits = can_find(maps)
        if rectify and not fits:
            maps.clamp_(min=0)
        if maps.dtype == torch.bfloat16 and loops.serve(maps.device):
            maps = maps.float()
            fits = can_find(maps)
        if fits:
            maxima, places = peaks(maps, rectify)
        else:
            maxima = maps.amax((2, 3)) if maps.ndim == 4 else maps  # (image, unit)
        maxima = maxima.to(torch.promote_types(maxima.dtype, torch.float32))
        if layer.ceiling is not None:
            maxima = maxima.clamp(min=0)
        _require_finite(layer, maxima, valid)
        units = self._index.units_of(self._number[layer.name])
        if loops.serve(maps.device):
            if places is None:
                places = _places(maps)
            self._take_in(units, maxima, places, ids, valid, eligible, layer.rectified)
            return maxima
        self._count(units, maxima[valid])
        candidates = maxima.masked_fill(~eligible[:, None], MISSING_SCORE)
        if layer.rectified:  # a zero is no hit
            candidates = candidates.masked_fill(candidates <= 0, MISSING_SCORE)
        self._keep_strongest(units, candidates, maps, ids)
        return maxima

    def _take_in(
        self,
        units: slice,
        maxima: Float[Tensor, "image unit"],
        places: Int64[Tensor, "image unit"],
        ids: Int64[Tensor, " image"],
        valid: Bool[Tensor, " image"],
        eligible: Bool[Tensor, " image"],
        rectified: bool,
    ) -> None:
        """Count and rank, in one loop."""
        take_in(
            maxima.contiguous().numpy(), places.numpy(), ids.numpy(), valid.numpy(),
            eligible.numpy(), rectified, self._floor[units].numpy(), self._edges.numpy(),
            self._score[units].numpy(), self._image[units].numpy(), self._place[units].numpy(),
            self._maxima[-1][1][units].numpy(), self._active[units].numpy(),
            self._histogram.view(-1, BINS)[units].numpy(),
        )  # fmt: skip

    def _count(self, units: slice, maxima: Float[Tensor, "image unit"]) -> None:
        self._maxima[-1][1][units] = maxima.double().sum(0)
        self._active[units] += (maxima > 0).sum(0)
        bins = torch.bucketize(maxima, self._edges, right=True) - 1
        bins += BINS * torch.arange(maxima.shape[1], device=maxima.device)
        counted = torch.bincount(bins.flatten(), minlength=BINS * maxima.shape[1])
        self._histogram[units.start * BINS : units.stop * BINS] += counted

    def _keep_strongest(
        self,
        units: slice,
        candidates: Float[Tensor, "image unit"],
        maps: Tensor,
        ids: Tensor,
    ) -> None:
        # Ids increase, so a later image that only equals the last rank loses the tie; against the
        # floor, which may come from later images, an equal one must stay.
        enters = (candidates > self._score[units, -1]) & (candidates >= self._floor[units])
        rows = enters.any(0).nonzero().squeeze(1)
        if not len(rows):
            return
        entering = candidates[:, rows].masked_fill(~enters[:, rows], MISSING_SCORE)
        everyone = torch.cat([self._score[units][rows], entering.T.float()], dim=1)
        ranked, source = everyone.sort(dim=1, descending=True, stable=True)
        ranked, source = ranked[:, : self._k], source[:, : self._k]
        row, rank = (source >= self._k).nonzero(as_tuple=True)
        batch_row = source[row, rank] - self._k

        old = source.clamp(max=self._k - 1)
        image = self._image[units][rows].gather(1, old)
        place = self._place[units][rows].gather(1, old)
        image[row, rank] = ids[batch_row]
        if maps.ndim == 4:
            # argmax gives the first of several maxima: reading order
            place[row, rank] = maps[batch_row, rows[row]].flatten(1).argmax(1)
        else:
            place[row, rank] = 0
        rows = rows + units.start
        self._score[rows], self._image[rows], self._place[rows] = ranked, image, place

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


def _places(maps: Tensor) -> Int64[Tensor, "image unit"]:
    """Of the maxima; the first of several, in reading order."""
    return (
        maps.flatten(2).argmax(2) if maps.ndim == 4 else torch.zeros_like(maps, dtype=torch.int64)
    )


@dataclass
class _NotFinite(Exception):
    """The first activation of a layer that is NaN or infinite."""

    layer: str
    unit: int
    row: int
    """Of the batch."""
    value: float


def _require_finite(layer: Layer, maxima: Float[Tensor, "image unit"], valid: Tensor) -> None:
    bad = (~torch.isfinite(maxima)) & valid[:, None]
    if bad.any():
        row, unit = (int(i) for i in bad.nonzero()[0])
        raise _NotFinite(layer.name, unit, row, float(maxima[row, unit]))


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
        sums.histogram.__iadd__(lane._histogram.view(-1, BINS).cpu().numpy())
    return hits, sums
