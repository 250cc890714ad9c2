"""Receptive fields: which input pixels a position of a feature map sees, exactly.

Two answers are kept for each axis of each step of the graph.  ``low`` and ``high`` are the true
half-open interval of every position, clipped to the image at every step on the way down (a stride
that never reaches the last row, a window that hangs over the border).  The nominal field is what
the paper's patches show: the same size at every position, padded beyond the image.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class Nominal:
    """Field of position i, unclipped: ``[offset + i·stride, offset + i·stride + size)``."""

    size: int
    stride: int
    offset: int


@dataclass(frozen=True)
class AxisField:
    """Fields of all positions along one axis."""

    low: Int[np.ndarray, " position"]
    high: Int[np.ndarray, " position"]
    nominal: Nominal | None
    """None where the field is the whole image, or differs from position to position."""

    @staticmethod
    def of_input(length: int) -> "AxisField":
        position = np.arange(length, dtype=np.int64)
        return AxisField(position, position + 1, Nominal(1, 1, 0))

    @staticmethod
    def whole(length: int, image: int) -> "AxisField":
        """Every position sees all of the image."""
        zeros = np.zeros(length, dtype=np.int64)
        return AxisField(zeros, zeros + image, None)


@dataclass(frozen=True)
class Window:
    """Parameters of a sliding window along one axis."""

    kernel: int
    stride: int
    padding: int
    dilation: int = 1


def through_window(field: AxisField, window: Window, length: int) -> AxisField:
    """Fields after a sliding window that leaves ``length`` positions."""
    first = np.arange(length) * window.stride - window.padding
    last = first + (window.kernel - 1) * window.dilation
    # Taps in the padding see nothing: move to the first and the last tap inside.
    first_inside = first + _steps(-first, window.dilation)
    last_inside = last - _steps(last - (len(field.low) - 1), window.dilation)
    empty = first_inside > last_inside
    first_inside = np.clip(first_inside, 0, len(field.low) - 1)
    last_inside = np.clip(last_inside, 0, len(field.low) - 1)
    low = np.where(empty, 0, field.low[first_inside])
    high = np.where(empty, 0, field.high[last_inside])
    return AxisField(low, high, _nominal_through(field.nominal, window))


def _steps(excess: Int[np.ndarray, " position"], step: int) -> Int[np.ndarray, " position"]:
    """How far to move, in whole steps, to make up for a positive excess."""
    return -(-np.maximum(excess, 0) // step) * step


def _nominal_through(nominal: Nominal | None, window: Window) -> Nominal | None:
    if nominal is None:
        return None
    return Nominal(
        size=nominal.size + (window.kernel - 1) * window.dilation * nominal.stride,
        stride=nominal.stride * window.stride,
        offset=nominal.offset - window.padding * nominal.stride,
    )


def through_cells(field: AxisField, length: int, image: int) -> AxisField:
    """Fields after adaptive pooling to ``length`` positions (torch's start and end formula)."""
    count = len(field.low)
    if length == count:
        return field
    if count % length == 0 and length > 1:
        step = count // length
        return through_window(field, Window(step, step, 0), length)
    position = np.arange(length)
    start = position * count // length
    end = -(-(position + 1) * count // length)
    return AxisField(field.low[start], field.high[end - 1], None)


def union(fields: list[AxisField], image: int) -> AxisField:
    """Fields of a sum or concatenation: the hull of all branches."""
    lengths = [len(field.low) for field in fields]
    # Broadcasting (a 1×1 gate times a map) mixes every position of the longer branch's partner.
    longest = max(lengths)
    spread = [f if len(f.low) == longest else AxisField.whole(longest, image) for f in fields]
    low = np.minimum.reduce([field.low for field in spread])
    high = np.maximum.reduce([field.high for field in spread])
    return AxisField(low, high, _hull([field.nominal for field in spread]))


def _hull(nominals: list[Nominal | None]) -> Nominal | None:
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
        """Clipped field (y0, x0, y1, x1) of each position."""
        y, x = yx[:, 0], yx[:, 1]
        sides = [self.rows.low[y], self.cols.low[x], self.rows.high[y], self.cols.high[x]]
        return np.stack(sides, axis=1).astype(np.int32)

    def windows(self, yx: Int[np.ndarray, "hit 2"]) -> Int[np.ndarray, "hit 4"]:
        """Unclipped window (y0, x0, y1, x1) of each position; all have ``window_size``."""
        height, width = self.window_size
        if (height, width) == self.image or self.rows.nominal is None or self.cols.nominal is None:
            return np.tile(np.array([0, 0, *self.image], dtype=np.int32), (len(yx), 1))
        y0 = self.rows.nominal.offset + yx[:, 0] * self.rows.nominal.stride
        x0 = self.cols.nominal.offset + yx[:, 1] * self.cols.nominal.stride
        return np.stack([y0, x0, y0 + height, x0 + width], axis=1).astype(np.int32)
