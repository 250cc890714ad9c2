"""Occlusions made by hand: small grids whose every number is known."""

from typing import Any

import numpy as np

from deconvoy.occlusion import Occlusion


def handmade(probability: Any = ((0.9, 0.2), (0.8, 0.7)), **changes: Any) -> Occlusion:
    """A 40-pixel image under a square of 10 pixels; ``changes`` replace fields.

    The square stands at 0, 30 on a grid of two by two, and evenly between on larger ones.
    """
    shares = np.array(probability, np.float32)
    starts = [np.linspace(0, 30, n).astype(np.int32) for n in shares.shape]
    grid = np.arange(shares.size, dtype=np.float32).reshape(shares.shape)
    fields: dict[str, Any] = {
        "image": 3,
        "uri": "a/0003.png",
        "size": (40, 40),
        "y": starts[0],
        "x": starts[1],
        "patch": 10,
        "stride": 30,
        "fill": (124.0, 116.0, 104.0),
        "target": 1,
        "probability": shares,
        "clean_probability": 0.85,
        "label": np.where(shares > 0.5, 1, 0).astype(np.int64),
        "clean_label": 1,
        "top5": None,
        "top5_probability": None,
        "unit": {"relu1": 4, "relu5": 7, "logits": 1},
        "activity": {"relu1": grid, "relu5": grid + 10, "logits": grid - 2},
        "clean_activity": {"relu1": 2.0, "relu5": 12.0, "logits": 3.0},
        "picture": np.full((40, 40, 3), 60, np.uint8),
        "projection": {"relu1": np.eye(40, dtype=np.float32)[..., None].repeat(3, 2)},
        "boxes": np.zeros((0, 4), np.int32),
        "classes": ("dog", "cat", "ball"),
        "maps": ("relu1", "relu5"),
    }
    return Occlusion(**{**fields, **changes})
