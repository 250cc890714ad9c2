"""How fast an occlusion sweep is beside running the model on every occluded image.

The sweep gives the class scores and the activity of all layers, the plain loop the class scores
alone, in batches, in the faster of torch's two memory layouts.  They take turns in one process.
Every position costs the plain loop the same, so it runs ``PLAIN`` of them; the sweep always runs
all positions, since the border cuts windows smaller.
"""

import copy
import time
from collections.abc import Callable, Iterator
from functools import partial
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


Times = tuple[float, float]
"""Wall time, and processor time of all threads, which other processes disturb least."""


def measure() -> Iterator[dict[str, Any]]:
    """One row a model."""
    for name, target in SUBJECTS.items():
        yield _measure(name, target)


def _measure(name: str, target: float) -> dict[str, Any]:
    packed = pack(ModelSpec(name=f"torchvision/{name}"), seed=0)
    network = trace(packed)
    contiguous = packed.build().eval()
    turned: Any = copy.deepcopy(contiguous)
    models: dict[torch.memory_format, nn.Module] = {
        torch.contiguous_format: contiguous,
        torch.channels_last: turned.to(memory_format=torch.channels_last),
    }
    image = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    grid, fill = grid_over_image(SIDE, SIDE, PATCH, STRIDE), torch.zeros(3)
    positions = len(grid.squares())
    plan = Extents(network, network.steps, grid.squares())
    swept: list[Times] = []
    plain: list[Times] = []
    for turn in range(TURNS + 1):
        once = _timed(lambda: sweep(network, image, grid, fill))
        loops = [
            _timed(partial(_loop, model, layout, image, grid)) for layout, model in models.items()
        ]
        if turn:  # the first warms up
            swept.append(once)
            wall, processor = (min(times) * positions / PLAIN for times in zip(*loops, strict=True))
            plain.append((wall, processor))
    full = plan.multiply_adds_of_full_runs()
    return {
        "model": name,
        "positions": positions,
        "sweep_s": median(wall for wall, _ in swept),
        "plain_s": median(wall for wall, _ in plain),
        "ratio": median(p[0] / s[0] for p, s in zip(plain, swept, strict=True)),
        "ratio_of_work": median(p[1] / s[1] for p, s in zip(plain, swept, strict=True)),
        "target": target,
        "ratio_of_multiply_adds": full / plan.multiply_adds(plan.batches(BUDGET)),
        "seconds": {"sweep": swept, "plain": plain},
    }


@torch.inference_mode()
def _loop(
    model: nn.Module,
    layout: torch.memory_format,
    image: Float[Tensor, "1 channel row col"],
    grid: Grid,
) -> None:
    """``PLAIN`` positions."""
    squares = grid.squares()
    images = image.repeat(BATCH, 1, 1, 1).contiguous(memory_format=layout)
    for first in range(0, PLAIN, BATCH):
        batch = images.clone()
        for place in range(BATCH):
            top, left = int(squares.top[first + place]), int(squares.left[first + place])
            batch[place, :, top : top + PATCH, left : left + PATCH] = 0
        model(batch)


def _timed(compute: Callable[[], object]) -> Times:
    wall, processor = time.perf_counter(), time.process_time()
    compute()
    return time.perf_counter() - wall, time.process_time() - processor
