"""Operations that slide a window over maps, done on a part of the maps only.

The part comes with the padding it has in the whole map already around it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from workers.fields import Window
from workers.overlays import CleanMap
from workers.sight import sliding_window
from workers.windows import Windows


class Sliding:
    """A convolution or pool of the graph.

    Args:
        module: it has a row with ``Reach.WINDOW``.
        below: one map that it reads, of any values.
    """

    def __init__(self, module: nn.Module, below: Float[Tensor, "1 channel row col"]) -> None:
        self._module: Any = module
        self.rows: Window = sliding_window(module, 0)
        self.cols: Window = sliding_window(module, 1)
        self.padding = float("-inf") if isinstance(module, nn.MaxPool2d) else 0.0
        """What the whole map is padded with: no maximum is ever taken from the padding."""
        self._weight: Tensor | None = None
        if isinstance(module, nn.Conv2d):
            # Turned here, else torch would turn it at every call.
            self._weight = module.weight.contiguous(memory_format=torch.channels_last)
        self._share = self._shares(below) if isinstance(module, nn.AvgPool2d) else None

    def __call__(
        self, part: Float[Tensor, "position channel row col"], windows: Windows
    ) -> Float[Tensor, "position output_channel output_row output_col"]:
        """The operation's output in ``windows``, from what it reads for them."""
        module = self._module
        if self._weight is not None:
            return F.conv2d(
                part, self._weight, module.bias, module.stride, 0, module.dilation, module.groups
            )
        if isinstance(module, nn.MaxPool2d):
            return F.max_pool2d(part, module.kernel_size, module.stride, 0, module.dilation)
        means = F.avg_pool2d(part, module.kernel_size, module.stride)
        return means if self._share is None else means.mul_(self._share.read(windows))

    def _shares(self, below: Float[Tensor, "1 channel row col"]) -> CleanMap | None:
        """By what the mean over a full window is to be multiplied at each position of the map.

        Pools differ in how many pixels they divide by where a window hangs over the border; what
        they make of a map of ones tells.  None if they always divide by the full window.
        """
        ones = torch.ones_like(below[:, :1])
        counted: Tensor = self._module(ones)
        over = [
            max(0, _end(window, count) - length)
            for window, count, length in zip(
                (self.rows, self.cols), counted.shape[2:], ones.shape[2:], strict=True
            )
        ]
        padded = F.pad(ones, (self.cols.padding, over[1], self.rows.padding, over[0]))
        full = F.avg_pool2d(padded, self._module.kernel_size, self._module.stride)
        shares = counted / full[:, :, : counted.shape[2], : counted.shape[3]]
        return None if bool((shares == 1).all()) else CleanMap(shares)


def _end(window: Window, count: int) -> int:
    """One past the last row that ``count`` positions read."""
    return (count - 1) * window.stride - window.padding + window.kernel
