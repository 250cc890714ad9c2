"""How early a network's features settle in training: strongest images kept, filters turned.

Source: Zeiler & Fergus (ECCV 2014, arXiv:1311.2901), Fig. 4, which shows the strongest activation
of maps at several epochs and finds by eye that lower layers converge first.  Here that is two
numbers for every unit and checkpoint; ``deconvoy.evolution`` reads from them when a layer settles.
"""

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from workers.graph import Layer, Network
from workers.ops import Down


def overlap(
    image: Int64[np.ndarray, "unit rank"], final: Int64[np.ndarray, "unit rank"]
) -> Float32[np.ndarray, " unit"]:
    """Of each unit's strongest images at the end, the share that is among its strongest now; NaN
    where it has none at the end.  −1 is no image."""
    kept = ((image[:, None, :] == final[:, :, None]) & (final >= 0)[:, :, None]).any(2).sum(1)
    there = (final >= 0).sum(1)
    share = np.full(len(final), np.nan, np.float32)
    np.divide(kept, there, out=share, where=there > 0, casting="unsafe")
    return share


def filters(network: Network, layer: Layer) -> Float[Tensor, "unit weight"] | None:
    """The filter that each unit of a layer is the response to, with its BatchNorm folded in; None
    where it is that of no single convolution or matrix: of a sum, say, or behind a pool."""
    step = network.steps[layer.step]
    while step.rule is None or not step.rule.filters:
        passes = step.rule is not None and (step.rule.rectifier or step.rule.down is Down.PASS)
        if len(step.inputs) != 1 or not (passes or isinstance(step.module, nn.BatchNorm2d)):
            return None
        step = network.steps[step.inputs[0]]
    weight = getattr(step.module, "weight", None)
    if not isinstance(weight, Tensor) or len(weight) != layer.units:
        return None
    return weight.flatten(1)


def cosine(
    now: Float[Tensor, "unit weight"], final: Float[Tensor, "unit weight"]
) -> Float32[np.ndarray, " unit"]:
    """Of the angle between each unit's filter now and at the end; NaN where one of them is 0."""
    one, two = now.double(), final.double()
    lengths = one.norm(dim=1) * two.norm(dim=1)
    found = (one * two).sum(1) / lengths
    return torch.where(lengths > 0, found, torch.nan).float().cpu().numpy()
