"""Whatever is worked on: a job or a study.  One place knows which of them a spec or a run is."""

from collections.abc import Callable
from typing import Any

from deconvoy.errors import RequestError
from deconvoy.run import attributes_in
from deconvoy.specs import Spec
from deconvoy.store import METADATA, RunStore
from deconvoy.study_spec import StudySpec
from workers import pipeline, plan, study
from workers.executors import Executor
from workers.job import Job, settle
from workers.leasing import Observe
from workers.plan_study import plan_study, require_room_for_study
from workers.study_items import StudyJob, settle_study

Undertaking = Job | StudyJob


def create(
    spec: Spec,
    url: str,
    *,
    overwrite: bool = False,
    check: Callable[[Any, RunStore], None] | None = None,
) -> tuple[Undertaking, RunStore]:
    """Settle what a spec asks for and make its run, empty; raises as ``pipeline.create`` does."""
    if isinstance(spec, StudySpec):
        return study.create_study(spec, url, overwrite=overwrite, check=check)
    return pipeline.create(spec, url, overwrite=overwrite, check=check)


def reopen(url: str) -> tuple[Undertaking, RunStore]:
    """Settle again what a run is, and check that it is the same.

    Raises:
        RequestError: no run is there, or what it depends on has changed.
    """
    run = RunStore(url)
    if not run.exists(METADATA):
        raise RequestError(f"{url!r} is no run, so there is nothing to resume: see `deconvoy run`.")
    attributes = attributes_in(run.read(METADATA), url)
    if attributes["spec"].get("kind") == "study":
        return study.reopen_study(url, attributes)
    return pipeline.reopen(url)


def execute(
    job: Undertaking, run: RunStore, executor: Executor, observe: Observe
) -> dict[str, Any]:
    """Do what is left; returns the results in short.  Raises as ``pipeline.execute`` does."""
    if isinstance(job, StudyJob):
        return study.execute_study(job, run, executor, observe)
    return pipeline.execute(job, run, executor, observe)


def planned(spec: Spec, measuring: Callable[[], None]) -> dict[str, Any]:
    """What a spec would do and take; one that is wrong is refused before anything is measured."""
    if isinstance(spec, StudySpec):
        return plan_study(settle_study(spec), measuring).to_json()
    return plan.plan(settle(spec), measuring=measuring).to_json()


def require_room(job: Undertaking, run: RunStore) -> None:
    """Refuse what its disk cannot hold; raises as ``plan.require_room`` does."""
    if isinstance(job, StudyJob):
        require_room_for_study(job, run)
    else:
        plan.require_room(job, run)


def told(job: Undertaking) -> dict[str, str]:
    """What it is, for people."""
    if isinstance(job, StudyJob):
        training, count = job.spec.training, len(job.spec.edits)
        edits = f"{count} edit{'' if count == 1 else 's'}"
        return {
            "networks": f"{job.spec.base} and {edits} of it, each trained "
            f"{job.spec.repeats}×, {training.epochs} epochs",
            "images": f"{len(job.training):,} to learn from, {len(job.validation):,} to judge by; "
            f"{len(job.classes)} classes",
        }
    lines = {
        "model": f"{job.packed.name}: {len(job.layers)} layers, {job.index.total:,} units",
        "weights": job.weights_from,
        "images": f"{len(job.listing):,}; labels: {job.labels_from}",
    }
    return lines | ({"projection": job.unprojected} if job.unprojected else {})
