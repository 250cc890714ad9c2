"""Merge new images into a finished run: a new run over all, of which only the new part is scanned.

The new images are a further place of ``data.uri``.  A place begins a shard of its own, so every
shard of the old run is one of the new run, too: its marker and its part of the images table are
taken over.  Projections are computed again only in Zarr shards with a unit whose hits changed.
What comes out is, bit for bit, the run over all places from the start.
"""

import os
from collections.abc import Callable

from deconvoy.errors import RequestError
from deconvoy.run import Run
from deconvoy.spec import DataSpec, JobSpec
from deconvoy.store import RunStore
from workers import pipeline
from workers.job import Job


def extended(spec: JobSpec, uri: str, labels: str | None) -> JobSpec:
    """The spec with one more place of images."""
    data = spec.data
    uris = data.uri if isinstance(data.uri, tuple) else (data.uri,)
    files = data.labels if isinstance(data.labels, tuple) else (data.labels,) * len(uris)
    changed = data.model_dump() | {"uri": (*uris, uri), "labels": (*files, labels)}
    return spec.model_copy(update={"data": DataSpec.model_validate(changed)})


def create(
    url: str,
    uri: str,
    out: str,
    *,
    labels: str | None = None,
    overwrite: bool = False,
    check: Callable[[Job, RunStore], None] | None = None,
) -> tuple[Job, RunStore]:
    """Make the new run, with all that is taken over; ``pipeline.execute`` does the rest.

    Args:
        url: of the finished run, which stays as it is.
        uri: where the new images are; as in ``data.uri``.
        out: of the new run.
        labels: of the new images; as in ``data.labels``.

    Raises:
        RequestError: the run is not finished, or its weights or images have changed.
    """
    before = Run(url)
    if before.status != "done":
        remedy = f"`deconvoy resume {url}` first." if before.resumable else before.failure
        raise RequestError(
            f"The run {url!r} is {before.status}, but only a finished one can be extended"
            f"{f': {remedy}' if remedy else '.'}"
        )
    old, store = pipeline.reopen(url)  # checks that weights and images are what they were
    spec = extended(old.spec, uri, labels)

    job, run = pipeline.create(
        spec, out, overwrite=overwrite, check=check, batch_size=old.batch_size
    )
    run.zarr("r+").attrs.update({"extends": os.path.abspath(url)})
    for folder in ("images", "ledger/scan"):  # what has a marker is whole
        for name in store.names(folder):
            run.write(f"{folder}/{name}", store.read(f"{folder}/{name}"))
    return job, run
