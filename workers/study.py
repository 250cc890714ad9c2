"""Work on a study: every network is trained by whoever is free, and resumed where it was cut off.

Source: Zeiler & Fergus (ECCV 2014, arXiv:1311.2901), section 5 and Table 3.
"""

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import zarr

from deconvoy.places import anchored
from deconvoy.schema import (
    FIRST_LAYER_ARRAYS,
    FORMAT,
    STUDY_ARRAYS,
    STUDY_GROUP,
    first_layer_path,
)
from deconvoy.store import RunStore
from deconvoy.study import BANDS
from deconvoy.study_spec import StudySpec
from workers.executors import Executor
from workers.groups import create_group, write_row
from workers.leases import TrainingResult
from workers.leasing import Leasing, Observe
from workers.new_run import require_same, vacant, warn_of_others
from workers.parts import marker_path
from workers.run_state import told_in_state
from workers.stages import Work
from workers.study_items import StudyJob, settle_study
from workers.trainer import state_path, work_of

logger = logging.getLogger(__name__)

_MUST_BE_THE_SAME = ("listing_fingerprint", "validation_fingerprint", "transform")


def create_study(
    spec: StudySpec,
    url: str,
    *,
    overwrite: bool = False,
    check: Callable[[StudyJob, RunStore], None] | None = None,
) -> tuple[StudyJob, RunStore]:
    """Settle a study and make its run, empty.

    Raises:
        RunExists: something is there already.
        RequestError: the spec does not fit.
    """
    with vacant(url, overwrite) as run:
        job = settle_study(spec)
        if check is not None:
            check(job, run)
    run.create(
        {
            "format": FORMAT,
            "spec": anchored(spec).to_json(),
            "state": {"status": "running"},
            "layers": [],
            "classes": list(job.classes),
            "labels": "true",
            "provenance": job.provenance(),
        }
    )
    return job, run


def reopen_study(url: str, attributes: dict[str, Any]) -> tuple[StudyJob, RunStore]:
    """Settle the study of a run that is there, and check that it is the same.

    Raises:
        RequestError: the images differ from those it began with.
    """
    job = settle_study(StudySpec.parse(attributes["spec"]))
    began, now = attributes["provenance"], job.provenance()
    require_same(url, began, now, _MUST_BE_THE_SAME)
    warn_of_others(began, now, ("versions",))
    return job, RunStore(url)


def execute_study(
    job: StudyJob, run: RunStore, executor: Executor, observe: Observe
) -> dict[str, Any]:
    """Do what is left of a study; returns its results in short (also in the run's attributes).

    Raises:
        JobFailed: a training failed for good; everything committed stays.
        JobStopped: Ctrl-C.
    """
    with run.driver_lock(), told_in_state(run):
        run.sweep()
        leasing = Leasing(run, executor, observe)
        try:
            executor.start(lambda threads: job.assignment(run.url, threads))
            leasing.carry_out(_work(job, run))
        finally:
            executor.shutdown()
        run.sweep()
        summary: dict[str, Any] = {
            "networks": len(job.arguments),
            "repeats": job.spec.repeats,
            "images": len(job.training),
            "validation_images": len(job.validation),
        }
        summary["diverged"] = list(_diverged(job, run))
        run.zarr("r+").attrs.update({"results": summary})
        return summary


def _work(job: StudyJob, run: RunStore) -> Work:
    items = job.items()
    left = [name for name in items if not run.exists(marker_path(name))]
    for name in items.keys() - set(left):  # a driver may have ended between marker and deletion
        if run.exists(state_path(name)):
            run.delete(state_path(name))
    if len(left) == len(items):  # with a marker its arrays must not be made anew
        _create(job, run)

    def commit(name: str, result: TrainingResult) -> int:
        network, repeat = items[name].network, items[name].repeat
        first = {key: getattr(result, key) for key in ("filter", "rms", "peak", "frequency")}
        write_row(run, first_layer_path(network), repeat, first)
        found = {field.name: np.asarray(getattr(result, field.name)) for field in STUDY_ARRAYS}
        write_row(run, STUDY_GROUP, list(items).index(name), found)
        fields = {"network": network, "repeat": repeat, "skipped": list(result.skipped)}
        fields["weights"] = dict(result.weights)
        run.write(marker_path(name), json.dumps(fields).encode())
        if run.exists(state_path(name)):
            run.delete(state_path(name))
        return result.images

    each = work_of(job.spec.training.epochs, len(job.training) + len(job.validation))
    done = (len(items) - len(left)) * each
    return Work("study", left, items.__getitem__, commit, done, len(items) * each)


def _diverged(job: StudyJob, run: RunStore) -> Iterator[dict[str, int | str]]:
    """Trainings that came to no end, with the epoch in which they diverged."""
    group: Any = run.zarr("r")[STUDY_GROUP]
    epochs = np.asarray(group["diverged"][...]).reshape(-1, job.spec.repeats)
    for network, repeat in np.argwhere(epochs):
        yield {
            "network": job.spec.titles[network],
            "repeat": int(repeat),
            "epoch": int(epochs[network, repeat]),
        }


def _create(job: StudyJob, run: RunStore) -> None:
    spec = job.spec
    lengths = {"training": len(job.items()), "epoch": spec.training.epochs, "top": 2}
    create_group(run, STUDY_GROUP, STUDY_ARRAYS, lengths, {}, {})
    for network, shape in enumerate(job.first_layers):
        sizes = dict(zip(("unit", "y", "x", "channel"), shape, strict=True))
        create_group(
            run, first_layer_path(network), FIRST_LAYER_ARRAYS,
            {"repeat": spec.repeats, "band": len(BANDS) + 1, **sizes}, {},
            {"network": spec.titles[network]},
        )  # fmt: skip
    group: Any = run.zarr("r+")[STUDY_GROUP]
    assert isinstance(group, zarr.Group)
    # Last: a group that has them is whole.
    group.attrs.update(
        {
            "networks": list(spec.titles),
            "arguments": list(job.arguments),
            "parameters": list(job.parameters),
            "repeats": spec.repeats,
            "max_filter_rms": spec.training.max_filter_rms,
        }
    )
