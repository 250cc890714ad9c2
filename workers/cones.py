"""Cones: where the signal of one position of a layer can be, step by step down to the image.

A position's cone widens from a point at the layer to its receptive field at the image.  Hits are
projected in groups, and a group has one window a step, so that its signals are one tensor: either
it *moves* with the position by the step's stride, or it is *fixed*, the same part of the map for
all, whichever is smaller.  A moving window may hang over the border of the map; what lies outside
does not exist and must be zero.  Steps that look at everything below (linear layers, means) have
no windows: there and below, where needed, the signal is the whole tensor.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from workers.fields import Window
from workers.graph import Layer, Network
from workers.ops import Down, Reach
from workers.portions import portions_on
from workers.sight import Sight, sliding_window
from workers.steps import Step

Positions = Int64[np.ndarray, " hit"]

Bands = Int64[np.ndarray, "..."]

SLACKS = (0.1, 0.3, 1.0, 3.0, np.inf)
"""How much larger the windows of a group may be than those of its positions alone: the first with
which groups have enough hits on average (``workers.portions``)."""

SPARSE_FROM = 4
"""Places for each value of an unpooling; the rectifier then takes half of the values away."""


@dataclass(frozen=True)
class Reaches:
    """Of every position of a layer along one axis: where its signal can be in a step's map."""

    stride: int
    """Of the moving window; 0 where branches of different strides meet, so that none moves."""
    low: Int64[np.ndarray, " position"]
    high: Int64[np.ndarray, " position"]
    """Half-open, clipped to the map."""
    length: int
    """Of the map."""

    def down(self, window: Window, length: int) -> "Reaches":
        """Through a sliding window, to its input of that length."""
        extent = window.dilation * (window.kernel - 1) + 1
        low = (self.low * window.stride - window.padding).clip(0, length - 1)
        high = (self.high - 1) * window.stride - window.padding + extent
        return Reaches(self.stride * window.stride, low, high.clip(low + 1, length), length)

    def joined(self, other: "Reaches") -> "Reaches":
        stride = self.stride if self.stride == other.stride else 0
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return Reaches(stride, low, high, self.length)

    def span(self, positions: Positions, fixed: bool) -> "Span":
        """The smallest that holds the signal of all these positions."""
        moves = 0 if fixed else self.stride
        start = int((self.low[positions] - positions * moves).min())
        end = int((self.high[positions] - positions * moves).max())
        return Span(moves, start, end - start, self.length)


@dataclass(frozen=True)
class Span:
    """One axis of a window: position p of the layer has ``[p·moves + start, … + size)``."""

    moves: int
    start: int
    size: int
    length: int
    """Of the map."""

    def down(self, window: Window, length: int) -> "Span":
        """All that a window touches in its input, of that length; unclipped."""
        size = (self.size - 1) * window.stride + window.dilation * (window.kernel - 1) + 1
        start = self.start * window.stride - window.padding
        return Span(self.moves * window.stride, start, size, length)

    def origins(self, positions: Positions) -> Positions:
        return positions * self.moves + self.start

    def overhangs(self, positions: Positions) -> bool:
        origins = self.origins(positions)
        return bool(origins.min() < 0 or origins.max() + self.size > self.length)


@dataclass(frozen=True)
class Group:
    """Hits projected together, and the window of each step."""

    hits: Int64[np.ndarray, " hit"]
    """Which of those given."""
    windows: Mapping[int, tuple[Span, Span] | None]
    """By step; rows and columns, or None where the signal is the whole tensor."""


