"""Which part of a map differs from the clean image's, for every position of a grey square.

A position of a map can have changed if its receptive field meets the square.  Fields are known for
every step of the graph (``workers.sight``), through strides, dilation, padding and branches, and
are intervals of rows times intervals of columns; so are the changed parts, here **spans**.  All
positions of a batch get windows of one size, the largest, moved inward at the border; what a
window holds beyond the span equals the clean map.  Pure: numbers only, no activations.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from workers.fields import AxisField, Window


@dataclass(frozen=True)
class Span:
    """Rows, or columns, of a map for every position of the square: ``[low, high)``; (0, 0) if
    none."""

    low: Int[np.ndarray, " position"]
    high: Int[np.ndarray, " position"]

    def take(self, which: Int[np.ndarray, " taken"]) -> "Span":
        return Span(self.low[which], self.high[which])

    def within(self, other: "Span") -> "Span":
        """What both have."""
        low = np.maximum(self.low, other.low)
        high = np.minimum(self.high, other.high)
        return _or_none(low, high, low < high)

    def hull(self, other: "Span") -> "Span":
        mine, theirs = self.low < self.high, other.low < other.high
        low = np.where(mine & theirs, np.minimum(self.low, other.low), self.low + other.low)
        return _or_none(low, np.maximum(self.high, other.high), mine | theirs)

    def before(self, window: Window, length: int) -> "Span":
        """The positions, of ``length``, that a sliding window takes these from."""
        low = self.low * window.stride - window.padding
        reach = (window.kernel - 1) * window.dilation + 1
        high = (self.high - 1) * window.stride - window.padding + reach
        low, high = np.clip(low, 0, length), np.clip(high, 0, length)
        return _or_none(low, high, (self.low < self.high) & (low < high))


Spans = tuple[Span, Span]
"""Of rows and of columns."""


class Covered:
    """Pixels ``[start, start + length)`` of one axis, for each position of the square."""

    def __init__(
        self, start: Int[np.ndarray, " position"], length: Int[np.ndarray, " position"]
    ) -> None:
        # Many positions cover the same rows, or the same columns.
        pairs, back = np.unique(np.stack([start, length]), axis=1, return_inverse=True)
        self._first, self._end = pairs[0][:, None], pairs.sum(axis=0)[:, None]
        self._of_position = back.reshape(-1)

    def touched(self, field: AxisField) -> Span:
        """The positions of one axis of a map whose fields meet them."""
        meets: Bool[np.ndarray, "pair place"] = (field.low < self._end) & (field.high > self._first)
        low = meets.argmax(axis=1)
        high = meets.shape[1] - meets[:, ::-1].argmax(axis=1)
        return _or_none(low, high, np.asarray(meets.any(axis=1))).take(self._of_position)


def everything(length: int, positions: int) -> Span:
    return Span(np.zeros(positions, dtype=np.int64), np.full(positions, length, dtype=np.int64))


def _or_none(
    low: Int[np.ndarray, " position"],
    high: Int[np.ndarray, " position"],
    some: Bool[np.ndarray, " position"],
) -> Span:
    return Span(np.where(some, low, 0), np.where(some, high, 0))


@dataclass(frozen=True)
class Windows:
    """Windows of one size in maps of ``size`` (rows, columns), one for each position of a batch.

    Those that an operation reads may hang over the border, into its padding.
    """

    top: Int[np.ndarray, " position"]
    left: Int[np.ndarray, " position"]
    height: int
    width: int
    size: tuple[int, int]

    @property
    def whole(self) -> bool:
        """Whether they are the maps themselves."""
        inside = not self.top.any() and not self.left.any()
        return (self.height, self.width) == self.size and inside

    def same(self, other: "Windows") -> bool:
        alike = (self.height, self.width, self.size) == (other.height, other.width, other.size)
        return (
            alike and np.array_equal(self.top, other.top) and np.array_equal(self.left, other.left)
        )

    def read(self, rows: Window, cols: Window, size: tuple[int, int]) -> "Windows":
        """What a sliding window reads, from maps of ``size``, to give these."""
        return Windows(
            top=self.top * rows.stride - rows.padding,
            left=self.left * cols.stride - cols.padding,
            height=_read(self.height, rows),
            width=_read(self.width, cols),
            size=size,
        )


def _read(count: int, window: Window) -> int:
    return (count - 1) * window.stride + (window.kernel - 1) * window.dilation + 1


def whole_maps(positions: int, size: tuple[int, int]) -> Windows:
    nothing = np.zeros(positions, dtype=np.int64)
    return Windows(nothing, nothing, *size, size)


def windows_around(spans: Spans, size: tuple[int, int], whole_from: float) -> Windows:
    """The windows of a batch: as large as its largest spans, inside the map.

    From the share ``whole_from`` of the map on they are the whole map.
    """
    rows, cols = spans
    height, width = (max(1, int((span.high - span.low).max())) for span in spans)
    if height * width >= whole_from * size[0] * size[1]:
        return whole_maps(len(rows.low), size)
    top = np.minimum(rows.low, size[0] - height)
    left = np.minimum(cols.low, size[1] - width)
    return Windows(top, left, height, width, size)
