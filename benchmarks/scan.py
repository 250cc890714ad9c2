"""How fast the scan of all layers is beside the same model's own forward pass.

Both compute the same normalised batches, of the size a job takes by itself, in turns, in one
process, with each BatchNorm folded into the convolution before it.  The model runs as anybody would
run it: one batch after the other, each operation on all cores, in the faster of torch's two memory
layouts.  The scan runs as a worker does: as many lanes as there are cores, each with a batch of its
own and one thread an operation.  It starts without a floor, as the first shard of a job does, when
nearly every image still enters some top nine: later shards are faster.

``candidate scan`` is the scan in bfloat16 (``compute.precision`` of a job spec), also on processors
that have no instructions for it and emulate it, where a job that asks for it is refused.
"""

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
from workers.job import automatic_batch, trace
from workers.machine import cores
from workers.models import PackedModel, pack
from workers.numerics import fast_types
from workers.scan import ShardScan, combined
from workers.topk import Hits

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

SIDE = 224
K = 9
TURNS = 3
BATCHES_ON_GPU = 4


@dataclass(frozen=True)
class Subject:
    """A model to measure, with random weights: speed does not depend on them."""

    name: str
    images: int
    """In a turn: some seconds' worth on a CPU."""
    at_least: float = 0.95
    candidates_at_least: float | None = None


SUBJECTS = (
    Subject("alexnet", 256, candidates_at_least=1.8),
    Subject("squeezenet1_1", 256),
    Subject("resnet50", 64),
    Subject("vgg16", 32, candidates_at_least=1.8),
)


def measure() -> Iterator[Comparison]:
    """A row or two a model."""
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
    exact, fast = trace(packed).to(device), trace(packed).cast(torch.bfloat16).to(device)
    batch = automatic_batch(exact, device)
    count = max(2, subject.images // batch) if device == "cpu" else BATCHES_ON_GPU
    batches = torch.randn(count, batch, 3, SIDE, SIDE, generator=generator).to(device)
    models = {name: _folded(packed, layout).to(device) for name, layout in LAYOUTS.items()}
    ways: dict[str, Callable[[], object]] = {
        name: _bound(_forward, model, batches, LAYOUTS[name], cores())
        for name, model in models.items()
    }
    ways["scan"] = _bound(scan_in_lanes, exact, batches, pool, lanes)
    instructions = torch.bfloat16 in fast_types(torch.device(device))
    few = batches if instructions else batches[:lanes]
    ways["bfloat16"] = _bound(scan_in_lanes, fast, few, pool, lanes)
    seconds = in_turns(ways, TURNS)
    counts = {"bfloat16": len(few) * batch}
    each = {
        way: [t / counts.get(way, count * batch) for t in took] for way, took in seconds.items()
    }
    layout = fastest({name: each[name] for name in LAYOUTS})
    units = sum(layer.units for layer in exact.layers)
    details = {"units": units, "batch": batch, "images_s": _rates(each)}
    yield Comparison(
        what="scan",
        model=subject.name,
        against=f"its own forward pass, {layout}",
        per="image",
        ours=each["scan"],
        theirs=each[layout],
        at_least=subject.at_least,
        details=details,
    )
    if subject.candidates_at_least is None:
        return
    gain = 1 - median(each["bfloat16"]) / median(each["scan"])
    yield Comparison(
        what="candidate scan, bfloat16",
        model=subject.name,
        against=f"forward pass, float32 {layout}",
        per="image",
        ours=each["bfloat16"],
        theirs=each[layout],
        at_least=subject.candidates_at_least,
        details={
            **details,
            "instructions": instructions,
            "pays_from_images": round(units * 2 * K / gain) if gain > 0 else None,
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
    k: int = K,
) -> Hits:
    """The k strongest hits of all units."""
    units = sum(layer.units for layer in network.layers)
    floor = torch.full((units,), -torch.inf, device=batches.device)
    count, batch = batches.shape[:2]
    ids = torch.arange(count * batch, device=batches.device).view(count, batch)
    valid = torch.ones(batch, dtype=torch.bool, device=batches.device)

    def scan_lane(lane: int) -> ShardScan:
        torch.set_num_threads(1)
        scan = ShardScan(network, network.layers, k, floor)
        for number in range(lane, len(batches), lanes):
            scan.add(batches[number], ids[number], valid)
        return scan

    return combined(list(pool.map(scan_lane, range(lanes))))[0]
