"""Whether a model treats each image of a batch by itself, as occlusion needs, whose squares are
images of one batch, and whatever else compares an image with changed copies of it."""

import torch
from torch import Tensor

from deconvoy.errors import ModelUnsupported
from workers.graph import Network
from workers.steps import Step, op_name

TOLERANCE = 1e-4
"""Of a step's largest value; kernels may round differently where other images differ."""


def require_independent(network: Network, kind: str) -> None:
    """Raises ModelUnsupported: an image's activations depend on the others of its batch.

    Args:
        kind: of the analysis that needs them not to.
    """
    step = mixing_step(network)
    if step is not None:
        raise ModelUnsupported(
            f"analyses.{kind}: {step.name} ({op_name(step)}) gives another output for an image "
            "where the other images of the batch differ, or at every call, so that what a change "
            "of the image does cannot be told: give its BatchNorm running statistics, switch its "
            "dropout off, or leave the analysis out."
        )


@torch.inference_mode()
def mixing_step(network: Network) -> Step | None:
    """The first step that does not treat images one by one; None where all do.

    Found by trying: one image of noise beside two others.  A step that mixes images in a way that
    this noise does not show is not found.
    """
    noise = torch.rand(3, *network.input_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    parameters = (p for s in network.steps if s.module for p in s.module.parameters())
    like = next(parameters, noise)
    one, two, other = noise.to(like.device, like.dtype)
    firsts = [_firsts(network, torch.stack([one, beside])) for beside in (two, other)]
    for step in network.steps:
        if step.index in firsts[0] and _differ(*(first[step.index] for first in firsts)):
            return step
    return None


def _firsts(network: Network, images: Tensor) -> dict[int, Tensor]:
    """Of every step that has an image axis, the first image's output."""
    values: dict[int, object] = {}
    found: dict[int, Tensor] = {}
    for step in network.steps:
        # Copies: a step may overwrite what it takes.
        given = {i: _copied(values[i]) for i in network.sources(step)}
        values[step.index] = value = network.run(step, given, images)
        if step.depends and step.shape and isinstance(value, Tensor):
            found[step.index] = value[0].clone()
    return found


def _copied(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else value


def _differ(one: Tensor, other: Tensor) -> bool:
    one, other = one.double(), other.double()
    return bool((one - other).abs().max() > TOLERANCE * max(1e-30, float(one.abs().max())))
