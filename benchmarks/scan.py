"""How fast the scan of all layers is beside the same model's own forward pass.

Both compute the same normalised batches, in turns, in one process.  The model runs as anybody would
run it: one batch after the other, each operation on all cores.  The scan runs as a worker does: as
many lanes as there are cores, each with a batch of its own and one thread an operation.  It starts
without a floor, as the first shard of a job does, when nearly every image still enters some top
nine: later shards are faster.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deconvoy.spec import ModelSpec
from workers.graph import Network
from workers.job import trace
from workers.machine import cores
from workers.models import pack
from workers.scan import ShardScan, combined

BATCH = 16
SIDE = 224
K = 9

TARGET = 0.9


TURNS = (3, 15)
"""At least and at most; between them a model is measured for ``MODEL_SECONDS``."""

MODEL_SECONDS = 45.0


@dataclass(frozen=True)
class Subject:
    """A model to measure, with random weights: speed does not depend on them."""

    name: str
    batches: int
    """In a turn: some seconds' worth."""


SUBJECTS = (
    Subject("alexnet", 8),
    Subject("squeezenet1_1", 8),
    Subject("resnet18", 8),
    Subject("vgg11", 4),
)


@dataclass(frozen=True)
class Times:
    """Of one way to compute, turn by turn."""

    wall: list[float]
    processor: list[float]
    """Of all threads; it does not count the time other processes had the cores."""


def measure() -> Iterator[dict[str, Any]]:
    """One row a model."""
    threads = torch.get_num_threads()
    lanes = cores()
    with ThreadPoolExecutor(lanes) as pool:
        for subject in SUBJECTS:
            yield _measure(subject, pool, lanes)
    torch.set_num_threads(threads)


def _measure(subject: Subject, pool: ThreadPoolExecutor, lanes: int) -> dict[str, Any]:
    packed = pack(ModelSpec(name=f"torchvision/{subject.name}"), seed=0)
    model, network = packed.build(), trace(packed)
    generator = torch.Generator().manual_seed(0)
    batches = torch.randn(subject.batches, BATCH, 3, SIDE, SIDE, generator=generator)
    ways: dict[str, Callable[[], object]] = {
        "forward": lambda: _forward(model, batches, lanes),
        "forward_in_lanes": lambda: _forward_in_lanes(model, batches, pool),
        "scan": lambda: _scan(network, batches, pool, lanes),
    }
    times = _take_turns(ways)
    forward, lane_forward, scan = (times[way] for way in ways)
    images = subject.batches * BATCH
    rates = {f"{way}_images_s": images / median(took.wall) for way, took in times.items()}
    return {
        "model": subject.name,
        "layers": len(network.layers),
        "units": sum(layer.units for layer in network.layers),
        **rates,
        "ratio": median(forward.wall) / median(scan.wall),
        "ratio_in_lanes": median(lane_forward.wall) / median(scan.wall),
        "ratio_of_work": median(lane_forward.processor) / median(scan.processor),
        "turns": len(scan.wall),
        "seconds": {way: asdict(took) for way, took in times.items()},
    }


def _take_turns(ways: Mapping[str, Callable[[], object]]) -> dict[str, Times]:
    """Each way once a turn; the first turn warms up and is not counted."""
    times = {way: Times([], []) for way in ways}
    fewest, most = TURNS
    began = time.perf_counter()
    for turn in range(most + 1):
        for way, compute in ways.items():
            wall, processor = time.perf_counter(), time.process_time()
            compute()
            if turn:
                times[way].wall.append(time.perf_counter() - wall)
                times[way].processor.append(time.process_time() - processor)
        if turn >= fewest and time.perf_counter() - began > MODEL_SECONDS:
            break
    return times


@torch.inference_mode()
def _forward(
    model: nn.Module, batches: Float[Tensor, "batch image channel row col"], threads: int
) -> None:
    torch.set_num_threads(threads)
    for batch in batches:
        model(batch)


def _forward_in_lanes(
    model: nn.Module,
    batches: Float[Tensor, "batch image channel row col"],
    pool: ThreadPoolExecutor,
) -> None:
    def forward(batch: Tensor) -> None:
        with torch.inference_mode():
            torch.set_num_threads(1)
            model(batch)

    list(pool.map(forward, batches))


def _scan(
    network: Network,
    batches: Float[Tensor, "batch image channel row col"],
    pool: ThreadPoolExecutor,
    lanes: int,
) -> None:
    floor = torch.full((sum(layer.units for layer in network.layers),), -torch.inf)
    ids = torch.arange(len(batches) * BATCH).view(-1, BATCH)
    valid = torch.ones(BATCH, dtype=torch.bool)

    def scan_lane(lane: int) -> ShardScan:
        torch.set_num_threads(1)
        scan = ShardScan(network, network.layers, K, floor)
        for number in range(lane, len(batches), lanes):
            scan.add(batches[number], ids[number], valid)
        return scan

    combined(list(pool.map(scan_lane, range(lanes))), K)
