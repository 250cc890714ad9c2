"""Windows of activations laid over the clean image's map, which surrounds and pads them.

Maps are kept as a table of pixels, a row of all channels each (``channels_last``), so that the
windows of a whole batch are one ``index_select``: measured beside a convolution over the same
windows it costs nothing to speak of.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workers.windows import Windows


class CleanMap:
    """One map of the clean image; left unchanged."""

    def __init__(self, maps: Float[Tensor, "1 channel row col"]) -> None:
        _, channels, height, width = maps.shape
        self.size = height, width
        # The last row stands for every pixel of the padding.
        self._pixels = maps.new_zeros(height * width + 1, channels)
        self._pixels[:-1] = maps[0].flatten(1).T
        self._padding = 0.0

    @property
    def maps(self) -> Float[Tensor, "1 channel row col"]:
        height, width = self.size
        return self._pixels[:-1].view(1, height, width, -1).permute(0, 3, 1, 2)

    def read(
        self, windows: Windows, padding: float = 0.0
    ) -> Float[Tensor, "position channel row col"]:
        """A copy of these windows; ``padding`` is what lies beyond the border."""
        if padding != self._padding:
            self._pixels[-1], self._padding = padding, padding
        places = torch.from_numpy(windows.places().reshape(-1)).to(self._pixels.device)
        pixels = self._pixels.index_select(0, places)
        shape = len(windows.top), windows.height, windows.width, pixels.shape[1]
        return pixels.view(shape).permute(0, 3, 1, 2)


def overlay(
    clean: CleanMap,
    frame: Windows,
    values: Float[Tensor, "position channel row col"],
    windows: Windows,
    padding: float = 0.0,
) -> Float[Tensor, "position channel frame_row frame_col"]:
    """The windows ``frame``: ``values`` where ``windows`` are, the clean map around them."""
    framed = clean.read(frame, padding)
    down, right = windows.top - frame.top, windows.left - frame.left
    if (down == down[0]).all() and (right == right[0]).all():
        rows, row = _common(int(down[0]), windows.height, frame.height)
        cols, col = _common(int(right[0]), windows.width, frame.width)
        framed[:, :, rows, cols] = values[:, :, row, col]
        return framed
    pixels = framed.permute(0, 2, 3, 1).reshape(-1, framed.shape[1])  # a view
    news = values.permute(0, 2, 3, 1).reshape(-1, framed.shape[1])
    to = _flat_places(down, right, windows, frame)
    if (to < 0).any():
        (inside,) = np.nonzero(to >= 0)
        news, to = news[torch.from_numpy(inside).to(news.device)], to[inside]
    pixels.index_copy_(0, torch.from_numpy(to).to(pixels.device), news)
    return framed


def _common(offset: int, length: int, room: int) -> tuple[slice, slice]:
    """Where something of ``length`` lies in ``room``, and which part of it does."""
    begin, end = max(0, offset), min(room, offset + length)
    end = max(begin, end)
    return slice(begin, end), slice(begin - offset, end - offset)


def _flat_places(
    down: Int[np.ndarray, " position"],
    right: Int[np.ndarray, " position"],
    windows: Windows,
    frame: Windows,
) -> Int[np.ndarray, " pixel"]:
    """The place in the batch's frames of every pixel of its windows; -1 outside of the frame."""
    position = np.arange(len(down))[:, None]
    rows = down[:, None] + np.arange(windows.height)
    cols = right[:, None] + np.arange(windows.width)
    inside_rows = (rows >= 0) & (rows < frame.height)
    inside_cols = (cols >= 0) & (cols < frame.width)
    places = ((position * frame.height + rows) * frame.width)[:, :, None] + cols[:, None, :]
    inside = inside_rows[:, :, None] & inside_cols[:, None, :]
    return np.where(inside, places, -1).reshape(-1)
