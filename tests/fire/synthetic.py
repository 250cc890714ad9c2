"""Runs without a model's work: workers that answer leases with invented hits and pictures.

Everything else is real: the pipeline settles the job, leases, commits, folds, merges and stores.
What a worker invents follows from the number of the shard alone, as if every image gave every unit
an exponentially distributed maximum; so the strongest hits of all images can be told without the
pipeline (``Truth``).
"""

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from deconvoy.schema import histogram_edges, images_schema, layer_path
from deconvoy.spec import JobSpec, Transform
from deconvoy.store import RunStore
from workers import pipeline
from workers.datasets import Listing
from workers.executors import Executor, Ready, Report, Returned
from workers.leases import (
    AnyAssignment,
    Lease,
    ProjectionLease,
    ProjectionResult,
    ScanLease,
    ScanResult,
)
from workers.models import PackedModel, pack_module
from workers.notebook import MemorySource
from workers.parts import number_of
from workers.topk import BINS, Hits, Partial, UnitSums
from workers.writer import empty_pictures, write_pictures

SIDE = 32
"""Pixels of an image, and of a picture of a unit that sees all of it."""

K = 9


class Wide(nn.Module):
    """Layers of ``width`` feature maps each that see the whole image; depthwise, so that the
    weights are few."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 31, stride=4, padding=15), nn.ReLU())
        maps: list[nn.Module] = [nn.Conv2d(3, width, 5, padding=2), nn.ReLU()]
        for _ in range(layers - 1):
            maps += [nn.Conv2d(width, width, 5, padding=2, groups=width), nn.ReLU()]
        self.features = nn.Sequential(*maps)
        self.head = nn.Linear(width, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(self.stem(images)).mean((2, 3)))
        return logits


NAME = "python/tests.fire.synthetic:Wide"


def packed(width: int, layers: int) -> PackedModel:
    torch.manual_seed(0)
    transform = Transform(resize=SIDE, crop=SIDE)
    arguments = {"width": width, "layers": layers}
    return pack_module(Wide(**arguments), NAME, arguments, None, (), transform, "the test")


def listing_of(images: int) -> Listing:
    """Named as the images of ImageNet are."""
    uris = [f"n{i // 1300:08d}/n{i // 1300:08d}_{i:08d}.JPEG" for i in range(images)]
    labels = [i % 2 for i in range(images)]
    return Listing(MemorySource(()), uris, labels, "0" * 64, "the test")


def drawn(part: int, units: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the strongest nine images of a shard for every unit, strongest first, and which of
    the shard's images they are: order statistics of an exponential distribution."""
    generator = np.random.default_rng(part)
    ranks = min(K, images)
    share = np.cumsum(generator.standard_exponential((units, ranks), np.float32), axis=1) / images
    which = (generator.integers(0, images, (units, 1)) + np.arange(ranks)) % images
    return -np.log(np.maximum(share, 1e-12)), which


_SUMS: dict[tuple[int, int], UnitSums] = {}


def _sums(units: int, images: int) -> UnitSums:
    """The same of every shard: maxima spread over a dozen bins, as those of a network are."""
    if (units, images) not in _SUMS:
        generator = np.random.default_rng(0)
        maxima = generator.standard_exponential((units, images))
        bins = np.searchsorted(histogram_edges(), maxima, side="right").clip(1, BINS) - 1
        histogram = np.zeros((units, BINS), np.int64)
        np.add.at(histogram, (np.arange(units)[:, None], bins), 1)
        active = np.full(units, images, np.int64)
        _SUMS[units, images] = UnitSums(maxima.sum(1), active, histogram)
    return _SUMS[units, images]


def scanned(lease: ScanLease) -> ScanResult:
    """What a worker would answer: of the shard's strongest those that can still enter."""
    part, units, count = number_of(lease.item), len(lease.floor), len(lease.images)
    score, which = drawn(part, units, count)
    unit, rank = np.nonzero(score >= lease.floor[:, None])
    image = np.int64(lease.images[0].id) + which[unit, rank]
    position = np.stack([unit % 8, rank % 8], axis=1).astype(np.int32)
    hits = Hits(unit.astype(np.int32), score[unit, rank], image, position, image)
    table = pa.table(
        {
            "id": [ref.id for ref in lease.images],
            "uri": [ref.uri for ref in lease.images],
            "label": [ref.label for ref in lease.images],
            "width": [500] * count,
            "height": [375] * count,
            "predicted": [0] * count,
            "probability": np.linspace(0.1, 0.9, count, dtype=np.float32),
            "skipped": [None] * count,
        },
        schema=images_schema(),
    )
    correct = sum(ref.label == 0 for ref in lease.images)
    return ScanResult(Partial(hits, _sums(units, count), count, 0, correct, count), table, ())


