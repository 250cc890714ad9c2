"""Jobs: taken in, watched, stopped and resumed.  What they find is a run of the same id."""

from collections.abc import AsyncIterable
from datetime import datetime
from typing import Annotated, Any

import anyio
from fastapi import Body, Depends, Header, Path, Query, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue

from deconvoy.spec import JobSpec
from deconvoy.study_spec import StudySpec
from service import problems
from service.api.asking import KNOWN_PARAMETERS, Limit, link, page_size
from service.api.routing import Routes
from service.auth import Caller, Scope, requires
from service.catalogue import ENDED, STATES, Catalogue, Job
from service.jobs import Queue

router = Routes(prefix="/v1/jobs", tags=["jobs"], dependencies=[KNOWN_PARAMETERS])

READ, SUBMIT = (Depends(requires(scope)) for scope in (Scope.read, Scope.submit))

LOOK_SECONDS = 0.5
"""Between two looks at a job that somebody watches."""

JobId = Annotated[
    str, Path(description="Id of a job, and of its run.", examples=["squeeze-photos-1f0a9c3e"])
]

SPEC: dict[str, Any] = {
    "name": "squeeze-photos",
    "model": {"name": "torchvision/squeezenet1_1", "weights": "/data/squeezenet1_1.safetensors"},
    "data": {"uri": "/data/photographs"},
    "analyses": [{"kind": "top"}, {"kind": "projection", "layers": "maps"}],
}
STUDY: dict[str, Any] = {
    "kind": "study",
    "base": "deconvoy/zfnet_small",
    "data": {"uri": "shapes?size=2048&seed=1"},
    "edits": [{"remove": [3, 4]}, {"widths": {"6": 128, "7": 128}}],
}
PROGRESS: dict[str, Any] = {
    "stage": "scan",
    "done": 1280,
    "total": 5000,
    "rate": 42.5,
    "seconds_left": 87.5,
}
JOB: dict[str, Any] = {
    "id": "squeeze-photos-1f0a9c3e",
    "name": "squeeze-photos",
    "state": "running",
    "submitter": "anna",
    "error": None,
    "progress": PROGRESS,
    "created": "2026-05-02T09:30:00Z",
    "started": "2026-05-02T09:30:01Z",
    "ended": None,
    "attempts": 1,
    "spec": SPEC,
    "run": "/v1/runs/squeeze-photos-1f0a9c3e",
}


