"""Merge new images into a finished run: a new run over all, of which only the new part is scanned.

The new images are a further place of ``data.uri``.  A place begins a shard of its own, so every
shard of the old run is one of the new run, too: its marker and its part of the images table are
taken over.  Projections are computed again only in Zarr shards with a unit whose hits changed.
Occlusion is computed anew in any case: another sample is drawn from more images, and other hits
are covered.
What comes out is, bit for bit, the run over all places from the start.
"""

import os
from collections.abc import Callable

from deconvoy.errors import RequestError
from deconvoy.run import Run
from deconvoy.spec import DataSpec, JobSpec
from deconvoy.store import FolderStore, RunStore
from workers import pipeline
from workers.job import Job
from workers.reuse import digest_of


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
        RequestError: the run is not finished, or its weights or images have changed, or ``out``
            would destroy it, or what it kept is not what a run over all would keep.
    """
    _require_apart(url, out)
    before = Run(url)
    if before.status != "done":
        remedy = f"`deconvoy resume {url}` first." if before.resumable else before.failure
        raise RequestError(
            f"The run {url!r} is {before.status}, but only a finished one can be extended"
            f"{f': {remedy}' if remedy else '.'}"
        )
    old, store = pipeline.reopen(url)  # checks that weights and images are what they were
    spec = extended(old.spec, uri, labels)

    digest = digest_of(store)

    def refuse(job: Job, run: RunStore) -> None:
        _require_the_same(old, job, url)
        if check is not None:
            check(job, run)

    job, run = pipeline.create(
        spec, out, overwrite=overwrite, check=refuse, batch_size=old.batch_size
    )
    devices = before.attributes["provenance"].get("device", [])  # the bits are theirs, too
    attributes = {"extends": store.absolute, "extends_sha256": digest}
    provenance = {**job.provenance(), "device": devices}
    run.zarr("r+").attrs.update({**attributes, "provenance": provenance})
    for folder in ("images", "ledger/scan"):  # what has a marker is whole
        for name in store.names(folder):
            run.write(f"{folder}/{name}", store.read(f"{folder}/{name}"))
    if digest is None or digest_of(store) != digest:
        run.remove()
        raise RequestError(
            f"The run {url!r} was replaced while it was copied: extend it when it is finished."
        )
    return job, run


def _require_apart(url: str, out: str) -> None:
    """The new run may not take the place of what it is made from, nor lie in it."""
    old, new = (f"{_place_of(RunStore(place))}/" for place in (url, out))
    if old.startswith(new) or new.startswith(old):
        raise RequestError(
            f"--out {out!r} and the run {url!r} are one folder or lie in each other, but a run is "
            "extended into a new one and stays as it is: choose a folder beside it."
        )


def _place_of(run: RunStore) -> str:
    """The same for all URLs that lead there."""
    return os.path.realpath(run.root) if isinstance(run, FolderStore) else run.absolute


def _require_the_same(old: Job, job: Job, url: str) -> None:
    """What is taken over must be what a scan of all would find.

    Raises:
        RequestError: it would not be; says why.
    """
    if not job.spec.compute.exact:
        raise RequestError(
            f"The run {url!r} found its hits among candidates (compute.precision), which "
            "a run over all would choose anew: make a new run with a list of both places in "
            "data.uri."
        )
    count = len(old.listing)
    was, now = ((job_.listing.uris, job_.listing.labels) for job_ in (old, job))
    if any(list(a) != list(b[:count]) for a, b in zip(was, now, strict=True)):
        raise RequestError(
            f"The images of {url!r} or their labels would not be the same with the new ones after "
            "them: make a new run with a list of both places in data.uri."
        )
    kept_by_class = any(ranking.name == "class" for ranking in job.rankings)
    if kept_by_class and old.listing.labelled != job.listing.labelled:
        raise RequestError(
            f"The run {url!r} kept images per predicted class (per_class), since its data carries "
            "no labels, but the new images do: give the old ones labels and run over both, or "
            "take the labels away from the new ones."
        )
