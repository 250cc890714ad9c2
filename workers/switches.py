"""What the forward pass records for the way back down: switches, and masks of rectifiers.

A switch says where in its window a max pool found its maximum (Zeiler & Fergus 2013, section 2.1
"Unpooling"): one byte a pooled value, not the eight of an index, the number of the kernel's place,
row by row.  A mask says where a rectifier's input was positive and below its ceiling, one bit a
value; the deconvnet needs none (``workers.ops.RECTIFICATIONS``).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Integer, UInt8
from torch import Tensor, nn

from deconvoy.spec import Method
from workers.fields import Window
from workers.ops import RECTIFICATIONS, Down
from workers.sight import padding_of, sliding_window
from workers.steps import Step

BITS = 8
"""Of a mask in a byte."""

GATHER = sum(1 << 56 - 7 * bit for bit in range(BITS))
"""Eight bytes of 0 or 1, taken as one number and times this, have all their bits in the highest
byte: that of byte i, at 8i, gets to 56 + i by the power 56 − 7i, and no two get to one place."""


@dataclass(frozen=True)
class Switches:
    """Of some images, for every step on a path that is recorded."""

    codes: Mapping[int, Integer[Tensor, "image row col channel"] | UInt8[Tensor, "image *byte"]]
    """By step: switches, or a mask as ``packed`` gives it.  Of maps channels are last, so that
    those of one place lie side by side."""

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

    codes: Mapping[int, Integer[Tensor, "hit row col channel"] | UInt8[Tensor, "hit row col byte"]]
    """By step: switches, or a mask as ``packed`` gives it."""


def recorded(path: Sequence[Step], method: Method) -> list[int]:
    """Steps of which a method of projection needs to know how the forward pass went, by index."""
    kinds = {Down.UNPOOL} | ({Down.RECTIFY} if RECTIFICATIONS[method].by_input else set())
    return [step.index for step in path if step.depends and step.rule and step.rule.down in kinds]


def recorded_bytes(step: Step) -> int:
    """Of what is recorded of a step, for one image."""
    values = math.prod(step.shape)
    if step.rule is None or step.rule.down is not Down.RECTIFY:
        return values
    return values // step.shape[0] * -(-step.shape[0] // BITS)


def passed(inputs: Float[Tensor, "image *value"], ceiling: float | None) -> UInt8[Tensor, "..."]:
    """The mask of a rectifier: where its input is positive and below the ceiling.

    Returns:
        Packed along the channels, which are last, or along the neurons.
    """
    mask = inputs > 0
    if ceiling is not None:
        mask &= inputs < ceiling
    return packed(mask.permute(0, 2, 3, 1) if mask.ndim == 4 else mask)


def packed(mask: Bool[Tensor, "*place value"]) -> UInt8[Tensor, "*place byte"]:
    """Eight values a byte, the first in the lowest bit; the last byte is filled up with zeros."""
    filled = F.pad(mask, (0, -mask.shape[-1] % BITS)).contiguous()
    eights = filled.view(torch.uint8).view(torch.int64)
    return (eights * GATHER >> 56 & 0xFF).to(torch.uint8)


def unpacked(mask: UInt8[Tensor, "*place byte"], count: int) -> UInt8[Tensor, "*place value"]:
    """The first ``count`` values, 0 or 1."""
    bit = torch.arange(BITS, dtype=torch.uint8, device=mask.device)
    values = torch.bitwise_right_shift(mask[..., None], bit).bitwise_and_(1)
    return values.flatten(-2)[..., :count]


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
