"""Where the windows of a group's hits lie in a map, and how values get from one window to another.

A window is two spans (``workers.cones``).  What of it hangs over the border does not exist.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from workers.cones import Span

Spans = tuple[Span, Span]

Rows = Int64[np.ndarray, "hit row"]
Cols = Int64[np.ndarray, "hit col"]


class Placing:
    """The hits of one group, at their positions of the layer."""

    def __init__(self, position: Int64[np.ndarray, "hit yx"]) -> None:
        self._position = position

    def origins(self, spans: Spans) -> Int64[np.ndarray, "hit yx"]:
        """The first row and column of each hit's window."""
        both = [span.origins(self._position[:, axis]) for axis, span in enumerate(spans)]
        return np.stack(both, 1)

    def places(self, spans: Spans) -> tuple[Rows, Cols]:
        """Rows and columns of the map that each hit's window shows."""
        rows, cols = (
            span.origins(self._position[:, axis])[:, None] + np.arange(span.size)
            for axis, span in enumerate(spans)
        )
        return rows, cols

    def overhang(self, spans: Spans) -> bool:
        """Whether any window shows what is not in the map."""
        return any(s.overhangs(self._position[:, axis]) for axis, s in enumerate(spans))

    def moved(self, values: Tensor, source: Spans, target: Spans) -> Tensor:
        """From one window of a map into another; zero where the first has nothing."""
        if all(s.moves == t.moves for s, t in zip(source, target, strict=True)):
            starts = [s.start - t.start for s, t in zip(source, target, strict=True)]
            return fitted(values, starts, (target[0].size, target[1].size))
        rows, cols = self.places(source)
        origins = self.origins(target)
        rows, cols = rows - origins[:, :1], cols - origins[:, 1:]
        return pasted(values, rows, cols, (target[0].size, target[1].size))

    def filled(self, values: Tensor, spans: Spans, fill: float = 0.0, mask: bool = False) -> Tensor:
        """With ``fill`` where the window is not in the map; overwrites ``values``.

        Args:
            mask: by a mask, and not by multiplying with zero, which is faster, but not enough for
                other values and for infinities.
        """
        if not self.overhang(spans):
            return values
        rows, cols = (
            (places >= 0) & (places < span.length)
            for places, span in zip(self.places(spans), spans, strict=True)
        )
        inside = torch.from_numpy(rows[:, :, None] & cols[:, None, :]).to(values.device)
        inside = inside.view(len(values), *[1] * (values.ndim - 3), *inside.shape[1:])
        return values.masked_fill_(~inside, fill) if mask else values.mul_(inside.to(values))

    def cut(
        self,
        maps: Shaped[Tensor, "image channel height width"],
        row: Int64[Tensor, " hit"],
        spans: Spans,
    ) -> Shaped[Tensor, "hit channel row col"]:
        """The window of each hit in a map of its image; the nearest there is beyond the border."""
        rows, cols = (
            torch.from_numpy(places.clip(0, span.length - 1)).to(maps.device)
            for places, span in zip(self.places(spans), spans, strict=True)
        )
        last = maps.permute(0, 2, 3, 1)
        found = last[row[:, None, None], rows[:, :, None], cols[:, None, :]]
        return found.permute(0, 3, 1, 2)


def fitted(values: Tensor, starts: Sequence[int], size: Sequence[int]) -> Tensor:
    """Cropped and padded: ``values`` begin at ``starts`` of what is returned."""
    top, left = starts
    bottom, right = size[0] - top - values.shape[-2], size[1] - left - values.shape[-1]
    if not (top or left or bottom or right):
        return values
    height, width = values.shape[-2:]
    if min(height + top, height + bottom, width + left, width + right) <= 0:
        # They do not meet: the kernel of such a hit lies in the padding.
        return values.new_zeros(*values.shape[:-2], *size)
    return F.pad(values, (left, right, top, bottom))


def pasted(
    values: Tensor, rows: Rows, cols: Cols, size: Sequence[int]
) -> Float[Tensor, "hit *channel height width"]:
    """Each hit's window at its own place of a map of zeros; what lies outside is dropped."""
    top, left = max(0, -int(rows.min())), max(0, -int(cols.min()))
    bottom, right = (max(size[a], int(p.max()) + 1) for a, p in enumerate((rows, cols)))
    shape = (len(values), top + bottom, left + right, *values.shape[1:-2])
    canvas = values.new_zeros(shape)
    hit = torch.arange(len(values), device=values.device)[:, None, None]
    at_row, at_col = (torch.from_numpy(p).to(hit.device) for p in (rows + top, cols + left))
    last = values.movedim((-2, -1), (1, 2))
    canvas[hit, at_row[:, :, None], at_col[:, None, :]] = last
    found = canvas[:, top : top + size[0], left : left + size[1]]
    return found.movedim((1, 2), (-2, -1))
