"""How fast an occlusion sweep is beside running the model on every occluded image.

The sweep gives the class scores and the activity of all layers, the plain loop the class scores
alone, in batches, in the faster of torch's two memory layouts.  They take turns in one process.
Every position costs the plain loop the same, so it runs ``PLAIN`` of them; the sweep always runs
all positions, since the border cuts windows smaller.
"""

import copy
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deconvoy.spec import ModelSpec
from workers.extents import Extents
from workers.grids import Grid, grid_over_image
from workers.incremental import BUDGET
from workers.job import trace
from workers.models import pack
from workers.occlusion import sweep

SIDE = 224
PATCH, STRIDE = 16, 8
BATCH = 32
PLAIN = 96
TURNS = 3

SUBJECTS = {"alexnet": 2.5, "resnet18": 2.0, "vgg16": 6.0}
"""The models, with random weights, and how many times as fast the sweep is to be."""


def measure() -> Iterator[dict[str, Any]]:
    """One row a model."""
    for name, target in SUBJECTS.items():
        yield _measure(name, target)


def _measure(name: str, target: float) -> dict[str, Any]:
    packed = pack(ModelSpec(name=f"torchvision/{name}"), seed=0)
    network = trace(packed)
    contiguous = packed.build().eval()
    turned: Any = copy.deepcopy(contiguous)
    models = {
        torch.contiguous_format: contiguous,
        torch.channels_last: turned.to(memory_format=torch.channels_last),
    }
    image = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    grid, fill = grid_over_image(SIDE, SIDE, PATCH, STRIDE), torch.zeros(3)
    positions = len(grid.squares())
    plan = Extents(network, network.steps, grid.squares())
    sweeps: list[float] = []
    loops: list[float] = []
    for turn in range(TURNS + 1):
        began = time.perf_counter()
        sweep(network, image, grid, fill)
        swept = time.perf_counter() - began
        plain = min(_loop(model, layout, image, grid) for layout, model in models.items())
        if turn:  # the first warms up
            sweeps.append(swept)
            loops.append(plain * positions / PLAIN)
    full = plan.multiply_adds_of_full_runs()
    return {
        "model": name,
        "positions": positions,
        "sweep_s": median(sweeps),
        "plain_s": median(loops),
        "ratio": median(plain / swept for plain, swept in zip(loops, sweeps, strict=True)),
        "target": target,
        "ratio_of_multiply_adds": full / plan.multiply_adds(plan.batches(BUDGET)),
        "seconds": {"sweep": sweeps, "plain": loops},
    }


@torch.inference_mode()
def _loop(
    model: nn.Module,
    layout: torch.memory_format,
    image: Float[Tensor, "1 channel row col"],
    grid: Grid,
) -> float:
    """Seconds that ``PLAIN`` positions take."""
    squares = grid.squares()
    images = image.repeat(BATCH, 1, 1, 1).contiguous(memory_format=layout)
    began = time.perf_counter()
    for first in range(0, PLAIN, BATCH):
        batch = images.clone()
        for place in range(BATCH):
            top, left = int(squares.top[first + place]), int(squares.left[first + place])
            batch[place, :, top : top + PATCH, left : left + PATCH] = 0
        model(batch)
    return time.perf_counter() - began
