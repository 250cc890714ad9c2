"""Send single values down to where they belong: maxima to their places, and filters around them.

Below an unpooling a signal has one value in each window of each channel, and the rectifier takes
away about half of those, so that a twentieth to an eighth of the places hold anything.  Which ones
differs from channel to channel: no row or column of a matrix is empty, and a list of values is the
only thing to work on.  For every place its values' filters are added up in a small buffer, which
stays in the first cache, and the buffer is added to the map below.

For CPUs.  Compiled when first called (``workers.loops``).  Values are added in one
fixed order, whatever goes together in a batch.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, no_type_check

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int64, Integer
from torch import Tensor, nn

from workers import loops
from workers.sight import sliding_window

PACKED_BYTES = 2**20
"""Of filters that are read again and again: about what a core's second cache holds."""

FEWEST = 32
"""Channels below that are computed at a time, where there are so many."""


@dataclass(frozen=True)
class Landing:
    """The windows below, into which something is sent."""

    first: Int64[np.ndarray, "hit yx"]
    """Where in its window the sliding window of a hit's first value begins."""
    size: tuple[int, int]
    """Of the windows."""
    inside: Int64[np.ndarray, "hit yx ends"]
    """Which rows and columns of its window lie in the map, half-open; others stay zero."""


def send_maxima(
    signal: Float[Tensor, "hit channel row col"],
    codes: Integer[Tensor, "image code_row code_col channel"],
    image: Int64[np.ndarray, " hit"],
    origin: Int64[np.ndarray, "hit yx"],
    pool: nn.Module,
    landing: Landing,
) -> Float[Tensor, "hit channel below_row below_col"]:
    """Unpool: each value to the place its maximum came from; overlapping windows accumulate.

    Args:
        codes: switches, and which of their maps is each hit's (``image``).
        origin: of each hit's window of values in that map; what hangs over is left out.
    """
    rows, cols = (sliding_window(pool, axis) for axis in (0, 1))
    values = signal.permute(0, 2, 3, 1).contiguous()
    found = values.new_zeros(len(values), *landing.size, values.shape[3])
    _send_maxima(
        values.numpy(), codes.contiguous().numpy(), image, origin, cols.kernel,
        (rows.stride, cols.stride), (rows.dilation, cols.dilation),
        landing.first, landing.inside, found.numpy(),
    )  # fmt: skip
    return found.permute(0, 3, 1, 2)


class SparseFilter:
    """The adjoint of a convolution without groups and dilation, for signals of mostly zeros."""

    def __init__(self, conv: nn.Conv2d) -> None:
        weight = conv.weight.detach()  # (above, below, row, col)
        self._below = weight.shape[1]
        self._kernel = weight.shape[2], weight.shape[3]
        self._stride: Any = conv.stride
        self._packed = _packed(weight)

    @staticmethod
    def can_do(conv: nn.Module | None) -> bool:
        return isinstance(conv, nn.Conv2d) and conv.groups == 1 and set(conv.dilation) == {1}

    def into(
        self, signal: Float[Tensor, "hit channel row col"], landing: Landing
    ) -> Float[Tensor, "hit below below_row below_col"]:
        """What the values are filtered to, in the windows below."""
        values = signal.permute(0, 2, 3, 1).contiguous()
        found = values.new_zeros(len(values), *landing.size, self._below)
        _send_filters(
            values.numpy(), self._packed.numpy(), self._kernel, self._stride,
            landing.first, landing.inside, found.numpy(),
        )  # fmt: skip
        return found.permute(0, 3, 1, 2)


