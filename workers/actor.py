"""The worker: builds the model once, then answers leases.  A plain class; executors carry it.

Scan leases return their result; projection leases write whole Zarr shards and return counts.  The
same lease gives the same bits on any worker with any number of threads: torch computes with one
thread (its kernels differ in the last bit with the number of threads), and a worker's threads are
lanes, each of which computes whole batches.  Batches have one size, the last one is padded, and
nothing is kept from lease to lease but decoded pictures and what each image gives by itself.

Short of memory a worker keeps its bits: it computes one batch after another, and holds nothing for
later.  Smaller batches would not do.  Convolutions add in another order in them (1×1 ones with
channels last do, in torch 2.11 on a CPU), so how much is computed at once is the job's to say.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from deconvoy.errors import (
    DeconvoyError,
    ImageUnreadable,
    JobStopped,
    MemoryShort,
    RunUnreachable,
)
from deconvoy.images_table import images_part
from deconvoy.schema import evolution_path, image_part_path, images_schema, layer_path
from deconvoy.store import RunStore
from workers import memory, topk
from workers.correspondence import correspondences
from workers.correspondence_writer import write_draws
from workers.datasets import ImageRef
from workers.evolving import Checkpoint, Checkpoints
from workers.examples import Entries, ExampleScan, Floor, Maxima, folded
from workers.graph import Layer, Network
from workers.images import Picture, PictureCache, chunks, normalise, on_device, read_ahead
from workers.leases import (
    Assignment,
    CorrespondenceLease,
    CorrespondenceResult,
    EvolutionProjectionLease,
    EvolutionScanLease,
    EvolutionScanResult,
    InvarianceLease,
    InvarianceResult,
    JobLease,
    OcclusionLease,
    OcclusionResult,
    ProbeFeaturesLease,
    ProbeLease,
    ProbeResult,
    ProjectionLease,
    ProjectionResult,
    Result,
    ScanLease,
    ScanResult,
    ScratchLease,
    ScratchResult,
    UnitOcclusionLease,
)
from workers.machine import about
from workers.moving import Mover
from workers.numerics import require_fast
from workers.occluding import Occluder
from workers.outliers import Norms, NormScan
from workers.pictures import cut, cut_patches, quantised
from workers.projector import Batch, Hits, Projector
from workers.scan import Prediction, ShardScan, combined
from workers.sources import Source
from workers.topk import Partial, UnitIndex
from workers.warmup import warm_up
from workers.writer import empty_pictures, write_pictures

CACHE_BYTES = 512 * 2**20
"""Decoded pictures a worker keeps for its next projection items: 3,500 of 224 px."""

BAD_SHOWN = 5


S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class ScanBatch:
    """Images to be scanned together."""

    refs: list[ImageRef]
    pictures: list[Picture | ImageUnreadable]
    taken: list[bool]
    """Whether each takes part: it is readable and, where only those do, predicted wrongly."""
    copies: Sequence[bool] = ()
    """Whether one that takes part and has the same pixels came before in the shard."""


@dataclass(frozen=True)
class _Lane:
    """What one lane has found of a shard so far."""

    scan: ShardScan
    examples: dict[str, ExampleScan]
    """By ranking."""
    norms: NormScan | None
    """Where outliers are left out."""

    def observers(self) -> "list[ExampleScan | NormScan]":
        """Those that look at the maxima of all units."""
        return [*self.examples.values(), *([self.norms] if self.norms else [])]

    def entries(self) -> dict[str, Entries]:
        return {name: example.entries() for name, example in self.examples.items()}


class _PerThread(Generic[T]):
    """One of something for each thread that asks."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._own = make, threading.local()
        self.made: list[T] = []

    def own(self) -> T:
        if not hasattr(self._own, "value"):
            self._own.value = self._make()
            self.made.append(self._own.value)
        value: T = self._own.value
        return value


@dataclass(frozen=True)
class TorchSettings:
    """What an actor sets for the whole process; one that shares it restores them after."""

    threads: int
    tf32: tuple[bool, bool]

    @staticmethod
    def now() -> "TorchSettings":
        backends = torch.backends
        tf32 = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
        return TorchSettings(torch.get_num_threads(), tf32)

    def restore(self) -> None:
        torch.set_num_threads(self.threads)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self.tf32


