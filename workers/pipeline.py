"""Run a job: scan → merge → project → store, by leased work items, resumable at any moment.

The driver alone commits: it writes a marker when an item's result has come from the attempt that
holds the lease.  Killed at any point, it begins again from the markers.  All decisions about leases
are the ledger's; all decisions about where workers live are the executor's.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deconvoy.errors import RequestError
from deconvoy.places import anchored
from deconvoy.run import attributes_in
from deconvoy.schema import FORMAT
from deconvoy.spec import JobSpec
from deconvoy.store import METADATA, RunStore
from workers.candidates import Judgement
from workers.correspondence_stage import correspondence_work
from workers.datasets import Listing
from workers.evolution_stage import CheckpointFolds, projection_work, write_tables
from workers.executors import Executor
from workers.invariance_stage import invariance_work
from workers.job import Job, ProjectionItem, settle
from workers.leases import Lease, ProjectionLease, ProjectionResult, ScanLease
from workers.leasing import LOG as LOG
from workers.leasing import Advance as Advance
from workers.leasing import Leasing
from workers.leasing import Observe as Observe
from workers.models import PackedModel
from workers.new_run import require_same, vacant, warn_of_others
from workers.occlusion_stage import image_work, unit_work
from workers.parts import marker_path
from workers.probe_stage import features_work, fits_work
from workers.rescan import Rescan
from workers.reuse import digest_of, take_over, unchanged
from workers.run_state import told_in_state
from workers.scratch_stage import scratch_work
from workers.shards import CommittedShards
from workers.stages import Work
from workers.tables import entries_of, example_arrays, hit_arrays, sums_of
from workers.topk import Fold
from workers.writer import create_layer, create_pictures, write_examples, write_hits, write_outliers

logger = logging.getLogger(__name__)


def create(
    spec: JobSpec,
    url: str,
    *,
    overwrite: bool = False,
    packed: PackedModel | None = None,
    listing: Listing | None = None,
    batch_size: int | None = None,
    check: Callable[[Job, RunStore], None] | None = None,
) -> tuple[Job, RunStore]:
    """Settle a job and make its run, empty.

    Args:
        packed: a model at hand instead of the one the spec names.
        listing: images at hand instead of those the spec names.
        batch_size: that of the run this one extends.
        check: may refuse the job before anything is written.

    Raises:
        RunExists: something is there already.
        RequestError: the spec does not fit.
    """
    with vacant(url, overwrite) as run:
        job = settle(spec, packed, batch_size, listing)
        job.require_doable()
        if check is not None:
            check(job, run)
    run.create(
        {
            "format": FORMAT,
            "spec": anchored(job.spec).to_json(),
            "state": {"status": "running"},
            "layers": [layer.name for layer in job.layers],
            "classes": list(job.packed.classes),
            "labels": "true" if job.listing.labelled else "predicted",
            "provenance": job.provenance(),
        }
    )
    return job, run


def reopen(url: str, packed: PackedModel | None = None) -> tuple[Job, RunStore]:
    """Settle the job of a run that is there, and check that it is the same job.

    Raises:
        RequestError: weights, images or the batch size differ from those the run began with.
    """
    run = RunStore(url)
    if not run.exists(METADATA):
        raise RequestError(f"{url!r} is no run, so there is nothing to resume: see `deconvoy run`.")
    attributes = attributes_in(run.read(METADATA), url)
    if attributes["spec"].get("kind") == "study":
        raise RequestError(
            f"{url!r} is a study of architectures, which holds no hits of images: give the run of "
            "a job."
        )
    began: Any = attributes["provenance"]
    job = settle(JobSpec.parse(attributes["spec"]), packed, batch_size=began["batch_size"])
    now = job.provenance()
    require_same(url, began, now, _MUST_BE_THE_SAME)
    warn_of_others(began, now, ("versions", "layout"))
    return job, run


_MUST_BE_THE_SAME = (
    "model_sha256",
    "checkpoints_sha256",
    "listing_fingerprint",
    "probe_fingerprint",
    "transform",
    "boxes_sha256",
    "parts_sha256",
)
"""Of the provenance, where a run goes on."""


def execute(job: Job, run: RunStore, executor: Executor, observe: Observe) -> dict[str, Any]:
    """Do what is left of a job; returns its results' summary (also in the run's attributes).

    Raises:
        JobFailed: an item failed for good; everything committed stays.
        JobStopped: Ctrl-C.
    """
    remedy = None
    if job.packed.module is not None:
        remedy = "Only this process has the model: call workers.analyse again, overwrite=True."
    with run.driver_lock(), told_in_state(run, remedy):
        run.sweep()  # only now: the drafts of a driver at work are none of ours
        driver = _Driver(job, run, Leasing(run, executor, observe))
        try:
            executor.start(lambda threads: job.assignment(run.url, threads))
            shards = driver.scan()
            fold = driver.decide(shards.fold)
            summary = driver.merge(shards, fold)
            driver.project(fold)
            driver.occlude(fold)
            driver.move()
            driver.correspond()
            driver.probe()
            driver.evolve(fold)
        finally:
            executor.shutdown()
        run.sweep()  # what a worker that was killed had half written
        return summary


@dataclass
class _Driver:
    job: Job
    run: RunStore
    leasing: Leasing
    judgement: Judgement | None = None
    """Of the candidates, where the scan found only those."""

    # Scan -------------------------------------------------------------------------------------

    def scan(self) -> CommittedShards:
        """Scan the shards that have no marker yet, and fold all in shard order."""
        shards = CommittedShards(self.job, self.run)
        shards.take_up()
        shards.judge()
        total = len(self.job.listing)
        items = {f"scan/part-{part:06d}": part for part in shards.left()}

        def lease_of(item: str) -> Lease:
            return ScanLease(
                item,
                self.job.refs(items[item]),
                shards.fold.floor,
                example_floors=shards.fold.example_floors,
                candidates=not self.job.spec.compute.exact,
            )

        def commit(item: str, result: Any) -> int:
            shards.commit(items[item], result)
            start, stop = self.job.shard(items[item])
            return stop - start

        done = total - sum(stop - start for start, stop in map(self.job.shard, items.values()))
        self.leasing.carry_out(Work("scan", list(items), lease_of, commit, done, total))
        return shards

    def decide(self, fold: Fold) -> Fold:
        """The hits that are written: without outliers, and if the scan only found candidates, those
        of an exact scan of their images."""
        if self.job.spec.compute.exact:
            return self.job.without_outliers(fold)
        rescan = Rescan(self.job, self.run, fold)
        self.leasing.carry_out(rescan.work())
        self.judgement = rescan.judgement()
        return rescan.fold

    def merge(self, shards: CommittedShards, fold: Fold) -> dict[str, Any]:
        """Write the tables of every layer, and what the scan has found in short."""
        job = self.job
        attributes = self.run.zarr("r+").attrs
        merged: Any = attributes.get("results")
        if merged is not None:  # written last: the tables are whole
            return dict(merged)
        labels = shards.labels_of(fold.image)
        outliers = job.outliers(fold)
        for number, layer in enumerate(job.layers):
            units = job.index.units_of(number)
            create_layer(self.run, layer, job.k)
            sums = sums_of(fold, units)
            hits = hit_arrays(fold, units, labels)
            tables = hits["score"], hits["image"], hits["label"], hits["position"]
            write_hits(self.run, layer, *tables, sums, fold.images)
            if outliers:
                write_outliers(self.run, layer, outliers[number], job.spare)
            for ranking in job.rankings:
                own = entries_of(fold, units, ranking)
                arrays = example_arrays(ranking, own, sums.histogram, job.spec.top, job.outputs)
                write_examples(self.run, layer, ranking, arrays)
        # Neither left out as an outlier, nor missed by a scan that found candidates.
        silent = (shards.fold.image[:, 0] < 0) & (fold.image[:, 0] < 0)
        top1 = fold.correct / fold.labelled if fold.labelled else None
        summary = {
            "images": fold.images,
            "skipped": fold.skipped,
            "labelled": fold.labelled,
            "top1": top1,
            "dead_units": int(silent.sum()),
            "units": job.index.total,
            **({"candidates": asdict(self.judgement)} if self.judgement else {}),
        }
        attributes.update({"results": summary})
        return summary

    # Projection -------------------------------------------------------------------------------

    def project(self, fold: Fold) -> None:
        """Project the layers the spec names, work item by work item."""
        items = {item.name: item for item in self.job.projection_items()}
        started = {
            item.layer.name for item in items.values() if self._has_pictures(item.layer.name)
        }
        for layer in self.job.projected_layers():
            if layer.name not in started:
                spec = self.job.spec
                create_pictures(self.run, layer, self.job.k, spec.storage, spec.method)
        self._take_over(list(items.values()), fold)
        left = [name for name in items if not self.run.exists(marker_path(name))]

        def count(name: str) -> int:
            return self._hits_in(items[name], fold)

        def lease_of(name: str) -> Lease:
            item, unit = items[name], self._rows_of(items[name])
            tables = fold.score[unit], fold.image[unit], fold.position[unit]
            return ProjectionLease(
                name, item.layer.name, item.start, item.stop, item.units, *tables,
                reuse=item.reuse,
            )  # fmt: skip

        def commit(name: str, result: ProjectionResult) -> int:
            self._mark(items[name], result.projections)
            return count(name)

        total = sum(count(name) for name in items)
        done = total - sum(count(name) for name in left)
        self.leasing.carry_out(Work("projection", left, lease_of, commit, done, total))

    def _rows_of(self, item: ProjectionItem) -> Any:
        """Its units, counted through all layers."""
        return item.units + self.job.index.offsets[self.job.layers.index(item.layer)]

    def _hits_in(self, item: ProjectionItem, fold: Fold) -> int:
        return int((fold.image[self._rows_of(item)] >= 0).sum())

    def _mark(self, item: ProjectionItem, projections: int) -> None:
        fields = {"units": item.units.tolist(), "projections": projections}
        self.run.write(marker_path(item.name), json.dumps(fields).encode())

    def _take_over(self, items: Sequence[ProjectionItem], fold: Fold) -> None:
        """Commit what the run that is extended has projected already."""
        extends: Any = self.run.zarr().attrs.get("extends")
        if extends is None:
            return
        old = RunStore(extends)
        if digest_of(old) != self.run.zarr().attrs.get("extends_sha256"):
            logger.warning(
                "%s is not the run any more that is extended: all projections are computed.",
                extends,
            )
            return
        left = [
            item for item in items
            if not self.run.exists(marker_path(item.name)) and old.exists(marker_path(item.name))
        ]  # fmt: skip
        for item in unchanged(self.job, left, fold, old, self.run):
            take_over(item, old, self.run)
            self._mark(item, self._hits_in(item, fold))
            self.leasing.log(event="taken over", item=item.name, run=extends)

    def _has_pictures(self, layer: str) -> bool:
        """Whether any item of the layer is committed: its arrays must not be made anew."""
        return bool(self.run.names(marker_path(f"projection/{layer}/x").rpartition("/")[0]))

    # Occlusion --------------------------------------------------------------------------------

    def occlude(self, fold: Fold) -> None:
        """Slide squares over the images and the hits the spec chooses."""
        for work_of in (image_work, unit_work):
            work = work_of(self.job, self.run, fold)
            if work is not None:
                self.leasing.carry_out(work)

    # Invariance -------------------------------------------------------------------------------

    def move(self) -> None:
        """Shift, scale and turn the images the spec chooses."""
        work = invariance_work(self.job, self.run)
        if work is not None:
            self.leasing.carry_out(work)

    # Correspondence ---------------------------------------------------------------------------

    def correspond(self) -> None:
        """Cover parts of the images the spec chooses, and boxes at random."""
        work = correspondence_work(self.job, self.run)
        if work is not None:
            self.leasing.carry_out(work)

    # Probe ------------------------------------------------------------------------------------

    def probe(self) -> None:
        """Classify other images by the features of each layer, and by networks trained on them."""
        probing = self.job.probing
        if probing is None:
            return
        self.leasing.carry_out(features_work(self.job, self.run, probing))
        self.leasing.carry_out(fits_work(self.run, probing))
        scratch = scratch_work(self.run, probing)
        if scratch is not None:
            self.leasing.carry_out(scratch)

    # Evolution --------------------------------------------------------------------------------

    def evolve(self, fold: Fold) -> None:
        """Scan the checkpoints, write how early layers settle, and project what units saw."""
        evolving = self.job.evolving
        if evolving is None:
            return
        checkpoints = CheckpointFolds(self.job, self.run, evolving)
        self.leasing.carry_out(checkpoints.work())
        write_tables(self.job, self.run, evolving, checkpoints.folds, fold)
        self.leasing.carry_out(
            projection_work(self.job, self.run, evolving, checkpoints.folds, fold)
        )
