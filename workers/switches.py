"""Switches: where in its window each max pool found its maximum, for the way back down.

One byte a pooled value, not the eight of an index: the number of the kernel's place, row by row.
(Zeiler & Fergus 2013, section 2.1 "Unpooling".)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64, Integer
from torch import Tensor, nn

from workers.sight import sliding_window


@dataclass(frozen=True)
class Switches:
    """Of some images, for every max pool on a path."""

    codes: Mapping[int, Integer[Tensor, "image row col channel"]]
    """By step; channels last, so that the switches of one place lie side by side."""

    @staticmethod
    def joined(parts: Sequence["Switches"]) -> "Switches":
        return Switches(
            {step: torch.cat([part.codes[step] for part in parts]) for step in parts[0].codes}
        )

    @property
    def nbytes(self) -> int:
        return sum(codes.nbytes for codes in self.codes.values())


def coded(
    indices: Int64[Tensor, "image channel row col"], pool: nn.MaxPool2d, width: int
) -> Integer[Tensor, "image row col channel"]:
    """From places in the flattened input map, ``width`` wide, to places in the kernel."""
    rows, cols = (sliding_window(pool, axis) for axis in (0, 1))
    first_row = torch.arange(indices.shape[2], device=indices.device) * rows.stride - rows.padding
    first_col = torch.arange(indices.shape[3], device=indices.device) * cols.stride - cols.padding
    row = (indices // width - first_row[:, None]) // rows.dilation
    col = (indices % width - first_col) // cols.dilation
    kind = torch.uint8 if rows.kernel * cols.kernel <= 256 else torch.int32
    return (row * cols.kernel + col).permute(0, 2, 3, 1).to(kind).contiguous()
