"""The commands ``submit``, ``jobs``, ``status``, ``wait``, ``logs`` and ``cancel``: jobs at a
service, through ``deconvoy.Client`` as any program has them.

Exit codes besides those of ``cli``: of a job that is waited for, 1 where it failed or takes too
long, 130 where it was stopped or interrupted.
"""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

import deconvoy
from deconvoy import specs
from deconvoy.errors import JobNotFound, RunNotFound, ServiceUnreachable
from deconvoy.progress import span
from service.console import AsJson, minute, out, print_json, say

if TYPE_CHECKING:
    from deconvoy import ClientJob

STOPPED = 130

FOLLOW_SECONDS = 1.0
"""Between two looks at a log."""

JOB_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
"""As in ``service.catalogue``, which would load the database."""

JobId = Annotated[str, typer.Argument(metavar="ID", help="Of a job.", show_default=False)]
Service = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="DECONVOY_URL",
        help="Address of the service; default: http://127.0.0.1:8000. Its token comes from "
        "DECONVOY_TOKEN, or on this machine from the file that `deconvoy up` leaves.",
    ),
]
Timeout = Annotated[
    float | None, typer.Option(min=0, help="Seconds to wait; default: however long it takes.")
]


def submit(
    spec: Annotated[Path, typer.Argument(help="Job spec, a YAML or JSON file.")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a field, as in data.limit=100."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="The same key twice is one job; default: a new one.")
    ] = None,
    wait_: Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")] = False,
    as_json: AsJson = False,
    url: Service = None,
) -> None:
    """Put a job into the queue of a service; prints its id."""
    parsed = specs.from_file(spec, tuple(sets or ()))
    with deconvoy.Client(url) as client:
        job = client.submit(parsed, key)
        if not as_json:
            out.print(job.id)
        if wait_:
            job = _waited(job, None)
        else:
            say(f"{job.id} is {job.state}. Next: deconvoy wait {job.id}")
    if as_json:
        print_json(_plain(job))


def jobs(
    state: Annotated[str | None, typer.Option(help="Only these, as in running.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at most.")] = 20,
    as_json: AsJson = False,
    url: Service = None,
) -> None:
    """Jobs of a service, the newest first."""
    with deconvoy.Client(url) as client:
        found = list(client.jobs(state, limit))
    if as_json:
        print_json(list(map(_plain, found)))
    elif found:
        out.print(_table(found))
    else:
        which = "no jobs" if state is None else f"no jobs that are {state}"
        out.print(escape(f"There are {which}: `deconvoy submit SPEC` makes one."))


def status(job_id: JobId, as_json: AsJson = False, url: Service = None) -> None:
    """How far a job is."""
    with deconvoy.Client(url) as client:
        job = client.job(job_id)
    if as_json:
        print_json(_plain(job))
        return
    for line in _lines(job):
        out.print(escape(line), soft_wrap=True)


def wait(job_id: JobId, timeout: Timeout = None, url: Service = None) -> None:
    """Wait until a job is done; Ctrl-C leaves it alone."""
    with deconvoy.Client(url) as client:
        _waited(client.job(job_id), timeout)


def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Until the job has ended.")] = False,
    url: Service = None,
) -> None:
    """What the driver of a job says."""
    with deconvoy.Client(url) as client, _left_alone(job_id):
        job, told = client.job(job_id), 0
        while True:
            for line in (lines := job.logs(after=told)):
                sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
            told += len(lines)
            if not follow or job.has_ended:
                return
            time.sleep(FOLLOW_SECONDS)
            job = job.refresh()


def cancel(job_id: JobId, url: Service = None) -> None:
    """Stop a job; what it has found stays, and it can be resumed."""
    with deconvoy.Client(url) as client:
        job = client.job(job_id).cancel()
    if job.has_ended:
        out.print(f"{job.id} is {job.state}. `deconvoy resume {job.id}` goes on.", soft_wrap=True)
    else:
        out.print(
            f"{job.id} is {job.state}. Once it has stopped (`deconvoy wait {job.id}`), `deconvoy "
            f"resume {job.id}` goes on.",
            soft_wrap=True,
        )


def is_job(given: str) -> bool:
    """Whether ``resume`` means a job of a service: what is there on disk comes first."""
    return JOB_ID.fullmatch(given) is not None and not Path(given).exists()


def resume_job(job_id: str, url: str | None) -> None:
    """Let a service go on with a job.

    Raises:
        RunNotFound: there is neither a run nor a job of that name.
    """
    neither = f"There is no run {job_id!r} in this folder, and"
    with deconvoy.Client(url) as client:
        try:
            job = client.job(job_id)
        except JobNotFound:
            raise RunNotFound(
                f"{neither} no job by that id at {client.url}: `deconvoy jobs` lists those there."
            ) from None
        except ServiceUnreachable:
            raise RunNotFound(
                f"{neither} no service answers at {client.url} to ask for a job: give the folder "
                "of a run, or the address of a service (--url, DECONVOY_URL)."
            ) from None
        job = job.resume()
        out.print(
            f"The service at {escape(client.url)} goes on with {job.id}. "
            f"Next: deconvoy wait {job.id}",
            soft_wrap=True,
        )


# -- parts -----------------------------------------------------------------------------------------


def _waited(job: "ClientJob", timeout: float | None) -> "ClientJob":
    with _left_alone(job.id):
        job = job.wait(timeout, progress=True)
    say(f"{job.id} is done{_took(job)}. Next: deconvoy show {job.url}")
    return job


@contextmanager
def _left_alone(job_id: str) -> Iterator[None]:
    """Ctrl-C ends the watching and not the job."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"{job_id} goes on: `deconvoy cancel {job_id}` stops it.")
        raise typer.Exit(STOPPED) from None


def _lines(job: "ClientJob") -> Iterator[str]:
    yield f"{job.id}: {job.state}{_took(job)}"
    if job.error:
        yield job.error
    if job.progress is not None:
        yield _reached(job)
    yield f"submitted  {minute(job.created)} by {job.submitter}, attempt {job.attempts}"
    yield f"model      {job.spec['base'] if 'base' in job.spec else job.spec['model']['name']}"
    yield f"images     {job.spec['data']['uri']}"
    yield f"run        {job.url}"


def _table(found: list["ClientJob"]) -> Table:
    table = Table("id", "state", "progress", "submitted", "by", box=None)
    for job in found:
        who = (minute(job.created), escape(job.submitter))
        table.add_row(escape(job.id), job.state, _reached(job), *who)
    return table


def _reached(job: "ClientJob") -> str:
    at = job.progress
    if at is None:
        return ""
    line = f"{at.stage} {at.done:,} of {at.total:,}"
    if job.state != "running" or at.rate is None or at.seconds_left is None:
        return line
    return f"{line}, {at.rate:,.1f}/s, about {span(at.seconds_left)} left"


def _took(job: "ClientJob") -> str:
    if job.started is None or (job.ended is None and job.has_ended):
        return ""
    seconds = ((job.ended or datetime.now(UTC)) - job.started).total_seconds()
    return f" after {span(seconds)}" if job.has_ended else f" for {span(seconds)}"


def _plain(job: "ClientJob") -> dict[str, Any]:
    return {**job.model_dump(mode="json"), "run": job.url}
