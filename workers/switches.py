"""What the forward pass records for the way back down: switches, and masks of rectifiers.

A switch says where in its window a max pool found its maximum (Zeiler & Fergus 2013, section 2.1
"Unpooling"): one byte a pooled value, not the eight of an index, the number of the kernel's place,
row by row.  A mask says where a rectifier's input was positive and below its ceiling, one byte a
value; the deconvnet needs none (``workers.ops.RECTIFICATIONS``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor, nn

from deconvoy.spec import Method
from workers.fields import Window
from workers.ops import RECTIFICATIONS, Down
from workers.sight import padding_of, sliding_window
from workers.steps import Step


@dataclass(frozen=True)
class Switches:
    """Of some images, for every step on a path that is recorded."""

    codes: Mapping[int, Integer[Tensor, "image row col channel"] | Bool[Tensor, "image *value"]]
    """By step: switches, or a mask.  Of maps channels are last, so that those of one place lie side
    by side."""

    @staticmethod
    def joined(parts: Sequence["Switches"]) -> "Switches":
        return Switches(
            {step: torch.cat([part.codes[step] for part in parts]) for step in parts[0].codes}
        )

    def each(self, count: int) -> "list[Switches]":
        """Those of the first ``count`` images one by one; copies, where there are more."""
        alone = all(len(codes) == 1 for codes in self.codes.values())
        return [
            Switches({s: c if alone else c[i : i + 1].clone() for s, c in self.codes.items()})
            for i in range(count)
        ]

    @property
    def nbytes(self) -> int:
        return sum(codes.nbytes for codes in self.codes.values())


@dataclass(frozen=True)
class WindowSwitches:
    """Of the hits of one group, in its windows, for every step on a path that is recorded."""

    codes: Mapping[
        int, Integer[Tensor, "hit row col channel"] | Bool[Tensor, "hit row col channel"]
    ]
    """By step: switches, or a mask."""


def recorded(path: Sequence[Step], method: Method) -> list[int]:
    """Steps of which a method of projection needs to know how the forward pass went, by index."""
    kinds = {Down.UNPOOL} | ({Down.RECTIFY} if RECTIFICATIONS[method].by_input else set())
    return [step.index for step in path if step.depends and step.rule and step.rule.down in kinds]


def passed(inputs: Float[Tensor, "image *value"], ceiling: float | None) -> Bool[Tensor, "..."]:
    """The mask of a rectifier: where its input is positive and below the ceiling.

    Returns:
        Like ``inputs``, but of maps with the channels last.
    """
    mask = inputs > 0
    if ceiling is not None:
        mask &= inputs < ceiling
    return (mask.permute(0, 2, 3, 1) if mask.ndim == 4 else mask).contiguous()


def pooled(
    maps: Float[Tensor, "image channel below_row below_col"],
    pool: nn.MaxPool2d,
    padded: bool = False,
) -> tuple[Float[Tensor, "image channel row col"], Integer[Tensor, "image row col channel"]]:
    """A max pool's output and its switches.

    Args:
        padded: the maps are what the pool looks at, with its padding.
    """
    padding = (0, 0) if padded else padding_of(pool)
    rows, cols = (sliding_window(pool, axis) for axis in (0, 1))
    # Where channels lie one behind the other, maxima of many are found at a time.
    turned = maps.contiguous(memory_format=torch.channels_last)
    outputs, indices = nn.functional.max_pool2d(
        turned,
        pool.kernel_size,
        pool.stride,
        padding,
        pool.dilation,
        ceil_mode=pool.ceil_mode and not padded,
        return_indices=True,
    )
    codes = coded(indices, rows, cols, padding, maps.shape[2:])
    return (outputs.contiguous() if maps.is_contiguous() else outputs), codes


def coded(
    indices: Int64[Tensor, "image channel row col"],
    rows: Window,
    cols: Window,
    padding: tuple[int, int],
    size: Sequence[int],
) -> Integer[Tensor, "image row col channel"]:
    """From places in the flattened input map, of height and width ``size``, to the kernel's."""
    width, below = size[1], size[0] * size[1]
    first_row, first_col = (
        torch.arange(count, device=indices.device) * window.stride - pad
        for count, window, pad in zip(indices.shape[2:], (rows, cols), padding, strict=True)
    )
    # Whole numbers in floating point: torch divides those many at a time, and integers one by one.
    places = indices.permute(0, 2, 3, 1).to(torch.float32 if below < 2**22 else torch.float64)
    row = (places + 0.5).div_(width).floor_()
    col = places.sub_(row, alpha=width).sub_(first_col[:, None])
    row.sub_(first_row[:, None, None])
    if (rows.dilation, cols.dilation) != (1, 1):
        row.div_(rows.dilation)
        col.div_(cols.dilation)
    kind = torch.uint8 if rows.kernel * cols.kernel <= 256 else torch.int32
    return row.mul_(cols.kernel).add_(col).to(kind).contiguous()
