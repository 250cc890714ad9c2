"""Cut and store what a hit shows: window, scaling down, int8 with a scale.  Pure."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int, UInt8
from torch import Tensor

from deconvoy.schema import PAD_PIXEL


def stored_size(window: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Height and width a window is stored with: its own, or its longer side ``max_side``."""
    longer = max(window)
    if longer <= max_side:
        return window
    height, width = (max(1, round(side * max_side / longer)) for side in window)
    return height, width


def cut(
    pictures: Float[Tensor, "hit channel row col"],
    windows: Int[Tensor, "hit 4"],
    size: tuple[int, int],
    fill: float,
) -> Float[Tensor, "hit channel y x"]:
    """Cut each picture to its window (all of one size), scaled down to ``size`` by area.

    Beyond the picture there is ``fill``.
    """
    height, width = (int(windows[0, 2 + axis] - windows[0, axis]) for axis in (0, 1))
    if (height, width) == tuple(pictures.shape[2:]) and not windows[:, :2].any():
        cuts = pictures
    else:
        rows, cols = pictures.shape[2:]
        top, left = (max(0, -int(windows[:, axis].min())) for axis in (0, 1))
        bottom = max(0, int(windows[:, 2].max()) - rows)
        right = max(0, int(windows[:, 3].max()) - cols)
        padded = F.pad(pictures, (left, right, top, bottom), value=fill)
        cuts = torch.stack(
            [
                picture[:, y + top : y + top + height, x + left : x + left + width]
                for picture, (y, x) in zip(padded, windows[:, :2].tolist(), strict=True)
            ]
        )
    return cuts if size == (height, width) else F.interpolate(cuts, size=size, mode="area")


def cut_patches(
    pixels: UInt8[Tensor, "hit channel row col"],
    windows: Int[Tensor, "hit 4"],
    size: tuple[int, int],
) -> UInt8[Tensor, "hit y x channel"]:
    cuts = cut(pixels.float(), windows, size, float(PAD_PIXEL))
    return cuts.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def quantised(
    projections: Float32[Tensor, "hit channel y x"], storage: str
) -> tuple[Tensor, Float32[Tensor, " hit"]]:
    """Stored values (hit, y, x, channel) and the scale each is multiplied by to get it back.

    int8: the largest magnitude is 127, so the error is at most 1/254 of it.  float16: the largest
    is 1, so that nothing overflows.
    """
    steps = 127.0 if storage == "int8" else 1.0
    scale = projections.abs().amax((1, 2, 3)) / steps
    divisor = torch.where(scale > 0, scale, torch.ones_like(scale))
    values = (projections / divisor[:, None, None, None]).permute(0, 2, 3, 1)
    if storage == "int8":
        return values.round().clamp(-127, 127).to(torch.int8).contiguous(), scale
    return values.to(torch.float16).contiguous(), scale
