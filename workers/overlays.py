"""Windows of activations laid over the clean image's map, which surrounds and pads them.

Maps are kept as a table of pixels, a row of all channels each (``channels_last``), so that the
windows of a whole batch are one ``index_select``: measured beside a convolution over the same
windows it costs nothing to speak of.
"""

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
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
        return _as_maps(self.pixels(windows, padding), windows)

    def pixels(self, windows: Windows, padding: float = 0.0) -> Float[Tensor, "pixel channel"]:
        """The same as a table."""
        if padding != self._padding:
            self._pixels[-1], self._padding = padding, padding
        beyond = self.size[0] * self.size[1]
        places = _flat_places(
            windows.top, windows.left, windows, self.size, beyond, self._pixels.device
        )
        return self._pixels.index_select(0, places)


def overlay(
    clean: CleanMap,
    frame: Windows,
    values: Float[Tensor, "position channel row col"],
    windows: Windows,
    padding: float = 0.0,
) -> Float[Tensor, "position channel frame_row frame_col"]:
    """The windows ``frame``: ``values`` where ``windows`` are, the clean map around them."""
    pixels = clean.pixels(frame, padding)
    framed = _as_maps(pixels, frame)
    down, right = windows.top - frame.top, windows.left - frame.left
    if (down == down[0]).all() and (right == right[0]).all():
        rows, row = _common(int(down[0]), windows.height, frame.height)
        cols, col = _common(int(right[0]), windows.width, frame.width)
        framed[:, :, rows, cols] = values[:, :, row, col]
        return framed
    news = values.permute(0, 2, 3, 1).reshape(-1, framed.shape[1])
    each = frame.height * frame.width
    to = _flat_places(down, right, windows, (frame.height, frame.width), -1, pixels.device)
    first = torch.arange(0, len(pixels), each, device=to.device)
    first = first.repeat_interleave(windows.height * windows.width)
    if _overhangs(down, windows.height, frame.height) or _overhangs(
        right, windows.width, frame.width
    ):
        inside = (to >= 0).nonzero().squeeze(1)
        news, to, first = news[inside], to[inside], first[inside]
    pixels.index_copy_(0, to + first, news)
    return framed


def _as_maps(
    pixels: Float[Tensor, "pixel channel"], windows: Windows
) -> Float[Tensor, "position channel row col"]:
    """A view."""
    shape = len(windows.top), windows.height, windows.width, pixels.shape[1]
    return pixels.view(shape).permute(0, 3, 1, 2)


def _common(offset: int, length: int, room: int) -> tuple[slice, slice]:
    """Where something of ``length`` lies in ``room``, and which part of it does."""
    begin, end = max(0, offset), min(room, offset + length)
    end = max(begin, end)
    return slice(begin, end), slice(begin - offset, end - offset)


def _flat_places(
    top: Int[np.ndarray, " position"],
    left: Int[np.ndarray, " position"],
    windows: Windows,
    size: tuple[int, int],
    beyond: int,
    device: torch.device,
) -> Int64[Tensor, " pixel"]:
    """The place of each pixel of windows that begin there, in a map of ``size``, counted row by
    row; ``beyond`` where there is none.  Made where it is needed: it is longer than all else that
    is told to a device."""
    starts = torch.from_numpy(np.stack([top, left]).astype(np.int64)).to(device)
    rows = starts[0, :, None] + torch.arange(windows.height, device=device)
    cols = starts[1, :, None] + torch.arange(windows.width, device=device)
    places = (rows * size[1])[:, :, None] + cols[:, None, :]
    if _overhangs(top, windows.height, size[0]):
        places.masked_fill_(((rows < 0) | (rows >= size[0]))[:, :, None], beyond)
    if _overhangs(left, windows.width, size[1]):
        places.masked_fill_(((cols < 0) | (cols >= size[1]))[:, None, :], beyond)
    return places.view(-1)


def _overhangs(start: Int[np.ndarray, " position"], length: int, room: int) -> bool:
    return bool(start.min() < 0 or start.max() + length > room)