class Cone:
    """The cones of all positions of one layer."""

    def __init__(self, network: Network, layer: Layer) -> None:
        self.layer = layer
        self.path = network.path_to(layer)
        self._network = network
        self._sights = network.sights
        self.reaches: dict[int, tuple[Reaches, Reaches] | None] = {layer.step: self._point()}
        for step in reversed(self.path):
            if step.index in self.reaches:
                for source in self._signalled(step):
                    self._join(source, self._down(step, network.steps[source]))

    def groups(self, position: Int64[np.ndarray, "hit yx"]) -> Iterator[Group]:
        """All hits, in groups whose windows are little larger than those of each alone."""
        keys = self._keys(position)
        for key in np.unique(keys):
            hits = np.flatnonzero(keys == key)
            yield Group(hits, self.windows(position[hits]))

    def batches(
        self, position: Int64[np.ndarray, "hit yx"], number_bytes: int | None = None
    ) -> Iterator[Group]:
        """Groups of a few hits.

        Args:
            number_bytes: of a value, where the largest signal of a group may take its portion
                (``workers.portions``) at most, or that of one hit; None where it does not matter,
                since only switches of whole images are needed and the way down goes in parts by
                itself.
        """
        portions = portions_on(self._network.device.type)
        for group in self.groups(position):
            size = portions.hits
            if number_bytes is not None:
                largest = max(self.values(group, i) for i in group.windows)
                size = max(1, min(size, portions.signal_bytes // (number_bytes * largest)))
            for begin in range(0, len(group.hits), size):
                yield Group(group.hits[begin : begin + size], group.windows)

    def values(self, group: Group, index: int) -> int:
        """Of one hit's signal at a step, by its index."""
        shape, spans = self._network.steps[index].shape, group.windows.get(index)
        if spans is not None:
            shape = (*shape[:-2], spans[0].size, spans[1].size)
        return math.prod(shape)

    @cached_property
    def sparse(self) -> frozenset[int]:
        """Steps, by index, whose signal has nearly only zeros: an unpooling is above, and no filter
        between."""
        found: dict[int, bool] = {self.layer.step: False}
        for step in reversed(self.path):
            if step.index not in found or step.rule is None:
                continue
            match step.rule.down:
                case Down.UNPOOL:
                    here = _area(step) >= SPARSE_FROM
                case Down.FILTER | Down.MATRIX | Down.TRANSPOSE | None:
                    here = False
                case _:
                    here = found[step.index]
            for source in self._signalled(step):
                found[source] = here and found.get(source, True)
        return frozenset(index for index, is_sparse in found.items() if is_sparse)

    def windows(self, position: Int64[np.ndarray, "hit yx"]) -> dict[int, tuple[Span, Span] | None]:
        """One window a step for all these positions."""
        rows, cols = np.unique(position[:, 0]), np.unique(position[:, 1])
        fixed = {self.layer.step: (False, False)}
        found: dict[int, tuple[Span, Span] | None] = {}
        for step in reversed(self.path):
            if step.index not in self.reaches:
                continue
            above = fixed[step.index]
            reaches = self.reaches[step.index]
            if reaches is None:
                found[step.index], here = None, (True, True)
            else:
                pairs = zip(reaches, (rows, cols), above, strict=True)
                spans = tuple(_smaller(reach, at, is_fixed) for reach, at, is_fixed in pairs)
                found[step.index] = spans[0], spans[1]
                here = (spans[0].moves == 0, spans[1].moves == 0)
            for source in self._signalled(step):
                before = fixed.get(source, (False, False))
                fixed[source] = (here[0] or before[0], here[1] or before[1])
        return found

    def _point(self) -> tuple[Reaches, Reaches] | None:
        layer = self.layer
        if layer.order != (0, 1, 2):  # a vector, or maps that are turned
            return None
        rows, cols = (
            Reaches(1, np.arange(length), np.arange(1, length + 1), length)
            for length in (layer.height, layer.width)
        )
        return rows, cols

    def _signalled(self, step: Step) -> list[int]:
        """Steps below that receive a signal."""
        return [i for i in dict.fromkeys(step.inputs) if self._network.steps[i].depends]

    def _join(self, source: int, reaches: tuple[Reaches, Reaches] | None) -> None:
        if source in self.reaches and reaches is not None:
            known = self.reaches[source]
            reaches = known and (known[0].joined(reaches[0]), known[1].joined(reaches[1]))
        self.reaches[source] = reaches

    def _down(self, step: Step, below: Step) -> tuple[Reaches, Reaches] | None:
        reaches = self.reaches[step.index]
        if reaches is None or not slides(step, below, self._sights):
            return None
        if step.rule is None or step.rule.reach is not Reach.WINDOW:
            return reaches
        rows, cols = (
            reach.down(sliding_window(step.module, axis), below.shape[-2 + axis])
            for axis, reach in enumerate(reaches)
        )
        return rows, cols

    def _keys(self, position: Int64[np.ndarray, "hit yx"]) -> Int64[np.ndarray, " hit"]:
        enough = portions_on(self._network.device.type).grouped
        for slack in SLACKS:
            rows, cols = (bands[position[:, axis]] for axis, bands in enumerate(self._bands[slack]))
            keys: Int64[np.ndarray, " hit"] = rows * (cols.max() + 1) + cols
            if len(np.unique(keys)) * enough <= len(keys):
                break
        return keys

    @cached_property
    def _bands(self) -> dict[float, tuple[Bands, Bands]]:
        """By slack, for each axis: the band that each position belongs to."""
        known = [reaches for reaches in self.reaches.values() if reaches is not None]
        if not known:
            one = np.zeros(max(self.layer.height, self.layer.width), np.int64)
            return dict.fromkeys(SLACKS, (one, one))
        rows, cols = ([reaches[axis] for reaches in known] for axis in (0, 1))
        return {slack: (_bands(rows, slack), _bands(cols, slack)) for slack in SLACKS}


def _area(pool: Step) -> int:
    """Places below a pool for each of its outputs."""
    return math.prod(sliding_window(pool.module, axis).stride for axis in (0, 1))


def _smaller(reach: Reaches, positions: Positions, fixed: bool) -> Span:
    still = reach.span(positions, fixed=True)
    if fixed or not reach.stride:
        return still
    moving = reach.span(positions, fixed=False)
    return moving if moving.size < still.size or not moving.overhangs(positions) else still


def _bands(reaches: Sequence[Reaches], slack: float) -> Bands:
    """Neighbouring positions whose common windows are at most so much larger than their own."""
    count = len(reaches[0].low)
    own = np.array([reach.high - reach.low for reach in reaches]).sum(0)
    bands = np.zeros(count, np.int64)
    first = 0
    for position in range(count):
        members = np.arange(first, position + 1)
        together = sum(_smaller(reach, members, False).size for reach in reaches)
        if together > (1 + slack) * own[members].mean():
            first = position
        bands[position] = first
    return np.unique(bands, return_inverse=True)[1].astype(np.int64)


def touched(step: Step, below: Step, spans: tuple[Span, Span]) -> tuple[Span, Span]:
    """All that a sliding window reads of the map below to give ``spans``; unclipped."""
    rows, cols = (
        span.down(sliding_window(step.module, axis), below.shape[-2 + axis])
        for axis, span in enumerate(spans)
    )
    return rows, cols


def slides(step: Step, below: Step, sights: Sequence[Sight | None]) -> bool:
    """Whether a step can be done on windows: rows and columns stay what they are, and each output
    sees a sliding window of them at most."""
    above_sight, below_sight = sights[step.index], sights[below.index]
    if above_sight is None or below_sight is None or step.rule is None:
        return False
    last = [(len(s.shape) - 2, len(s.shape) - 1) for s in (above_sight, below_sight)]
    if [above_sight.axes, below_sight.axes] != last:
        return False
    if step.rule.reach is Reach.WINDOW:
        return len(step.shape) == 3
    if step.rule.reach not in (Reach.SAME, Reach.SELECTION):
        return False
    if step.shape[-2:] != below.shape[-2:]:
        return False
    if any(_spreads(value) for value in step.constants.values()):
        return False
    if step.rule.down is Down.SPLIT:
        return True
    return (
        all(
            np.array_equal(above.low, under.low) and np.array_equal(above.high, under.high)
            for above, under in zip(above_sight.fields, below_sight.fields, strict=True)
        )
        or step.rule.reach is Reach.SAME
    )


def _spreads(constant: object) -> bool:
    """Whether a constant differs from row to row or column to column."""
    shape = tuple(getattr(constant, "shape", ()))
    return any(size > 1 for size in shape[-2:])