class _ShownAsSpec:
    """The JSON schema of a job spec or a study's; what is wrong with one is told in our own
    sentences."""

    def __get_pydantic_json_schema__(
        self, schema: Any, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        shown = handler(JobSpec.__pydantic_core_schema__)
        handler.resolve_ref_schema(shown)["examples"] = [SPEC]
        study = handler(StudySpec.__pydantic_core_schema__)
        handler.resolve_ref_schema(study)["examples"] = [STUDY]
        return {"anyOf": [shown, study]}


GivenSpec = Annotated[
    dict[str, Any],
    _ShownAsSpec(),
    Body(description="A job spec or a study, as in a spec file.", examples=[SPEC]),
]


class ProgressAnswer(BaseModel):
    """How far a job is."""

    model_config = ConfigDict(json_schema_extra={"examples": [PROGRESS]})

    stage: str
    done: int
    total: int
    rate: float | None
    """Of these a second."""
    seconds_left: float | None
    """Of this stage."""


class JobAnswer(BaseModel):
    """One job."""

    model_config = ConfigDict(json_schema_extra={"examples": [JOB]})

    id: str
    name: str
    state: str
    """queued, starting, running, stopping, done, failed, stopped or interrupted"""
    submitter: str
    """The name of the token it came with."""
    error: str | None
    progress: ProgressAnswer | None
    created: datetime
    started: datetime | None
    ended: datetime | None
    attempts: int
    spec: dict[str, Any]
    run: str
    """Where its run is, as soon as there is one."""


class JobPage(BaseModel):
    """Jobs, newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"jobs": [JOB], "next": None}]})

    jobs: list[JobAnswer]
    next: str | None


@router.post("", status_code=201, responses={200: {"model": JobAnswer}, **problems.documented(409)})
def submit_job(
    request: Request,
    response: Response,
    spec: GivenSpec,
    caller: Annotated[Caller, SUBMIT],
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="The same key twice is one job: a request may be repeated.",
            examples=["6f1c1b1e-photos"],
        ),
    ] = None,
) -> JobAnswer:
    """Put a job into the queue.  With a key that was used before, the job of then (200)."""
    job, is_new = _queue(request).submit(spec, caller.name, key)
    if not is_new:
        response.status_code = 200
    response.headers["Location"] = link(request, "jobs", job.id)
    return _answer(request, job)


@router.get("", dependencies=[READ], responses=problems.documented(404))
def list_jobs(
    request: Request,
    state: Annotated[
        str | None,
        Query(description=f"Only these: {', '.join(STATES)}.", examples=["running"]),
    ] = None,
    before: Annotated[
        str | None,
        Query(description="Only jobs older than this one.", examples=["squeeze-photos-1f0a9c3e"]),
    ] = None,
    limit: Limit = None,
) -> JobPage:
    """All jobs, newest first."""
    size = page_size(request, limit)
    with problems.about("before"):
        found = _catalogue(request).jobs(state=state, limit=size + 1, before=before)
    following = None
    if len(found) > size:
        address = request.url.include_query_params(before=found[size - 1].id)
        following = f"{address.path}?{address.query}"
    return JobPage(jobs=[_answer(request, job) for job in found[:size]], next=following)


@router.get("/{job_id}", dependencies=[READ])
def show_job(request: Request, job_id: JobId) -> JobAnswer:
    """One job."""
    with problems.about("job_id"):
        return _answer(request, _catalogue(request).job(job_id))


@router.delete(
    "/{job_id}", status_code=202, dependencies=[SUBMIT], responses=problems.documented(409)
)
def cancel_job(request: Request, job_id: JobId) -> JobAnswer:
    """Stop a job.  What it has found stays readable, and it can be resumed."""
    with problems.about("job_id"):
        return _answer(request, _queue(request).cancel(job_id))


@router.post(
    "/{job_id}/resume",
    status_code=202,
    dependencies=[SUBMIT],
    responses=problems.documented(409),
)
def resume_job(request: Request, job_id: JobId) -> JobAnswer:
    """Go on with a job that was stopped or interrupted, or that failed for want of room."""
    with problems.about("job_id"):
        return _answer(request, _queue(request).resume(job_id))


@router.get("/{job_id}/logs", dependencies=[READ], response_class=PlainTextResponse)
def show_log(
    request: Request,
    job_id: JobId,
    after: Annotated[
        int, Query(ge=0, le=2**31, description="Lines to leave out.", examples=[0])
    ] = 0,
) -> PlainTextResponse:
    """What the driver of a job says, line by line."""
    with problems.about("job_id"):
        lines = Queue(request.app.state.settings, _catalogue(request)).log(job_id, after)
    return PlainTextResponse("".join(f"{line}\n" for line in lines))


async def _known_job(request: Request, job_id: JobId) -> Job:
    with problems.about("job_id"):
        return await anyio.to_thread.run_sync(_catalogue(request).job, job_id)


@router.get("/{job_id}/events", dependencies=[READ], response_class=EventSourceResponse)
async def watch_job(
    request: Request, job: Annotated[Job, Depends(_known_job)]
) -> AsyncIterable[ServerSentEvent]:
    """The job whenever it has changed, as server-sent events named ``job``; the stream ends when
    the job does."""
    last: JobAnswer | None = None
    while True:
        now = _answer(request, job)
        if now != last:
            last = now
            yield ServerSentEvent(data=now, event="job")
        if job.state in ENDED:
            return
        await anyio.sleep(LOOK_SECONDS)
        job = await _known_job(request, job.id)


def _answer(request: Request, job: Job) -> JobAnswer:
    progress = None
    if job.progress is not None:
        progress = ProgressAnswer.model_validate(job.progress, from_attributes=True)
    fields = {name: getattr(job, name) for name in JobAnswer.model_fields if hasattr(job, name)}
    return JobAnswer(**fields | {"progress": progress, "run": link(request, "runs", job.id)})


def _catalogue(request: Request) -> Catalogue:
    found: Catalogue = request.app.state.catalogue
    return found


def _queue(request: Request) -> Queue:
    queue: Queue | None = request.app.state.queue
    if queue is None:
        raise problems.refused(
            409,
            "This service only shows runs: it was started with DECONVOY_RAY=none, and takes no "
            "jobs. Start it with a Ray, or use `deconvoy run`.",
        )
    return queue