class Actor:
    """One worker of a job.

    Args:
        sparing: compute one batch at a time, from the beginning.
    """

    def __init__(self, assignment: Assignment, sparing: bool = False) -> None:
        torch.set_num_threads(1)
        self._job = assignment
        self._run = RunStore(assignment.url)
        cuda = assignment.cuda and torch.cuda.is_available()
        self._device = torch.device("cuda" if cuda else "cpu")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        side = assignment.transform.crop
        network = Network(assignment.model.build(), (assignment.transform.channels, side, side))
        self._network = network.to(self._device)
        warm_up(self._device)
        self._projector = Projector(
            self._network, assignment.transform, self._device, assignment.method
        )
        self._layers = [self._network.layer(name) for name in assignment.layers]
        self._lane_count = 1 if self._device.type == "cuda" else assignment.threads
        # A thread has all cores until torch is told so there: the first matrix product would have
        # other bits.
        self._lanes = self._make_lanes()
        self._pool = ThreadPoolExecutor(assignment.threads, thread_name_prefix="decode")
        self._pictures = PictureCache(self._read_id, CACHE_BYTES)
        self._done = 0
        self._counting = threading.Lock()
        self._stopping = threading.Event()
        self._sparing, self._one_by_one = sparing, sparing
        # Not a decorator on the method: that would keep every actor of a notebook alive.
        self._uris = lru_cache(maxsize=256)(self._read_uris)
        self._rectified = np.repeat(
            [layer.rectified for layer in self._layers], [layer.units for layer in self._layers]
        )
        self._occluder = Occluder(
            self._network,
            self._projector.deconvnet,
            self._projector.cone,
            self._layers,
            assignment.transform,
            assignment.storage,
            self._in_lanes,
            self._go_on,
        )
        self._mover = Mover(
            self._network,
            self._layers,
            assignment.transform,
            assignment.batch_size,
            self._in_lanes,
            self._go_on,
        )

    def whoami(self) -> dict[str, Any]:
        return {**about(str(self._device), self._job.threads), "sparing": self._sparing}

    def progress(self) -> int:
        """Images, projections, positions of a square or moves done within the lease at hand."""
        return self._done

    def stop(self) -> None:
        """Give the lease at hand up after the batches under way; it raises JobStopped."""
        self._stopping.set()
        self._lanes.shutdown(wait=False, cancel_futures=True)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _advance(self, count: int) -> None:
        with self._counting:
            self._done += count

    def _go_on(self, count: int) -> None:
        """Between two batches of a long piece of work."""
        if self._stopping.is_set():
            raise JobStopped("The worker was told to stop.")
        self._advance(count)

    def work(self, lease: JobLease) -> Result:
        """Answer one lease.

        Raises:
            MemoryShort: there was not enough of it.
            DeconvoyError: what no other attempt would change, such as NaN in a layer.
        """
        self._done = 0
        torch.set_num_threads(1)  # of this thread, which need not be the one that built the actor
        # Who had it before may have been killed for the memory it took.
        self._one_by_one = self._sparing or lease.attempt > 1
        try:
            return self._answer(lease)
        except Exception as error:
            if not memory.is_short(error):
                raise
            told = " ".join(str(error).split()[:40]) or type(error).__name__
        # Out of reach of the error, which holds all that was being computed.
        self._spare_memory()
        raise MemoryShort(self._shortage(told))

    def _shortage(self, told: str) -> str:
        at_once = "one batch" if self._one_by_one else f"up to {self._lane_count} batches"
        place = "its GPU's memory" if self._device.type == "cuda" else "memory"
        return (
            f"A worker ran out of {place} with {at_once} of compute.batch_size = "
            f"{self._job.batch_size} images at a time ({told}). If that stays so: have fewer "
            "workers on a node, take larger nodes, or lower compute.batch_size in a new run."
        )

    def _spare_memory(self) -> None:
        """From now on."""
        self._sparing = True
        self._lanes.shutdown(wait=True, cancel_futures=True)  # the other batches under way
        self._lanes = self._make_lanes()
        self._pictures.clear()
        self._projector.forget()
        memory.give_back()

    def _make_lanes(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(
            self._lane_count, "lane", initializer=torch.set_num_threads, initargs=(1,)
        )

    def _answer(self, lease: JobLease) -> Result:
        match lease:
            case ScanLease():
                return self.scan(lease)
            case ProjectionLease():
                return self.project(lease)
            case OcclusionLease() | UnitOcclusionLease():
                return self.occlude(lease)
            case InvarianceLease():
                return self.move(lease)
            case CorrespondenceLease():
                return self.correspond(lease)
            case ProbeFeaturesLease() | ProbeLease():
                return self.probe(lease)
            case ScratchLease():
                return self.train(lease)
            case EvolutionScanLease():
                return self.scan_checkpoints(lease)
            case EvolutionProjectionLease():
                return self.project_checkpoints(lease)

    # Scan -------------------------------------------------------------------------------------

    def scan(self, lease: ScanLease) -> ScanResult:
        floor = torch.from_numpy(lease.floor.copy()).to(self._device)
        network = self._fast if lease.candidates else self._network
        kept = self._job.kept if lease.candidates else self._job.k + self._job.spare
        lanes = _PerThread(lambda: self._lane(network, kept, floor, lease.example_floors))

        def scan_batch(batch: ScanBatch) -> list[dict[str, Any]]:
            rows = self._scan_batch(lanes.own(), batch)
            self._advance(len(rows))
            return rows

        contents: dict[int, int] = {}
        batches = self._batches(lease)
        if self._job.only_wrong:
            batches = self._in_lanes(self._wrong_ones, batches)
        marked = self._with_copies(batches, contents)
        rows = [row for batch in self._in_lanes(scan_batch, marked) for row in batch]
        read = [row for row in rows if row["predicted"] is not None]
        judged = [row for row in read if row["label"] is not None]
        bad = [(row["uri"], row["skipped"]) for row in rows if row["predicted"] is None]
        hits, sums = combined([lane.scan for lane in lanes.made])
        examples = folded([lane.entries() for lane in lanes.made], self._job.rankings)
        if self._job.distinct:
            hits = replace(hits, content=_looked_up(contents, hits.image))
        partial = Partial(
            hits=hits,
            sums=sums,
            images=sum(row["skipped"] is None for row in rows),
            skipped=len(bad),
            correct=sum(row["label"] == row["predicted"] for row in judged),
            labelled=len(judged),
            examples=examples,
            norms=self._norms(lanes.made),
        )
        return ScanResult(partial, images_table(rows), tuple(bad[:BAD_SHOWN]))

    def _norms(self, lanes: Sequence["_Lane"]) -> Norms:
        norms = Norms.none(len(self._layers) if self._job.spare else 0)
        for lane in lanes:
            if lane.norms is not None:
                norms = norms.plus(lane.norms.norms, self._job.spare)
        return norms

    @cached_property
    def _fast(self) -> Network:
        """The network in the type that candidates are found in.

        Raises:
            RequestError: this device does not compute in that type.
        """
        dtype = require_fast(self._job.precision, self._device)
        network = Network(self._job.model.build(), self._network.input_shape)
        return network.cast(dtype).to(self._device)

    def _lane(
        self, network: Network, kept: int, floor: Tensor, example_floors: Mapping[str, Floor]
    ) -> "_Lane":
        scan = ShardScan(network, self._layers, kept, floor)
        examples = {
            ranking.name: ExampleScan(ranking, example_floors.get(ranking.name, Floor.none()))
            for ranking in self._job.rankings
        }
        norms = None
        if self._job.spare:
            index = UnitIndex.of([layer.units for layer in self._layers])
            slices = [index.units_of(number) for number in range(len(self._layers))]
            norms = NormScan(slices, self._job.spare)
        return _Lane(scan, examples, norms)

    def _batches(self, lease: ScanLease) -> Iterator[ScanBatch]:
        """Batches in reading order."""
        size = self._job.batch_size
        futures = read_ahead(self._pool, self._try_read, lease.images, ahead=2 * size)
        for refs in chunks(lease.images, size):
            pictures = [next(futures).result() for _ in refs]
            yield ScanBatch(list(refs), pictures, [isinstance(p, Picture) for p in pictures])

    def _wrong_ones(self, batch: ScanBatch) -> ScanBatch:
        """With those alone taken that are labelled and predicted to be something else.  A pass of
        its own: layers are scanned as they come, long before the prediction is known."""
        images, _ = self._normalised(batch)
        with torch.inference_mode():
            outputs = self._network.forward(images, lambda layer, maps: None)
        predicted = outputs.flatten(1).argmax(1).tolist()
        taken = [
            there and ref.label is not None and predicted[row] != ref.label
            for row, (ref, there) in enumerate(zip(batch.refs, batch.taken, strict=True))
        ]
        return replace(batch, taken=taken)

    def _with_copies(
        self, batches: Iterable[ScanBatch], contents: dict[int, int]
    ) -> Iterator[ScanBatch]:
        """With copies marked where equal images count once; in reading order, so that the first of
        the shard stays.  Fills ``contents``, image id → hash of its pixels."""
        seen: set[int] = set()
        for batch in batches:
            copies = [False] * len(batch.refs)
            if self._job.distinct:
                for row, (ref, picture) in enumerate(zip(batch.refs, batch.pictures, strict=True)):
                    if isinstance(picture, Picture) and batch.taken[row]:
                        contents[ref.id] = content = picture.content
                        copies[row] = content in seen
                        seen.add(content)
            yield replace(batch, copies=copies)

    def _in_lanes(self, work: Callable[[S], T], batches: Iterable[S]) -> Iterator[T]:
        """Results in order, with one batch more under way than there are lanes; or one in all."""
        ahead = 0 if self._one_by_one else self._lane_count
        for future in read_ahead(self._lanes, work, batches, ahead):
            if self._stopping.is_set():
                raise JobStopped("The worker was told to stop.")
            yield future.result()

    def _try_read(self, ref: ImageRef) -> Picture | ImageUnreadable:
        try:
            return self._job.source.read(ref.uri, self._job.transform)
        except ImageUnreadable as error:
            return error

    def _normalised(self, batch: ScanBatch) -> tuple[Tensor, Tensor]:
        """The images of a batch, padded to its size, and their ids."""
        size, side = self._job.batch_size, self._job.transform.crop
        pixels = torch.zeros(size, self._job.transform.channels, side, side, dtype=torch.uint8)
        ids = torch.full((size,), -1, dtype=torch.int64)
        for row, (ref, picture) in enumerate(zip(batch.refs, batch.pictures, strict=True)):
            ids[row] = ref.id
            if isinstance(picture, Picture):
                pixels[row] = picture.pixels
        return normalise(on_device(pixels, self._device), self._job.transform), ids

    def _scan_batch(self, lane: "_Lane", batch: ScanBatch) -> list[dict[str, Any]]:
        images, ids = self._normalised(batch)
        size = len(images)
        taken, copies = (
            torch.tensor([*flags, *[False] * (size - len(flags))])
            for flags in (batch.taken, batch.copies)
        )
        scores = None
        if lane.observers():
            scores = np.zeros((size, sum(layer.units for layer in self._layers)), np.float32)
        prediction = lane.scan.add(
            images,
            ids.to(self._device),
            taken.to(self._device),
            [ref.uri for ref in batch.refs],
            copies.to(self._device),
            scores,
        )
        if scores is not None:
            maxima = self._maxima(batch, ids, taken, prediction, scores)
            for observer in lane.observers():
                observer.add(maxima)
        return [
            _image_row(ref, picture, prediction, row, batch.taken[row])
            for row, (ref, picture) in enumerate(zip(batch.refs, batch.pictures, strict=True))
        ]

    def _maxima(
        self,
        batch: ScanBatch,
        ids: Tensor,
        taken: Tensor,
        prediction: Prediction,
        scores: np.ndarray,
    ) -> Maxima:
        content = ids.numpy().copy()
        if self._job.distinct:
            for row, picture in enumerate(batch.pictures):
                if isinstance(picture, Picture):
                    content[row] = picture.content
        classes = self._classes(batch.refs, prediction)
        return Maxima(ids.numpy(), content, taken.numpy(), classes, scores, self._rectified)

    def _classes(
        self, refs: Sequence[ImageRef], prediction: Prediction
    ) -> Int64[np.ndarray, " image"]:
        """What the images of a batch count as; −1 where unknown."""
        if not self._job.labelled:
            return prediction.predicted.astype(np.int64)
        classes = np.full(len(prediction.predicted), -1, np.int64)
        for row, ref in enumerate(refs):
            classes[row] = -1 if ref.label is None else ref.label
        return classes

    # Projection -------------------------------------------------------------------------------

    def project(self, lease: ProjectionLease) -> ProjectionResult:
        layer = self._network.layer(lease.layer)
        arrays = empty_pictures(layer, lease.stop - lease.start, self._job.k, self._job.storage)
        rows, projector = lease.units - lease.start, self._projector
        tables = lease.image, lease.score, lease.position
        found = self._project(projector, layer, lease.units, rows, tables, arrays, lease.reuse)
        arrays["projected"][rows] = True
        with self._writing():
            write_pictures(self._run, layer_path(lease.layer), lease.start, lease.stop, arrays)
        return found

    def _project(
        self,
        projector: Projector,
        layer: Layer,
        units: Int64[np.ndarray, " unit"],
        places: Int64[np.ndarray, " unit"],
        tables: tuple[np.ndarray, np.ndarray, np.ndarray],
        arrays: Mapping[str, np.ndarray],
        reuse: float = 1.0,
    ) -> ProjectionResult:
        """Project the hits of some units, into the arrays ``patch``, ``projection``, ``scale``.

        Args:
            places: of the units in the arrays.
            tables: image, score and position of their hits, "unit rank".
        """
        image, score, position = tables
        size = arrays["patch"].shape[2:4]
        rows, ranks = (image >= 0).nonzero()
        order = np.argsort(image[rows, ranks], kind="stable")
        rows, ranks = rows[order], ranks[order]
        hits = Hits(
            image[rows, ranks],
            units[rows],
            position[rows, ranks].astype(np.int64),
            _seeds(layer, score[rows, ranks]),
        )
        place = places[rows], ranks

        def project_batch(batch: Batch) -> None:
            side = self._job.transform.crop
            pixels = torch.stack([batch.pictures[i].pixels for i in batch.picture_of_hit.tolist()])
            windows = torch.from_numpy(layer.field.windows(hits.position[batch.hits]))
            at = place[0][batch.hits], place[1][batch.hits]
            arrays["patch"][at] = cut_patches(pixels, windows, size).numpy()
            for which, projected in projector.project(layer, hits, batch):
                signal = projected.whole(side, side)
                windows = torch.from_numpy(layer.field.windows(hits.position[which]))
                values, factors = quantised(
                    cut(signal, windows, size, 0.0), self._job.storage.projection
                )
                at = place[0][which], place[1][which]
                arrays["projection"][at] = values.cpu().numpy()
                arrays["scale"][at] = factors.cpu().numpy()
                self._advance(len(which))

        for _ in self._in_lanes(
            project_batch, projector.batches(layer, hits, reuse, self._decoded, self._in_lanes)
        ):
            pass
        return ProjectionResult(len(rows), len(np.unique(hits.image)))

    def _decoded(self, ids: Sequence[int]) -> Iterator[Picture]:
        futures = read_ahead(self._pool, self._pictures, ids, 2 * self._job.threads + 8)
        return (future.result() for future in futures)

    # Occlusion --------------------------------------------------------------------------------

    def occlude(self, lease: OcclusionLease | UnitOcclusionLease) -> OcclusionResult:
        with self._writing():
            if isinstance(lease, OcclusionLease):
                return self._occluder.image(lease, self._pictures(lease.image), self._run)
            return self._occluder.units(lease, self._pictures, self._run)

    # Invariance -------------------------------------------------------------------------------

    def move(self, lease: InvarianceLease) -> InvarianceResult:
        with self._writing():
            return self._mover.image(lease, self._pictures(lease.image), self._run)

    # Correspondence ---------------------------------------------------------------------------

    def correspond(self, lease: CorrespondenceLease) -> CorrespondenceResult:
        ids = lease.images.tolist()
        found = correspondences(
            self._network,
            self._layers,
            [picture.pixels for picture in self._decoded(ids)],
            lease.boxes,
            lease.fill,
            self._job.transform,
            self._job.batch_size,
            self._in_lanes,
            self._go_on,
            [self._uri(image) for image in ids],
        )
        delta, deviation = (
            np.stack([getattr(one, name) for one in found]) for name in ("delta", "deviation")
        )
        with self._writing():
            write_draws(self._run, lease.part, lease.start, delta, deviation)
        return CorrespondenceResult(len(found) * len(ids))

    # Probe ------------------------------------------------------------------------------------

    @cached_property
    def _prober(self) -> Any:
        from workers.probing import Prober  # scikit-learn takes a second to load

        assert self._job.probing is not None
        networks = [self._network]
        if self._job.probing.random is not None:
            plain = self._job.probing.random.build()
            networks.append(Network(plain, self._network.input_shape).to(self._device))
        return Prober(
            self._job.probing,
            networks,
            self._job.transform,
            self._job.batch_size,
            self._in_lanes,
            self._go_on,
        )

    def probe(self, lease: ProbeFeaturesLease | ProbeLease) -> ProbeResult:
        found: ProbeResult
        if isinstance(lease, ProbeLease):
            with self._writing():
                found = self._prober.classify(lease, self._run)
            return found
        pictures = read_ahead(self._pool, self._try_read_probed, lease.uris, 2 * self._job.threads)
        decoded = [future.result() for future in pictures]
        with self._writing():
            found = self._prober.features(lease, decoded, self._run)
        return found

    def _try_read_probed(self, uri: str) -> Picture | None:
        assert self._job.probing is not None
        try:
            return self._job.probing.source.read(uri, self._job.transform)
        except ImageUnreadable:
            return None

    def train(self, lease: ScratchLease) -> ScratchResult:
        from workers.scratch import train_from_scratch  # scikit-learn takes a second to load

        assert self._job.probing is not None and self._job.probing.start is not None
        return train_from_scratch(
            lease,
            self._job.probing.start,
            self._job.transform,
            self._device,
            self._job.batch_size,
            self._decoded_again,
            self._go_on,
        )

    def _decoded_again(self, uris: Sequence[str]) -> Iterator[Picture]:
        """Images of the probe, all of which were read for their features."""
        assert self._job.probing is not None
        read = partial(self._read_again, self._job.probing.source)
        futures = read_ahead(self._pool, read, uris, 2 * self._job.threads)
        return (future.result() for future in futures)

    # Evolution --------------------------------------------------------------------------------

    @cached_property
    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(
            self._job.checkpoints,
            self._job.layers,
            self._network.input_shape,
            self._job.transform,
            self._device,
            self._job.method,
        )

    def scan_checkpoints(self, lease: EvolutionScanLease) -> EvolutionScanResult:
        """The images are decoded once, then scanned by one network after the other."""
        ids = lease.images.tolist()
        refs = [ImageRef(image, self._uri(image), None) for image in ids]
        contents: dict[int, int] = {}
        batches: Iterator[ScanBatch] = (
            ScanBatch(list(some), list(self._decoded([r.id for r in some])), [True] * len(some))
            for some in chunks(refs, self._job.batch_size)
        )
        marked = list(self._with_copies(batches, contents))
        found = []
        for checkpoint, floor in zip(self._checkpoints, lease.floor, strict=True):
            hits = self._hits_at(checkpoint, marked, floor)
            if self._job.distinct:
                hits = replace(hits, content=_looked_up(contents, hits.image))
            found.append(hits)
        return EvolutionScanResult(tuple(found))

    def _hits_at(
        self, checkpoint: Checkpoint, batches: Sequence[ScanBatch], floor: np.ndarray
    ) -> topk.Hits:
        least = torch.from_numpy(floor.copy()).to(self._device)
        network, layers, k = checkpoint.network, checkpoint.layers, self._job.k
        lanes = _PerThread(lambda: ShardScan(network, layers, k, least))

        def scan_batch(batch: ScanBatch) -> None:
            images, ids = self._normalised(batch)
            missing = [False] * (len(images) - len(batch.refs))
            taken, copies = (
                torch.tensor([*flags, *missing]).to(self._device)
                for flags in (batch.taken, batch.copies)
            )
            uris = [ref.uri for ref in batch.refs]
            lanes.own().add(images, ids.to(self._device), taken, uris, copies)
            self._go_on(len(batch.refs))

        for _ in self._in_lanes(scan_batch, batches):
            pass
        # Of a shard none of whose images could be read there is nothing to combine.
        return combined(lanes.made)[0] if lanes.made else topk.Hits.none()

    def project_checkpoints(self, lease: EvolutionProjectionLease) -> ProjectionResult:
        """Column by column, each by the network of its checkpoint; the last is the end."""
        columns = lease.image.shape[1]
        whole = empty_pictures(
            self._network.layer(lease.layer), lease.stop - lease.start, columns, self._job.storage
        )
        rows, projections, images = lease.units - lease.start, 0, 0
        for column in range(columns):
            projector, network = self._projector, self._network
            if column < len(self._checkpoints):
                checkpoint = self._checkpoints[column]
                projector, network = checkpoint.projector, checkpoint.network
            one = slice(column, column + 1)
            tables = lease.image[:, one], lease.score[:, one], lease.position[:, one]
            arrays = {name: whole[name][:, one] for name in ("patch", "projection", "scale")}
            layer = network.layer(lease.layer)
            found = self._project(projector, layer, lease.units, rows, tables, arrays)
            projections, images = projections + found.projections, images + found.images
        whole["projected"][rows] = True
        with self._writing():
            write_pictures(self._run, evolution_path(lease.layer), lease.start, lease.stop, whole)
        return ProjectionResult(projections, images)

    # All --------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What a disk or a bucket refuses, no other attempt would find otherwise."""
        try:
            yield
        except RunUnreachable as error:
            raise self._run.refused(error) from error
        except DeconvoyError:
            raise
        except OSError as error:
            raise self._run.refused(error) from error

    def at_hand(self, image_id: int, fill: Sequence[float]) -> tuple[Network, Tensor, Tensor]:
        """For a plan's measurements: the model, one image, and the colour of a square, as they are
        when a lease is answered."""
        image = self._occluder.input_of(self._pictures(image_id))
        return self._network, image, self._occluder.colour_of(fill)

    def _read_id(self, image_id: int) -> Picture:
        return self._read_again(self._job.source, self._uri(image_id))

    def _read_again(self, source: Source, uri: str) -> Picture:
        try:
            return source.read(uri, self._job.transform)
        except ImageUnreadable as error:
            raise DeconvoyError(
                f"The image {uri!r} was read before and cannot be read any more ({error}): "
                "put it back as it was, then resume."
            ) from error

    def _uri(self, image_id: int) -> str:
        part, row = divmod(image_id, self._job.shard_size)
        return self._uris(part)[row]

    def _read_uris(self, part: int) -> list[str]:
        """Images of one part of the images table; ids are counted through in reading order."""
        table = images_part(self._run, image_part_path(part), ["uri"])
        uris: list[str] = table.column("uri").to_pylist()
        return uris


def _seeds(layer: Layer, score: np.ndarray) -> Float[Tensor, " hit"]:
    """The recorded activations: of a rectifier with a ceiling the score is its input."""
    seed = score if layer.ceiling is None else np.minimum(score, layer.ceiling)
    return torch.from_numpy(seed.astype(np.float32))


def _looked_up(contents: Mapping[int, int], ids: np.ndarray) -> Int64[np.ndarray, " hit"]:
    return np.array([contents[image_id] for image_id in ids.tolist()], np.int64)


def _image_row(
    ref: ImageRef,
    picture: Picture | ImageUnreadable,
    prediction: Prediction,
    row: int,
    taken: bool,
) -> dict[str, Any]:
    read = picture if isinstance(picture, Picture) else None
    left_out = None if taken else "left out by data.where.wrong: it has no label or is predicted so"
    return {
        "id": ref.id,
        "uri": ref.uri,
        "label": ref.label,
        "width": read.width if read else None,
        "height": read.height if read else None,
        "predicted": int(prediction.predicted[row]) if read else None,
        "probability": float(prediction.probability[row]) if read else None,
        "skipped": left_out if read else str(picture),
    }


def images_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=images_schema())
