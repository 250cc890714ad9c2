"""The way back through single operations, on whole maps or on windows of them.

Each is the transpose of a linear operation.  Signals are (hit, channel, row, col), channels last in
memory, which is what convolutions of small windows are fastest in.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Integer
from torch import Tensor, nn

from workers.cones import Span
from workers.fields import Window
from workers.sight import sliding_window
from workers.steps import Step

Spans = tuple[Span, Span]

VECTOR = 8
"""Channels a CPU computes at once: three channels in 2 × 2 phases, 12, take longer than 16 do."""

COLUMN_BYTES = 4 * 2**20
"""Of a product of signals and filters, before it is added up: so much stays in a core's cache."""

COLUMN = 90
"""Multiply-adds in the time in which one value of that product is written, read and added."""


class FilterBack:
    """Filter with the transposed weights: the adjoint of a convolution, without its bias.

    There are several ways, and for each size of a window the one of least work is taken:

    - with stride 1 the adjoint is itself a convolution, with the flipped kernels, which is several
      times as fast on a CPU as a transposed convolution;
    - with stride s it is s × s such ones, one for each phase of the places below, done as one with
      that many more channels;
    - the product of all values with all filters, added up below: no zero around a small window is
      multiplied, nor any that fills up the kernels of the phases;
    - torch's own transposed convolution, for dilated filters with groups and strides.

    For signals of mostly zeros there is ``workers.scattering``.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self._conv = conv
        self._windows = tuple(sliding_window(conv, axis) for axis in (0, 1))
        rows, cols = self._windows
        self._phases = (rows.stride, cols.stride)
        dilated = rows.dilation > 1 or cols.dilation > 1
        self._transposed = dilated and self._phases != (1, 1)
        """Neither a convolution nor phases can do both."""
        if not self._transposed:
            self._kernels = self._prepared()

    def into(self, signal: Tensor, natural: Spans, wanted: Spans | None) -> tuple[Tensor, Spans]:
        """The signal below in the window ``wanted``, where that can be had directly, else in all of
        ``natural``, which is what the filters reach; and which of them it is."""
        target = wanted or natural
        size = target[0].size, target[1].size
        offset = natural[0].start - target[0].start, natural[1].start - target[1].start
        if self._columns_pay(signal, size):
            return self._by_columns(signal, offset, size), target
        if self._transposed:
            return self._by_torch(signal), natural
        if self._phases != (1, 1):
            return self._by_phases(signal, natural), natural
        return self._by_convolution(signal, natural, wanted)

    def _by_convolution(
        self, signal: Tensor, natural: Spans, wanted: Spans | None
    ) -> tuple[Tensor, Spans]:
        conv = self._conv
        reach = [w.dilation * (w.kernel - 1) for w in self._windows]
        if wanted is None:
            below = F.conv2d(signal, self._kernels, None, 1, reach, conv.dilation, conv.groups)
            return below, natural
        before = [r - (w.start - n.start) for r, w, n in zip(reach, wanted, natural, strict=True)]
        after = [
            w.size - signal.shape[2 + axis] + reach[axis] - before[axis]
            for axis, w in enumerate(wanted)
        ]
        sizes = zip(before, after, signal.shape[2:], strict=True)
        if any(min(b, 0) + min(a, 0) + n <= 0 for b, a, n in sizes):  # it gets nothing of this
            return self._by_convolution(signal, natural, None)
        padding: Any = (0, 0)
        if before == after and min(before) >= 0:
            padding = tuple(before)
        else:
            signal = F.pad(signal, (before[1], after[1], before[0], after[0]))
        below = F.conv2d(signal, self._kernels, None, 1, padding, conv.dilation, conv.groups)
        return below, wanted

    def _columns_pay(self, signal: Tensor, size: Sequence[int]) -> bool:
        """Whether the product and its sum are the way to take.

        Where there is another, they are if they are less work than it, by the costs of a CPU; a GPU
        takes the other.
        """
        if self._conv.groups > 1 or self._transposed:
            return self._conv.groups == 1
        if signal.device.type != "cpu":
            return False
        weight, above = self._conv.weight, signal.shape[2:]
        columns = math.prod(above) * (weight.numel() + weight[0].numel() * COLUMN)
        if self._phases == (1, 1):
            return columns < math.prod(size) * weight.numel()
        reached = [n + k - 1 for n, k in zip(above, self._kernels.shape[2:], strict=True)]
        moved = math.prod(reached) * self._outputs * COLUMN
        return columns < math.prod(reached) * self._kernels.numel() + moved

    @cached_property
    def _matrix(self) -> Float[Tensor, "above row_col_below"]:
        """The filters, one a row."""
        return self._conv.weight.detach().permute(0, 2, 3, 1).flatten(1).contiguous()

    def _by_columns(self, signal: Tensor, offset: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Into a window of that size, in which the first value's filter begins at ``offset``."""
        rows, cols = self._windows
        values = signal.permute(0, 2, 3, 1)
        count, height, width, channels = values.shape
        below = self._conv.weight.shape[1]
        found = values.new_zeros(count, *size, below)
        each = height * width * self._matrix.shape[1] * values.element_size()
        for at in range(0, count, chunk := max(1, COLUMN_BYTES // each)):
            product = values[at : at + chunk].reshape(-1, channels) @ self._matrix
            parts = product.view(-1, height, width, rows.kernel, cols.kernel, below)
            for y in range(rows.kernel):
                row = _common(height, rows, offset[0] + y * rows.dilation, size[0])
                for x in range(cols.kernel):
                    col = _common(width, cols, offset[1] + x * cols.dilation, size[1])
                    if row and col:
                        part = parts[:, row[0], col[0], y, x]
                        found[at : at + chunk, row[1], col[1]].add_(part)
        return found.permute(0, 3, 1, 2)

    def _prepared(self) -> Tensor:
        """Kernels of the adjoint convolution, flipped: (group · below · phase, above, row, col)."""
        conv, (down, right) = self._conv, self._phases
        groups = conv.groups
        weight = conv.weight.detach()  # (above, below of the group, row, col)
        extra = [-n % s for n, s in zip(weight.shape[2:], self._phases, strict=True)]
        weight = F.pad(weight, (0, extra[1], 0, extra[0]))
        above, below, height, width = weight.shape
        parts = weight.view(
            groups, above // groups, below, height // down, down, width // right, right
        )
        # group, below, phase of row, phase of col, above, row, col
        kernels = parts.permute(0, 2, 4, 6, 1, 3, 5).flip(5, 6)
        kernels = kernels.reshape(
            groups * below * down * right, above // groups, height // down, width // right
        )
        self._outputs = len(kernels)
        if groups == 1 and self._phases != (1, 1):
            kernels = F.pad(kernels, (0, 0, 0, 0, 0, 0, 0, -len(kernels) % VECTOR))
        return kernels.contiguous(memory_format=torch.channels_last)

    def _by_phases(self, signal: Tensor, natural: Spans) -> Tensor:
        down, right = self._phases
        reach = [n - 1 for n in self._kernels.shape[2:]]
        phased = F.conv2d(signal, self._kernels, None, 1, reach, 1, self._conv.groups)
        phased = phased[:, : self._outputs]
        count, channels, height, width = phased.shape
        below = channels // (down * right)
        phased = phased.view(count, below, down, right, height, width)
        spread = phased.permute(0, 1, 4, 2, 5, 3).reshape(
            count, below, height * down, width * right
        )
        spread = spread[:, :, : natural[0].size, : natural[1].size]
        return spread.contiguous(memory_format=torch.channels_last)

    def _by_torch(self, signal: Tensor) -> Tensor:
        conv = self._conv
        return F.conv_transpose2d(
            signal, conv.weight, None, conv.stride, 0, 0, conv.groups, conv.dilation
        )


def _common(count: int, window: Window, first: int, size: int) -> tuple[slice, slice] | None:
    """Which of ``count`` places, a stride apart and the first at ``first``, lie in a window of that
    size, and where; None if none does."""
    begin = max(0, -(first // window.stride))
    end = min(count, -((first - size) // window.stride))
    if begin >= end:
        return None
    start = first + begin * window.stride
    stop = first + (end - 1) * window.stride + 1
    return slice(begin, end), slice(start, stop, window.stride)


def unpool(
    signal: Float[Tensor, "hit channel row col"],
    codes: Integer[Tensor, "hit row col channel"],
    pool: Any,
) -> Float[Tensor, "hit channel below_row below_col"]:
    """Send each value to the place its maximum came from; overlapping windows accumulate.

    Returns:
        All that the pool's windows touch, from the first place of the first, padding included.
    """
    rows, cols = (sliding_window(pool, axis) for axis in (0, 1))
    values = signal.permute(0, 2, 3, 1)
    count, height, width, channels = values.shape
    extent = [
        (n - 1) * w.stride + w.dilation * (w.kernel - 1) + 1
        for n, w in ((height, rows), (width, cols))
    ]
    below = values.new_zeros(count, extent[0], extent[1], channels)
    chosen = torch.empty_like(values)
    disjoint = rows.stride >= extent_of(rows) and cols.stride >= extent_of(cols)
    for place in range(rows.kernel * cols.kernel):
        y, x = divmod(place, cols.kernel)
        y, x = y * rows.dilation, x * cols.dilation
        at = below[
            :,
            y : y + (height - 1) * rows.stride + 1 : rows.stride,
            x : x + (width - 1) * cols.stride + 1 : cols.stride,
        ]
        torch.eq(codes, place, out=chosen)
        if disjoint:
            torch.mul(values, chosen, out=at)
        else:
            at.addcmul_(values, chosen)
    return below.permute(0, 3, 1, 2)


def extent_of(window: Any) -> int:
    """Places from the first to the last that a window sees."""
    return int(window.dilation * (window.kernel - 1) + 1)


def average_back(
    signal: Float[Tensor, "hit channel row col"],
    pool: Any,
    rows: Int64[np.ndarray, "hit row"],
    cols: Int64[np.ndarray, "hit col"],
    below: tuple[int, ...],
) -> Float[Tensor, "hit channel below_row below_col"]:
    """Spread each value evenly over its window; what an average is divided by at the borders
    depends on the place.

    Args:
        rows, cols: places of the signal on the pool's output map.
        below: height and width of the pool's input map.
    """
    ones = signal.new_ones(1, 1, *below)
    counted = nn.AvgPool2d(
        pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, True, divisor_override=1
    )
    share = (pool(ones) / counted(ones))[0, 0]
    y, x = (
        torch.from_numpy(places.clip(0, length - 1)).to(signal.device)
        for places, length in zip((rows, cols), share.shape, strict=True)
    )
    signal = signal * share[y[:, :, None], x[:, None, :]][:, None]
    down, right = (sliding_window(pool, axis) for axis in (0, 1))
    kernel = signal.new_ones(signal.shape[1], 1, down.kernel, right.kernel)
    spread: Tensor = F.conv_transpose2d(
        signal, kernel, stride=(down.stride, right.stride), groups=signal.shape[1]
    )
    return spread


def transpose(step: Step, signal: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The transposed linear map of any step that is linear (or affine: a constant has none)."""
    below = signal.new_zeros(len(signal), *shape).requires_grad_(True)
    with torch.enable_grad():
        above = step.apply_to(below.clone())  # it may write into it
    (transposed,) = torch.autograd.grad(above, below, signal)
    return transposed
