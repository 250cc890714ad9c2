"""Features of one layer for a classifier: its feature maps, averaged over the cells of a grid."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from workers.graph import Layer


def cells(layer: Layer, pool: str | int, features: int) -> int | None:
    """Cells a side of the grid; None where every value is kept as it is.

    Args:
        pool: ``flat``, ``auto``, or cells a side.
        features: of the layer at most, where ``pool`` is ``auto``.
    """
    side = min(layer.height, layer.width)
    if pool == "flat" or not layer.is_map:
        return None
    if isinstance(pool, int):
        return min(pool, side)
    finest = int((features / layer.units) ** 0.5)
    return max(1, min(side, finest))


def told(layer: Layer, grid: int | None) -> str:
    """What was done, for people."""
    if grid is None:
        return "flattened" if layer.is_map else "as they are"
    return f"mean over {grid}×{grid} cells"


def count(layer: Layer, grid: int | None) -> int:
    """Features of the layer."""
    return layer.units * (layer.height * layer.width if grid is None else grid**2)


def pooled(values: Tensor, layer: Layer, grid: int | None) -> Float[Tensor, "image feature"]:
    """Of a layer's values as ``Network.forward`` shows them, float32.  Cells are those of torch's
    adaptive average: they cover the map, and may share a row or column."""
    if layer.ceiling is not None:  # seen before it is cut off
        values = values.clamp(0, layer.ceiling)
    if grid is not None:
        values = functional.adaptive_avg_pool2d(values, grid)
    return values.flatten(1).to(torch.float32)