def _packed(
    weight: Float[Tensor, "above below row col"],
) -> Float[Tensor, "block above row_col_channel"]:
    """In blocks of channels below, each small enough to stay in the cache while all places are
    gone through; the last block is filled up with zeros."""
    above, below, height, width = weight.shape
    most = PACKED_BYTES // (above * height * width * weight.element_size())
    blocks = -(-below // min(below, max(FEWEST, most)))
    size = -(-below // blocks)
    filled = F.pad(weight.permute(0, 2, 3, 1), (0, blocks * size - below))
    parts = filled.reshape(above, height * width, blocks, size).permute(2, 0, 1, 3)
    return parts.reshape(blocks, above, -1).contiguous()


@loops.compiled
@no_type_check
def _send_maxima(
    values, codes, image, origin, kernel_width, stride, dilation, first, inside, found
):  # fmt: skip
    """Values and ``found`` are (hit, row, col, channel)."""
    count, height, width, channels = values.shape
    for hit in range(count):
        for row in range(max(0, -origin[hit, 0]), min(height, codes.shape[1] - origin[hit, 0])):
            top = first[hit, 0] + row * stride[0]
            for col in range(max(0, -origin[hit, 1]), min(width, codes.shape[2] - origin[hit, 1])):
                left = first[hit, 1] + col * stride[1]
                places = codes[image[hit], origin[hit, 0] + row, origin[hit, 1] + col]
                here = values[hit, row, col]
                for channel in range(channels):
                    value = here[channel]
                    if value != 0:
                        place = np.int64(places[channel])
                        down = place // kernel_width
                        y = top + down * dilation[0]
                        x = left + (place - down * kernel_width) * dilation[1]
                        in_rows = inside[hit, 0, 0] <= y < inside[hit, 0, 1]
                        if in_rows and inside[hit, 1, 0] <= x < inside[hit, 1, 1]:
                            found[hit, y, x, channel] += value


@partial(loops.compiled, fastmath={"contract", "nsz"})
@no_type_check
def _send_filters(values, packed, kernel, stride, first, inside, found):
    """Values and ``found`` are (hit, row, col, channel).  Four values at a time, so that the buffer
    is loaded and stored once for four filters."""
    count, height, width, channels = values.shape
    blocks, _, length = packed.shape
    rows, cols, below = found.shape[1:]
    size = length // (kernel[0] * kernel[1])
    given, wanted, filters = values.reshape(-1), found.reshape(-1), packed.reshape(-1)
    channel = np.empty(height * width * channels + 1, np.int32)
    begin = np.empty(height * width + 1, np.int64)
    buffer = np.empty(length, values.dtype)
    nothing = values.dtype.type(0)
    for hit in range(count):
        there = 0
        for place in range(height * width):
            begin[place] = there
            at = (hit * height * width + place) * channels
            here = given[at : at + channels]
            listed = channel[there : there + channels]
            own = 0
            for c in range(channels):
                listed[own] = c
                own += here[c] != 0
            there += own
        begin[height * width] = there
        for block in range(blocks):
            of_block = filters[block * channels * length : (block + 1) * channels * length]
            thick = min(size, below - block * size)
            for place in range(height * width):
                i, end = begin[place], begin[place + 1]
                top = first[hit, 0] + place // width * stride[0]
                left = first[hit, 1] + place % width * stride[1]
                from_row = max(0, inside[hit, 0, 0] - top)
                to_row = min(kernel[0], inside[hit, 0, 1] - top)
                from_col = max(0, inside[hit, 1, 0] - left)
                to_col = min(kernel[1], inside[hit, 1, 1] - left)
                if i == end or from_col >= to_col or from_row >= to_row:
                    continue
                at = (hit * height * width + place) * channels
                here = given[at : at + channels]
                buffer[:] = 0
                while i < end:
                    a = channel[i]
                    b = channel[i + 1] if i + 1 < end else a
                    c = channel[i + 2] if i + 2 < end else a
                    d = channel[i + 3] if i + 3 < end else a
                    of_a = here[a]
                    of_b = here[b] if i + 1 < end else nothing
                    of_c = here[c] if i + 2 < end else nothing
                    of_d = here[d] if i + 3 < end else nothing
                    filter_a = of_block[a * length : (a + 1) * length]
                    filter_b = of_block[b * length : (b + 1) * length]
                    filter_c = of_block[c * length : (c + 1) * length]
                    filter_d = of_block[d * length : (d + 1) * length]
                    for j in range(length):
                        buffer[j] += (
                            of_a * filter_a[j]
                            + of_b * filter_b[j]
                            + of_c * filter_c[j]
                            + of_d * filter_d[j]
                        )
                    i += 4
                together = to_col - from_col if blocks == 1 else 1
                long = together * thick
                for row in range(from_row, to_row):
                    line = ((hit * rows + top + row) * cols + left) * below + block * size
                    for col in range(from_col, to_col, together):
                        at = line + col * below
                        own = (row * kernel[1] + col) * size
                        target, source = wanted[at : at + long], buffer[own : own + long]
                        for j in range(long):
                            target[j] += source[j]