class Truth:
    """The strongest scores of some units over all shards, found without the pipeline."""

    def __init__(self, units: Sequence[int]) -> None:
        self.units = list(units)
        self.best = np.full((len(self.units), K), -np.inf, np.float32)
        self._gathered: list[np.ndarray] = [self.best]

    def add(self, part: int, units: int, images: int) -> None:
        self._gathered.append(drawn(part, units, images)[0][self.units])
        if len(self._gathered) > 200:
            self.settle()

    def settle(self) -> np.ndarray:
        """Scores, strongest first."""
        everything = np.concatenate(self._gathered, axis=1)
        self.best = -np.sort(-everything, axis=1)[:, :K]
        self._gathered = [self.best]
        return self.best


class SyntheticExecutor(Executor):
    """Workers in this process that answer at once, and not in the order they were asked.

    Args:
        workers: as many hold a lease at a time.
        run: where pictures are written.
        job: of it; None where nothing is projected.
    """

    def __init__(self, workers: int, run: RunStore, job: Any = None) -> None:
        self.workers = workers
        self._run, self._job = run, job
        self._asked: deque[tuple[str, Lease]] = deque()
        self._new: list[Report] = []
        self._order = np.random.default_rng(0)

    def require_fast(self, precision: str) -> None:
        pass

    def start(self, assignment_of: Callable[[int], AnyAssignment]) -> None:
        about = {"pid": 0, "node": "here", "device": "cpu", "gpus": "", "threads": 1}
        self._new = [Ready(f"worker-{n + 1}", about) for n in range(self.workers)]

    def submit(self, worker: str, lease: Lease) -> None:
        self._asked.append((worker, lease))

    def replace(self, worker: str) -> None:
        raise AssertionError("nobody dies here")

    def wait(self, seconds: float) -> list[Report]:
        if self._new:
            new, self._new = self._new, []
            return new
        self._asked.rotate(int(self._order.integers(0, max(1, len(self._asked)))))
        answers = [self._asked.popleft() for _ in range(min(8, len(self._asked)))]
        return [Returned(worker, lease, self._answer(lease)) for worker, lease in answers]

    def _answer(self, lease: Lease) -> Any:
        if isinstance(lease, ScanLease):
            return scanned(lease)
        assert isinstance(lease, ProjectionLease)
        return self._project(lease)

    def _project(self, lease: ProjectionLease) -> ProjectionResult:
        """Noise, smooth enough to compress as pictures do."""
        layer = next(layer for layer in self._job.layers if layer.name == lease.layer)
        units = lease.stop - lease.start
        arrays = empty_pictures(layer, units, self._job.k, self._job.spec.storage)
        generator = np.random.default_rng(lease.start)
        shape = arrays["patch"].shape
        coarse = generator.integers(0, 256, (*shape[:2], shape[2] // 8, shape[3] // 8, 3), np.uint8)
        fine = coarse.repeat(8, axis=2).repeat(8, axis=3)
        arrays["patch"][...] = fine
        arrays["projection"][...] = (fine // 2).astype(np.int8)
        arrays["scale"][...] = 0.01
        arrays["projected"][lease.units - lease.start] = True
        write_pictures(self._run, layer_path(lease.layer), lease.start, lease.stop, arrays)
        return ProjectionResult(int((lease.image >= 0).sum()), len(np.unique(lease.image)))

    def shutdown(self) -> None:
        pass


def spec_of(shard_size: int, pictures: bool) -> JobSpec:
    analyses = [{"kind": "top"}, *([{"kind": "projection"}] if pictures else [])]
    fields = {
        "name": "synthetic",
        "model": {"name": NAME},
        "data": {"uri": "memory"},
        "layers": ["features.*"],
        "analyses": analyses,
        "compute": {"shard_size": shard_size, "batch_size": 1},
    }
    return JobSpec.parse(fields)


def make_wide_run(place: Path, units: int, layers: int, images: int = 2560) -> dict[str, Any]:
    """A finished run of so many units with pictures of 32 pixels, by the pipeline; its summary."""
    job, run = pipeline.create(
        spec_of(256, True), str(place), packed=packed(units // layers, layers),
        listing=listing_of(images),
    )  # fmt: skip
    return pipeline.execute(job, run, SyntheticExecutor(2, run, job), lambda advance: None)
