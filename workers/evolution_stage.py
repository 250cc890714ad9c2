"""The driver's part in evolution: scan the checkpoints, write how early layers settle, and project.

The end needs no scan: its strongest hits are those of the run itself.
"""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int32, Int64

from deconvoy.schema import EVOLUTION_GROUP
from deconvoy.store import RunStore
from workers.evolution import cosine, filters, overlap
from workers.evolution_items import EvolutionItem, Evolving, evolution_items
from workers.evolution_marker import from_bytes, to_bytes
from workers.evolution_writer import (
    Table,
    create_evolution,
    create_layer_evolution,
    create_pictures,
)
from workers.graph import Network
from workers.image_choice import left_out
from workers.job import Job, trace
from workers.leases import (
    EvolutionProjectionLease,
    EvolutionScanLease,
    EvolutionScanResult,
    ProjectionResult,
)
from workers.parts import marker_path
from workers.stages import Work
from workers.topk import Fold

STAGE = "evolution-scan"


class CheckpointFolds:
    """The strongest hits of every checkpoint, shard by shard."""

    def __init__(self, job: Job, run: RunStore, evolving: Evolving) -> None:
        self._job, self._run = job, run
        self.folds = [Fold(job.index.total, job.k) for _ in evolving.checkpoints]

    def work(self) -> Work:
        """What is left of the scan; what is committed is folded now."""
        parts = {f"{STAGE}/part-{part:06d}": part for part in range(self._job.shards)}
        left = [name for name in parts if not self._run.exists(_path(name))]
        for name in parts:
            if name not in left:
                self._fold(name)
        every = len(self._job.listing) * len(self.folds)

        def count(name: str) -> int:
            """Images that could not be read count, too: they are done at once."""
            start, stop = self._job.shard(parts[name])
            return (stop - start) * len(self.folds)

        def lease_of(name: str) -> EvolutionScanLease:
            floor = np.stack([fold.floor for fold in self.folds])
            return EvolutionScanLease(name, self._read(parts[name]), floor)

        def commit(name: str, result: EvolutionScanResult) -> int:
            self._run.write(_path(name), to_bytes(result.hits))
            self._fold(name)
            return count(name)

        return Work("evolution-scan", left, lease_of, commit, every - sum(map(count, left)), every)

    def _read(self, part: int) -> Int64[np.ndarray, " image"]:
        """Images of a shard that the scan has read."""
        ids = [ref.id for ref in self._job.refs(part)]
        without = left_out(self._run, ids, self._job.spec.compute.shard_size)
        return np.array([image for image in ids if image not in without], np.int64)

    def _fold(self, name: str) -> None:
        stored = from_bytes(self._run.read(_path(name)), name, len(self.folds))
        for fold, hits in zip(self.folds, stored, strict=True):
            fold.add_hits(hits)


def _path(name: str) -> str:
    return f"ledger/{name}.npz"


def write_tables(job: Job, run: RunStore, evolving: Evolving, folds: list[Fold], end: Fold) -> None:
    """Make the group, with what is known of every layer; once."""
    if run.exists(f"{EVOLUTION_GROUP}/zarr.json"):
        attributes = run.zarr()[EVOLUTION_GROUP].attrs
        if "layers" in attributes:  # written last: it is whole
            return
    create_evolution(run)
    cosines = _cosines(job, evolving)
    for number, layer in enumerate(job.layers):
        rows = job.index.units_of(number)
        every = [*folds, end]
        final = end.image[rows]
        table = Table(
            **vars(First.of(every, rows)),
            overlap=np.stack([overlap(fold.image[rows], final) for fold in every], axis=1),
            cosine=cosines[layer.name],
        )
        create_layer_evolution(run, layer, table)
        if layer in evolving.layers:
            create_pictures(run, layer, evolving.columns, job.spec.storage, job.spec.method)
    told = {
        "checkpoints": list(evolving.names),
        "layers": [layer.name for layer in job.layers],
        "projected": [layer.name for layer in evolving.layers],
    }
    run.zarr("r+")[EVOLUTION_GROUP].attrs.update(told)


@dataclasses.dataclass(frozen=True)
class First:
    """The strongest hit of each unit at each checkpoint."""

    score: Float32[np.ndarray, "unit checkpoint"]
    image: Int64[np.ndarray, "unit checkpoint"]
    position: Int32[np.ndarray, "unit checkpoint yx"]

    @staticmethod
    def of(folds: Sequence[Fold], units: slice | Int64[np.ndarray, " unit"]) -> "First":
        score, image, position = (
            np.stack([getattr(fold, name)[units, 0] for fold in folds], axis=1)
            for name in ("score", "image", "position")
        )
        return First(score, image, position)


def _cosines(job: Job, evolving: Evolving) -> dict[str, Float32[np.ndarray, "unit checkpoint"]]:
    """Of every layer; one network of a checkpoint is in memory at a time."""
    last = trace(job.packed)
    final = {layer.name: filters(last, last.layer(layer.name)) for layer in job.layers}
    columns: dict[str, list[np.ndarray]] = {layer.name: [] for layer in job.layers}

    def add(network: Network) -> None:
        for layer in job.layers:
            end, now = final[layer.name], filters(network, network.layer(layer.name))
            none = np.full(layer.units, np.nan, np.float32)
            columns[layer.name].append(none if now is None or end is None else cosine(now, end))

    for packed in evolving.checkpoints:
        add(trace(job.packed, packed.build()))
    add(last)
    return {name: np.stack(each, axis=1) for name, each in columns.items()}


def projection_work(
    job: Job, run: RunStore, evolving: Evolving, folds: list[Fold], end: Fold
) -> Work:
    """Project the strongest hit of every chosen unit at every checkpoint and at the end."""
    found = evolution_items(evolving, job.spec.storage, job.spec.seed)
    items = {item.name: item for item in found}
    left = [name for name in items if not run.exists(marker_path(name))]
    every = [*folds, end]

    def hits_of(item: EvolutionItem) -> First:
        offset = job.index.offsets[job.layers.index(item.layer)]
        return First.of(every, item.units + offset)

    def count(name: str) -> int:
        return int((hits_of(items[name]).image >= 0).sum())

    def lease_of(name: str) -> EvolutionProjectionLease:
        item, hits = items[name], hits_of(items[name])
        return EvolutionProjectionLease(
            name, item.layer.name, item.start, item.stop, item.units,
            hits.score, hits.image, hits.position,
        )  # fmt: skip

    def commit(name: str, result: ProjectionResult) -> int:
        fields = {"units": items[name].units.tolist(), "projections": result.projections}
        run.write(marker_path(name), json.dumps(fields).encode())
        return result.projections

    total = sum(map(count, items))
    done = total - sum(map(count, left))
    return Work("evolution", left, lease_of, commit, done, total)
