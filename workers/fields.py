"""Receptive fields: which input pixels a position of a feature map sees, exactly.

Two answers are kept for each axis of each step of the graph.  ``low`` and ``high`` are the true
half-open interval of every position, clipped to the image at every step on the way down (a stride
that never reaches the last row, a window that hangs over the border).  The nominal field is what
the paper's patches show: the same size at every position, padded beyond the image.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int


@dataclass(frozen=True)
class Nominal:
    """Field of position i, unclipped: ``[offset + i·stride, offset + i·stride + size)``."""

    size: int
    stride: int
    offset: int


@dataclass(frozen=True)
class AxisField:
    """Fields of all positions along one axis; (0, 0) where a position sees padding only."""

    low: Int[np.ndarray, " position"]
    high: Int[np.ndarray, " position"]
    nominal: Nominal | None
    """None where the field is the whole image, or differs from position to position."""

    @staticmethod
    def of_input(length: int) -> "AxisField":
        position = np.arange(length, dtype=np.int64)
        return AxisField(position, position + 1, Nominal(1, 1, 0))


@dataclass(frozen=True)
class Window:
    """Parameters of a sliding window along one axis."""

    kernel: int
    stride: int
    padding: int
    dilation: int = 1


def through_window(field: AxisField, window: Window, length: int) -> AxisField:
    """Fields after a sliding window that leaves ``length`` positions."""
    first = np.arange(length)[:, None] * window.stride - window.padding
    taps = first + np.arange(window.kernel) * window.dilation
    return _through_taps(field, taps, _nominal_through(field.nominal, window))


def through_cells(field: AxisField, length: int) -> AxisField:
    """Fields after adaptive pooling to ``length`` positions (torch's start and end formula)."""
    count = len(field.low)
    if count % length == 0 and length > 1:
        step = count // length
        return through_window(field, Window(step, step, 0), length)
    position = np.arange(length)[:, None]
    start = position * count // length
    end = -(-(position + 1) * count // length)
    taps = start + np.arange((end - start).max())
    return _through_taps(field, np.where(taps < end, taps, -1), None)


def through_selection(field: AxisField, source: Int[np.ndarray, " position"]) -> AxisField:
    """Fields after padding or slicing: each position is the one of ``source``, or padding (−1)."""
    return _through_taps(field, source[:, None], _nominal_of(field.nominal, source))


def through_everything(field: AxisField, length: int) -> AxisField:
    """Fields where every position sees all positions below."""
    taps = np.tile(np.arange(len(field.low)), (length, 1))
    return _through_taps(field, taps, None)


def _through_taps(
    field: AxisField, taps: Int[np.ndarray, "position tap"], nominal: Nominal | None
) -> AxisField:
    """Each position sees the hull of what its taps see; a tap outside the map sees nothing."""
    inside = (taps >= 0) & (taps < len(field.low))
    taps = np.where(inside, taps, 0)
    return _hull(field.low[taps], field.high[taps], inside, nominal)


def _hull(
    low: Int[np.ndarray, "position part"],
    high: Int[np.ndarray, "position part"],
    counts: Bool[np.ndarray, "position part"],
    nominal: Nominal | None,
) -> AxisField:
    """The hull of those parts that count and are not empty."""
    counts = counts & (low < high)
    highest = np.where(counts, high, 0).max(axis=1)
    lowest = np.where(counts, low, highest[:, None]).min(axis=1)
    return AxisField(np.minimum(lowest, highest), highest, nominal)


def _nominal_through(nominal: Nominal | None, window: Window) -> Nominal | None:
    if nominal is None:
        return None
    return Nominal(
        size=nominal.size + (window.kernel - 1) * window.dilation * nominal.stride,
        stride=nominal.stride * window.stride,
        offset=nominal.offset - window.padding * nominal.stride,
    )


def _nominal_of(nominal: Nominal | None, source: Int[np.ndarray, " position"]) -> Nominal | None:
    """The nominal fields of the selected positions, if these are evenly spaced."""
    (inside,) = np.nonzero(source >= 0)
    if nominal is None or not len(inside):
        return None
    step = int(source[inside[1]] - source[inside[0]]) if len(inside) > 1 else 1
    first = int(source[inside[0]] - step * inside[0])
    if step < 1 or (source[inside] != first + step * inside).any():
        return None
    return _nominal_through(nominal, Window(1, step, -first))


def union(fields: list[AxisField]) -> AxisField:
    """Fields of a sum or concatenation: the hull of all branches; a map of one position is
    repeated."""
    longest = max(len(field.low) for field in fields)
    low = np.stack([np.broadcast_to(field.low, longest) for field in fields], axis=1)
    high = np.stack([np.broadcast_to(field.high, longest) for field in fields], axis=1)
    repeated = any(len(field.low) < longest for field in fields)
    nominal = None if repeated else _nominal_hull([field.nominal for field in fields])
    return _hull(low, high, np.ones(low.shape, dtype=bool), nominal)


def _nominal_hull(nominals: list[Nominal | None]) -> Nominal | None:
    known = [nominal for nominal in nominals if nominal is not None]
    if len(known) < len(nominals) or len({nominal.stride for nominal in known}) > 1:
        return None
    offset = min(nominal.offset for nominal in known)
    end = max(nominal.offset + nominal.size for nominal in known)
    return Nominal(end - offset, known[0].stride, offset)


@dataclass(frozen=True)
class Field:
    """Receptive fields of a map, rows and columns, on an image of ``image`` (height, width)."""

    rows: AxisField
    cols: AxisField
    image: tuple[int, int]

    @property
    def window_size(self) -> tuple[int, int]:
        """Height and width of the window that pictures of this layer show, in input pixels."""
        height, width = self.image
        rows, cols = self.rows.nominal, self.cols.nominal
        if rows is None or cols is None or rows.size >= height or cols.size >= width:
            return self.image
        return rows.size, cols.size

    def boxes(self, yx: Int[np.ndarray, "hit 2"]) -> Int[np.ndarray, "hit 4"]:
        """Clipped field (y0, x0, y1, x1) of each position; all zero where it sees padding only."""
        y, x = yx[:, 0], yx[:, 1]
        sides = [self.rows.low[y], self.cols.low[x], self.rows.high[y], self.cols.high[x]]
        boxes = np.stack(sides, axis=1).astype(np.int32)
        empty = (boxes[:, 0] == boxes[:, 2]) | (boxes[:, 1] == boxes[:, 3])
        boxes[empty] = 0
        return boxes

    def windows(self, yx: Int[np.ndarray, "hit 2"]) -> Int[np.ndarray, "hit 4"]:
        """Unclipped window (y0, x0, y1, x1) of each position; all have ``window_size``."""
        height, width = self.window_size
        if (height, width) == self.image or self.rows.nominal is None or self.cols.nominal is None:
            return np.tile(np.array([0, 0, *self.image], dtype=np.int32), (len(yx), 1))
        y0 = self.rows.nominal.offset + yx[:, 0] * self.rows.nominal.stride
        x0 = self.cols.nominal.offset + yx[:, 1] * self.cols.nominal.stride
        return np.stack([y0, x0, y0 + height, x0 + width], axis=1).astype(np.int32)
