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
from workers.job import Job, trace
from workers.leases import (
    EvolutionProjectionLease,
    EvolutionScanLease,
    EvolutionScanResult,
    ProjectionResult,
)
from workers.parts import marker_path
from workers.read_images import read_images
from workers.stages import Work
from workers.topk import Fold

STAGE = "evolution-scan"


class CheckpointFolds:
    """The strongest hits of every checkpoint, shard by shard."""

    def __init__(self, job: Job, run: RunStore, evolving: Evolving) -> None:
        self._job, self._run = job, run
        self._images = read_images(job, run)
        self.folds = [Fold(job.index.total, job.k) for _ in evolving.checkpoints]

    def work(self) -> Work:
        """What is left of the scan; what is committed is folded now."""
        size = self._job.spec.compute.shard_size
        parts = {f"{STAGE}/part-{p:06d}": p for p in sorted({i // size for i in self._images})}
        left = [name for name in parts if not self._run.exists(_path(name))]
        for name in parts:
            if name not in left:
                self._fold(name)

        def images_of(name: str) -> Int64[np.ndarray, " image"]:
            first = parts[name] * size
            inside = [i for i in self._images if first <= i < first + size]
            return np.array(inside, np.int64)

        def lease_of(name: str) -> EvolutionScanLease:
            floor = np.stack([fold.floor for fold in self.folds])
            return EvolutionScanLease(name, images_of(name), floor)

        def commit(name: str, result: EvolutionScanResult) -> int:
            self._run.write(_path(name), to_bytes(result.hits))
            self._fold(name)
            return len(images_of(name)) * len(self.folds)

        every = len(self._images) * len(self.folds)
        done = every - sum(len(images_of(name)) for name in left) * len(self.folds)
        return Work("evolution-scan", left, lease_of, commit, done, every)

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
    networks = [trace(job.packed, packed.build()) for packed in evolving.checkpoints]
    last = trace(job.packed)
    for number, layer in enumerate(job.layers):
        rows = job.index.units_of(number)
        every = [*folds, end]
        final = end.image[rows]
        table = Table(
            **vars(First.of(every, rows)),
            overlap=np.stack([overlap(fold.image[rows], final) for fold in every], axis=1),
            cosine=_cosines([*networks, last], layer.name, layer.units),
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


def _cosines(
    networks: list[Network], layer: str, units: int
) -> Float32[np.ndarray, "unit checkpoint"]:
    found = [filters(network, network.layer(layer)) for network in networks]
    final = found[-1]
    columns = [
        np.full(units, np.nan, np.float32) if now is None or final is None else cosine(now, final)
        for now in found
    ]
    return np.stack(columns, axis=1)


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
