"""Runs: which there are, what people say of them, and their end."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Literal

from fastapi import Body, Depends, Query, Request, Response

from deconvoy.errors import RunNotFound
from deconvoy.store import RunStore
from service import facts, problems
from service.api.answers import RunChange, RunDetails, RunPage, RunSummary
from service.api.asking import (
    KNOWN_PARAMETERS,
    Limit,
    Offset,
    RunId,
    next_page,
    opened,
    page_size,
)
from service.api.routing import Routes
from service.auth import Scope, requires
from service.catalogue import Catalogue, RunNote
from service.facts import Facts
from service.problems import refused
from service.shelf import Shelf

router = Routes(prefix="/v1/runs", tags=["runs"], dependencies=[KNOWN_PARAMETERS])

READ, SUBMIT, ADMIN = (
    Depends(requires(scope)) for scope in (Scope.read, Scope.submit, Scope.admin)
)

AT_WORK = ("queued", "starting", "running", "stopping")
"""States of a job that writes, or will write, its run."""

Status = Literal["running", "done", "failed", "stopped", "interrupted", "unreadable", "deleting"]


@router.get("", dependencies=[READ])
def list_runs(
    request: Request,
    status: Annotated[Status | None, Query(description="Only these.", examples=["done"])] = None,
    tag: Annotated[
        str | None, Query(description="Only those with this tag.", examples=["squeezenet"])
    ] = None,
    text: Annotated[
        str | None,
        Query(description="Only those with this in id, name or model.", examples=["squeeze"]),
    ] = None,
    offset: Offset = 0,
    limit: Limit = None,
) -> RunPage:
    """All runs: pinned ones first, then the newest."""
    size = page_size(request, limit)
    found = [
        (run_id, facts, note)
        for run_id, facts, note in _known(request)
        if (status is None or facts.status == status)
        and (tag is None or tag in note.tags)
        and (text is None or _mentions(run_id, facts, note, text))
    ]
    found.sort(key=lambda run: (not run[2].pinned, -_seconds(run[1]), run[0]))
    total = len(found)
    return RunPage(
        total=total,
        offset=offset,
        next=next_page(request, offset, size, total),
        runs=[_summary(*run) for run in found[offset : offset + size]],
    )


@router.get("/{run_id}", dependencies=[READ])
def show_run(request: Request, run_id: RunId) -> RunDetails:
    """One run: its state, spec and provenance."""
    shelved = opened(request, run_id)
    run, catalogue = shelved.run, _catalogue(request)
    summary = _summary(run_id, _shelf(request).facts(run_id), catalogue.note(run_id))
    try:
        occluded = run.occluded().num_rows
    except RunNotFound:
        occluded = 0
    return RunDetails(
        **summary.model_dump(),
        failure=run.failure,
        resumable=run.resumable,
        labels=run.labels,
        classes=list(run.classes),
        layer_names=run.attributes["layers"],
        occluded=occluded,
        spec=run.attributes["spec"],
        provenance=run.attributes["provenance"],
        seconds=facts.seconds(run.url),
        results=run.attributes.get("results"),
    )


@router.patch("/{run_id}", dependencies=[SUBMIT])
def change_run(request: Request, run_id: RunId, change: Annotated[RunChange, Body()]) -> RunSummary:
    """Name a run, tag it, pin it."""
    opened(request, run_id)
    said = change.model_dump(exclude_none=True)
    if not said:
        raise refused(
            422,
            "The body changes nothing: give name, tags, add_tags, remove_tags or pinned.",
            "body",
        )
    note = _catalogue(request).set_note(run_id, **said)
    return _summary(run_id, _shelf(request).facts(run_id), note)


@router.delete(
    "/{run_id}",
    dependencies=[ADMIN],
    status_code=204,
    response_class=Response,
    responses=problems.documented(409),
)
def delete_run(request: Request, run_id: RunId) -> None:
    """Delete a run and all its files, for good.  One whose deletion was cut off is told as
    ``deleting``; asking again finishes it."""
    shelf, catalogue = _shelf(request), _catalogue(request)
    with problems.about("run_id"):
        url = shelf.url(run_id)
    if catalogue.note(run_id).pinned:
        _refuse(
            f"The run {run_id!r} is pinned: unpin it first (`deconvoy edit {run_id} --unpin`, or "
            "PATCH with pinned false)."
        )
    if any(job.id == run_id for job in catalogue.in_states(*AT_WORK)):
        _refuse(
            f"The job of the run {run_id!r} has not ended: cancel it first (`deconvoy cancel "
            f"{run_id}`, or DELETE /v1/jobs/{run_id})."
        )
    if not shelf.owns(run_id):
        _refuse(
            f"The run {run_id!r} lies outside the runs root and is only shown here: delete it "
            "where it lies."
        )
    with problems.about("run_id"):
        RunStore(url).remove()
    shelf.forget(run_id)
    catalogue.forget(run_id)


# -- parts -----------------------------------------------------------------------------------------


def _refuse(told: str) -> None:
    raise refused(409, told, "run_id")


def _known(request: Request) -> Iterator[tuple[str, Facts, RunNote]]:
    """What is told of each run; answers are made of those that are shown, not of thousands."""
    shelf, notes = _shelf(request), _catalogue(request).notes()
    for run_id, url in shelf.urls().items():
        with suppress(RunNotFound):  # it was deleted since
            yield run_id, shelf.facts(run_id, url), notes.get(run_id) or RunNote(run_id)


def _summary(run_id: str, facts: Facts, note: RunNote) -> RunSummary:
    return RunSummary(
        id=run_id,
        kind=facts.kind,
        name=note.name or facts.name,
        tags=list(note.tags),
        pinned=note.pinned,
        status=facts.status,
        model=facts.model,
        images=facts.images,
        layers=facts.layers,
        units=facts.units,
        top1=facts.top1,
        created=facts.created,
        commit=facts.commit,
    )


def _mentions(run_id: str, facts: Facts, note: RunNote, text: str) -> bool:
    told = f"{run_id} {note.name or facts.name or ''} {facts.model}"
    return text.casefold() in told.casefold()


def _seconds(facts: Facts) -> float:
    return 0.0 if facts.created is None else facts.created.timestamp()


def _shelf(request: Request) -> Shelf:
    shelf: Shelf = request.app.state.shelf
    return shelf


def _catalogue(request: Request) -> Catalogue:
    catalogue: Catalogue = request.app.state.catalogue
    return catalogue
