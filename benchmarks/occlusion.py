"""How fast an occlusion sweep is beside running the model on every occluded image.

The sweep gives the class scores and the activity of all layers, as a worker computes it: parts of
the grid in lanes of one thread each; the plain loop, in batches and in
the faster of torch's two memory layouts, the class scores alone; Captum's Occlusion the fall of one
score, with the best of several numbers of perturbations a call.  They take turns in one process.
Every position costs the others the same, so they run some of them; the sweep always runs all, since
windows are smaller at the border.
"""

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from captum.attr import Occlusion
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.comparison import (
    Comparison,
    fastest,
    in_turns,
    largest_difference,
    photographs,
    timed,
)
from deconvoy.spec import ModelSpec
from workers.extents import Extents
from workers.graph import Network
from workers.grids import Grid, grid_over_image
from workers.job import trace
from workers.machine import cores
from workers.models import pack
from workers.occluding import joined, parts_of
from workers.occlusion import Sweep, sweep
from workers.portions import portions_on

SIDE = 224
PATCH, STRIDE = 16, 8
BATCH = 128 if torch.cuda.is_available() else 32
PLAIN = 3 * BATCH
CAPTUM_PATCH = 32
PERTURBATIONS = (1, 4, 16, 32)
"""A call of Captum, from which the best is taken for each model."""
TURNS = 3


@dataclass(frozen=True)
class Subject:
    """A model with random weights, and how many times as fast the sweep is to be."""

    name: str
    than_loop: float
    than_captum: float


SUBJECTS = (
    Subject("alexnet", 2.5, 4.0),
    Subject("resnet18", 2.0, 2.5),
    Subject("vgg16", 6.0, 8.0),
)


def measure(folder: Path | None) -> Iterator[Comparison]:
    """Two rows a model.

    Args:
        folder: of photographs; None for noise.
    """
    for subject in SUBJECTS:
        yield from _measure(subject, folder)


def _measure(subject: Subject, folder: Path | None) -> Iterator[Comparison]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    packed = pack(ModelSpec(name=f"torchvision/{subject.name}"), seed=0)
    network = trace(packed).to(device)
    models = _models(packed.build().eval().to(device))
    image = photographs(folder, 1, packed.transform).to(device)
    grid, fill = grid_over_image(SIDE, SIDE, PATCH, STRIDE), torch.zeros(3, device=device)
    positions = len(grid.squares())
    layout = "channels_last"  # Captum keeps the layout of the image
    captum = Occlusion(models[layout])
    tried = {n: timed(partial(_captum, captum, image, n)) for n in PERTURBATIONS}
    perturbations = min(tried, key=lambda n: tried[n])
    calls = _captum_positions()
    ways: dict[str, Callable[[], object]] = {
        "sweep": partial(_sweep, network, image, grid, fill),
        **{name: partial(_loop, model, image, grid, PLAIN) for name, model in models.items()},
        "captum": partial(_captum, captum, image, perturbations),
    }
    seconds = in_turns(ways, TURNS)
    ours = [t / positions for t in seconds["sweep"]]
    loops = {name: [t / PLAIN for t in seconds[name]] for name in models}
    best = fastest(loops)
    row = {
        "model": subject.name,
        "per": "position",
        "ours": ours,
        "work": _share_of_work(network, grid),
    }
    difference = _difference(network, models["contiguous"], image, grid, fill)
    yield Comparison(
        what="occlusion",
        against=f"plain loop, {best}",
        theirs=loops[best],
        at_least=subject.than_loop,
        difference=difference,
        details={"positions": positions, "loops_s": {n: median(t) for n, t in loops.items()}},
        **row,
    )
    yield Comparison(
        what="occlusion",
        against=f"Captum, {perturbations} a call",
        theirs=[t / calls for t in seconds["captum"]],
        at_least=subject.than_captum,
        details={"tried_s_a_position": {str(n): t / calls for n, t in tried.items()}},
        **row,
    )


def _models(model: nn.Module) -> dict[str, nn.Module]:
    turned: Any = copy.deepcopy(model)
    return {
        "contiguous": model,
        "channels_last": turned.to(memory_format=torch.channels_last),
    }


def _share_of_work(network: Network, grid: Grid) -> float:
    """With batches as a worker makes them."""
    portions = portions_on(network.device.type)
    done = in_full = 0
    for rows in parts_of(grid, portions.grid_parts):
        squares = replace(grid, y=grid.y[rows]).squares()
        extents = Extents(network, network.steps, squares)
        done += extents.multiply_adds(extents.batches(portions.square_bytes))
        in_full += extents.multiply_adds_of_full_runs()
    return done / in_full


def _sweep(network: Network, image: Tensor, grid: Grid, fill: Tensor) -> Sweep:
    """In lanes, as many as there are cores, or one on a GPU."""
    lanes = 1 if image.is_cuda else cores()
    parts = parts_of(grid, portions_on(network.device.type).grid_parts)

    def part(rows: np.ndarray) -> Sweep:
        torch.set_num_threads(1)
        return sweep(network, image, replace(grid, y=grid.y[rows]), fill)

    with ThreadPoolExecutor(lanes) as pool:
        swept = list(pool.map(part, parts))
    torch.set_num_threads(cores())
    return joined(grid, parts, swept)


@torch.inference_mode()
def _loop(
    model: nn.Module, image: Float[Tensor, "1 channel row col"], grid: Grid, positions: int
) -> Tensor:
    """Outputs for some positions, evenly over the grid."""
    squares = grid.squares()
    layout: Any = (
        torch.channels_last
        if next(model.parameters()).is_contiguous(memory_format=torch.channels_last)
        else torch.contiguous_format
    )
    chosen = _chosen(len(squares), positions)
    found = []
    for batch in chosen.split(BATCH):
        images = image.repeat(len(batch), 1, 1, 1).contiguous(memory_format=layout)
        for row, position in enumerate(batch.tolist()):
            top, left = int(squares.top[position]), int(squares.left[position])
            images[row, :, top : top + PATCH, left : left + PATCH] = 0
        found.append(model(images))
    return torch.cat(found)


def _chosen(count: int, positions: int) -> Tensor:
    return torch.linspace(0, count - 1, positions).round().long()


def _difference(
    network: Network, model: nn.Module, image: Tensor, grid: Grid, fill: Tensor
) -> float:
    slow = _loop(model, image, grid, PLAIN).cpu()
    chosen = _chosen(len(grid.squares()), PLAIN).numpy()
    return largest_difference(
        torch.from_numpy(_sweep(network, image, grid, fill).logits[chosen]), slow
    )


def _captum(captum: Occlusion, image: Tensor, perturbations: int) -> Tensor:
    """The fall of output 0, for squares so large that there are few of them: each is one forward
    pass, whatever its size."""
    found: Tensor = captum.attribute(
        image.contiguous(memory_format=torch.channels_last),
        sliding_window_shapes=(image.shape[1], CAPTUM_PATCH, CAPTUM_PATCH),
        strides=(image.shape[1], CAPTUM_PATCH, CAPTUM_PATCH),
        baselines=0,
        target=0,
        perturbations_per_eval=perturbations,
    )
    return found


def _captum_positions() -> int:
    """And the clean image."""
    each = SIDE // CAPTUM_PATCH
    return each * each + 1
