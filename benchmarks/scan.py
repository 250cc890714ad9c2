"""How fast the scan of all layers is beside the same model's own forward pass.

Both compute the same normalised batches, in turns, in one process, with each BatchNorm folded into
the convolution before it.  The model runs as anybody would run it: one batch after the other, each
operation on all cores, in the faster of torch's two memory layouts.  The scan runs as a worker
does: as many lanes as there are cores, each with a batch of its own and one thread an operation.
It starts without a floor, as the first shard of a job does, when nearly every image still enters
some top nine: later shards are faster.

``candidates`` are the scan in the faster layout, or in bfloat16 where the processor computes in it;
``compute.layout`` and ``compute.precision`` of a job spec.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from benchmarks.comparison import Comparison, fastest, in_turns
from deconvoy.spec import ModelSpec
from workers.graph import Network
from workers.job import trace
from workers.machine import cores
from workers.models import PackedModel, pack
from workers.numerics import LAYOUTS, fast_types
from workers.scan import ShardScan, combined
from workers.topk import Hits

BATCH = 16
SIDE = 224
K = 9
TURNS = 3


@dataclass(frozen=True)
class Subject:
    """A model to measure, with random weights: speed does not depend on them."""

    name: str
    batches: int
    """In a turn: some seconds' worth."""
    at_least: float = 0.95
    candidates_at_least: float | None = None


SUBJECTS = (
    Subject("alexnet", 8, candidates_at_least=1.8),
    Subject("squeezenet1_1", 8),
    Subject("resnet50", 2),
    Subject("vgg16", 2, candidates_at_least=1.8),
)


def measure() -> Iterator[Comparison]:
    """Two rows a model."""
    threads = torch.get_num_threads()
    lanes = 1 if torch.cuda.is_available() else cores()
    with ThreadPoolExecutor(lanes) as pool:
        for subject in SUBJECTS:
            yield from _measure(subject, pool, lanes)
    torch.set_num_threads(threads)


def _measure(subject: Subject, pool: ThreadPoolExecutor, lanes: int) -> Iterator[Comparison]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    packed = pack(ModelSpec(name=f"torchvision/{subject.name}"), seed=0)
    generator = torch.Generator().manual_seed(0)
    batches = torch.randn(subject.batches, BATCH, 3, SIDE, SIDE, generator=generator).to(device)
    networks = {"float32 contiguous": trace(packed).to(device)}
    for dtype in fast_types(torch.device(device)):
        name = f"{str(dtype).removeprefix('torch.')} channels_last"
        networks[name] = trace(packed).cast(dtype, torch.channels_last).to(device)
    models = {name: _folded(packed, layout).to(device) for name, layout in LAYOUTS.items()}
    ways: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        ways[f"model {name}"] = _bound(_forward, model, batches, LAYOUTS[name], cores())
    for name, network in networks.items():
        ways[f"scan {name}"] = _bound(scan_in_lanes, network, batches, pool, lanes)
    seconds = in_turns(ways, TURNS)
    each = {way: [t / (subject.batches * BATCH) for t in took] for way, took in seconds.items()}
    own = {way: took for way, took in each.items() if way.startswith("model")}
    layout = fastest(own)
    exact, *fast = (way for way in each if way.startswith("scan"))
    units = sum(layer.units for layer in networks["float32 contiguous"].layers)
    details = {"units": units, "batch": BATCH, "images_s": _rates(each)}
    yield Comparison(
        what="scan",
        model=subject.name,
        against=f"its own forward pass, {layout.removeprefix('model ')}",
        per="image",
        ours=each[exact],
        theirs=own[layout],
        at_least=subject.at_least,
        details=details,
    )
    best = fastest({way: each[way] for way in fast})
    gain = 1 - median(each[best]) / median(each[exact])
    candidates = units * (2 * K if "bfloat16" in best else K + math.ceil(K / 3))
    yield Comparison(
        what="candidate scan",
        model=subject.name,
        against=f"forward pass, float32 {layout.removeprefix('model ')}",
        per="image",
        ours=each[best],
        theirs=own[layout],
        at_least=subject.candidates_at_least,
        details={
            **details,
            "format": best.removeprefix("scan "),
            "pays_from_images": round(candidates / gain) if gain > 0 else None,
        },
    )


def _rates(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {way: len(took) / sum(took) for way, took in seconds.items()}


def _folded(packed: PackedModel, layout: torch.memory_format) -> nn.Module:
    model: Any = fuse(packed.build().eval())
    folded: nn.Module = model.to(memory_format=layout)
    return folded


def _bound(way: Callable[..., object], *arguments: Any) -> Callable[[], object]:
    return lambda: way(*arguments)


@torch.inference_mode()
def _forward(
    model: nn.Module,
    batches: Float[Tensor, "batch image channel row col"],
    layout: torch.memory_format,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    for batch in batches:
        model(batch.contiguous(memory_format=layout))


def scan_in_lanes(
    network: Network,
    batches: Float[Tensor, "batch image channel row col"],
    pool: ThreadPoolExecutor,
    lanes: int,
) -> Hits:
    """The strongest hits of all units."""
    units = sum(layer.units for layer in network.layers)
    floor = torch.full((units,), -torch.inf, device=batches.device)
    ids = torch.arange(len(batches) * BATCH, device=batches.device).view(-1, BATCH)
    valid = torch.ones(BATCH, dtype=torch.bool, device=batches.device)

    def scan_lane(lane: int) -> ShardScan:
        torch.set_num_threads(1)
        scan = ShardScan(network, network.layers, K, floor)
        for number in range(lane, len(batches), lanes):
            scan.add(batches[number], ids[number], valid)
        return scan

    return combined(list(pool.map(scan_lane, range(lanes))), K)[0]
