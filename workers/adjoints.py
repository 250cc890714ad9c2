"""The way back through single operations, on whole maps or on windows of them.

Each is the transpose of a linear operation.  Signals are (hit, channel, row, col), channels last in
memory, which is what convolutions of small windows are fastest in.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Integer
from torch import Tensor, nn

from workers.cones import Span
from workers.sight import sliding_window
from workers.steps import Step

Spans = tuple[Span, Span]

VECTOR = 8
"""Channels a CPU computes at once: three channels in 2 × 2 phases, 12, take longer than 16 do."""


class FilterBack:
    """Filter with the transposed weights: the adjoint of a convolution, without its bias.

    The adjoint of stride 1 is itself a convolution, with the flipped kernels, which is several
    times as fast on a CPU as a transposed convolution.  That of stride s is s × s such ones, one
    for each phase of the places below, done as one with that many more channels.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self._conv = conv
        self._windows = tuple(sliding_window(conv, axis) for axis in (0, 1))
        rows, cols = self._windows
        self._phases = (rows.stride, cols.stride)
        dilated = rows.dilation > 1 or cols.dilation > 1
        self._transposed = dilated and self._phases != (1, 1)
        """Both: rare, and left to torch's own transposed convolution."""
        if not self._transposed:
            self._kernels = self._prepared()

    def into(self, signal: Tensor, natural: Spans, wanted: Spans | None) -> tuple[Tensor, Spans]:
        """The signal below in the window ``wanted``, where that can be had directly, else in all of
        ``natural``, which is what the filters reach; and which of them it is."""
        if self._transposed:
            return self._by_torch(signal), natural
        if self._phases != (1, 1):
            return self._by_phases(signal, natural), natural
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
            return self.into(signal, natural, None)
        padding: Any = (0, 0)
        if before == after and min(before) >= 0:
            padding = tuple(before)
        else:
            signal = F.pad(signal, (before[1], after[1], before[0], after[0]))
        below = F.conv2d(signal, self._kernels, None, 1, padding, conv.dilation, conv.groups)
        return below, wanted

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
