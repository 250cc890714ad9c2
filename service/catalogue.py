"""The catalogue: which jobs there are and in which state, and what people say of runs.

It caches: a job's run, with its ledger, is the truth about it.  Several processes may use one.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from deconvoy.errors import FieldInvalid, JobNotFound, KeyReused, RunExists, RunNotFound
from deconvoy.pace import Progress
from service import catalogue_tables as tables
from service.database import Database
from service.words import checked_line, checked_tags, legible, storable

ACTIVE = ("starting", "running", "stopping")
ENDED = ("done", "failed", "stopped", "interrupted")
STATES = ("queued", *ACTIVE, *ENDED)
"""``stopped`` by a person and ``interrupted`` by a death can be resumed, and so can ``failed``."""

JOB_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


@dataclass(frozen=True)
class NewJob:
    """A job to add; ``submitter`` names a token."""

    id: str
    name: str
    spec: dict[str, Any]
    url: str
    submitter: str
    idempotency_key: str | None


@dataclass(frozen=True)
class Job:
    """Times are in UTC; ``started`` and ``ended`` are those of the last attempt."""

    id: str
    name: str
    spec: dict[str, Any]
    url: str
    submitter: str
    state: str
    error: str | None
    progress: Progress | None
    created: datetime
    started: datetime | None
    ended: datetime | None
    attempts: int


@dataclass(frozen=True)
class RunNote:
    """What people say of a run."""

    run_id: str
    name: str | None = None
    tags: tuple[str, ...] = ()
    pinned: bool = False


class Catalogue:
    """Making one connects to nothing; ``upgrade`` comes first."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)

    def upgrade(self) -> None:
        """Make the tables, or bring them up to this version."""
        self.database.upgrade()

    def close(self) -> None:
        self.database.close()

    def add_job(self, new: NewJob) -> Job:
        """Queue a job.  The same key with the same spec gives the job that is there already.

        Raises:
            KeyReused: the submitter's key stands for another spec.
            RunExists: the id is taken.
        """
        if new.idempotency_key is not None:
            checked_line("Idempotency-Key", new.idempotency_key)
        spec = json.loads(json.dumps(new.spec))
        row = {**asdict(new), "spec": spec, "name": checked_line("name", new.name)}
        row.update(state="queued", created=datetime.now(UTC), attempts=0)
        try:
            with self.database.writing() as connection:
                earlier = _by_key(connection, new)
                if earlier is None:
                    added = connection.execute(insert(tables.jobs).values(row).returning(*_JOB))
                    return _job(added.mappings().one())
        except IntegrityError:
            # Another process was quicker with this key, or the id is taken.
            with self.database.reading() as connection:
                earlier = _by_key(connection, new)
            if earlier is None:
                raise RunExists(f"There is a job {new.id!r} already: choose another id.") from None
        if earlier["spec"] != spec:
            raise KeyReused(
                f"The Idempotency-Key {new.idempotency_key!r} stands for job {earlier['id']!r}, "
                f"whose spec is another one: send a new key with a new spec."
            )
        return _job(earlier)

    def job(self, job_id: str) -> Job:
        if JOB_ID.fullmatch(job_id):
            with self.database.reading() as connection:
                one = _select_job().where(tables.jobs.c.id == job_id)
                found = connection.execute(one).mappings().first()
            if found is not None:
                return _job(found)
        raise _not_found(job_id)

    def jobs(
        self, *, state: str | None = None, limit: int = 50, before: str | None = None
    ) -> list[Job]:
        """Newest first; ``before``: only those older than that job, which must exist."""
        if state is not None and state not in STATES:
            raise FieldInvalid(
                f"The state {state!r} is none: it takes {', '.join(STATES)}.", "state"
            )
        newest = _select_job().order_by(tables.jobs.c.number.desc()).limit(limit)
        if state is not None:
            newest = newest.where(tables.jobs.c.state == state)
        with self.database.reading() as connection:
            if before is not None:
                number = _number(connection, before)
                newest = newest.where(tables.jobs.c.number < number)
            return [_job(row) for row in connection.execute(newest).mappings()]

    def claim(self, at_most: int) -> Job | None:
        """The oldest queued job, now ``starting``; none where ``at_most`` are active already."""
        jobs = tables.jobs
        active = select(func.count()).where(jobs.c.state.in_(ACTIVE))
        # The lock holds off other claims, not whoever cancels a queued job: `for update` does.
        oldest = (
            select(jobs.c.number)
            .where(jobs.c.state == "queued")
            .order_by(jobs.c.number)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        claimed = (
            update(jobs)
            .where(jobs.c.number == oldest, jobs.c.state == "queued")
            .values(
                state="starting",
                started=datetime.now(UTC),
                ended=None,
                error=None,
                attempts=jobs.c.attempts + 1,
            )
            .returning(*_JOB)
        )
        with self.database.writing(alone_for="claim") as connection:
            if connection.execute(active).scalar_one() >= at_most:
                return None
            found = connection.execute(claimed).mappings().first()
        return None if found is None else _job(found)

    def move(
        self, job_id: str, to: str, *, among: Collection[str], error: str | None = None
    ) -> bool:
        """Whether the job was in a state of ``among``, and so is now in ``to``.

        Entering an active state sets ``started`` where it is not set, entering an end ``ended``,
        and going back to the queue forgets both.
        """
        assert to in STATES and set(among) <= set(STATES), (to, among)
        jobs, now = tables.jobs, datetime.now(UTC)
        values: dict[str, Any] = {"state": to, "error": error and legible(error)}
        if to == "queued":
            values.update(started=None, ended=None)
        elif to in ACTIVE:
            values.update(started=func.coalesce(jobs.c.started, now), ended=None)
        else:
            values.update(ended=now)
        moved = (
            update(jobs)
            .where(jobs.c.id == job_id, jobs.c.state.in_(tuple(among)))
            .values(values)
            .returning(jobs.c.number)
        )
        with self.database.writing() as connection:
            _number(connection, job_id)
            return connection.execute(moved).first() is not None

    def put_progress(self, job_id: str, progress: Progress) -> None:
        jobs = tables.jobs
        with self.database.writing() as connection:
            job = jobs.c.number == _number(connection, job_id)
            connection.execute(update(jobs).where(job).values(progress=asdict(progress)))

    def in_states(self, *states: str) -> list[Job]:
        """Oldest first."""
        jobs = tables.jobs
        found = _select_job().where(jobs.c.state.in_(states)).order_by(jobs.c.number)
        with self.database.reading() as connection:
            return [_job(row) for row in connection.execute(found).mappings()]

    def places(self, *states: str) -> dict[str, str]:
        """Id → where its run is or will be; of thousands, without their specs.  Oldest first."""
        jobs = tables.jobs.c
        found = select(jobs.id, jobs.url).where(jobs.state.in_(states)).order_by(jobs.number)
        with self.database.reading() as connection:
            return {job_id: url for job_id, url in connection.execute(found)}

    def counts(self) -> dict[str, int]:
        """Jobs by state, every state among them."""
        state = tables.jobs.c.state
        with self.database.reading() as connection:
            rows = connection.execute(select(state, func.count()).group_by(state)).all()
        return {**dict.fromkeys(STATES, 0), **{name: count for name, count in rows}}

    def note(self, run_id: str) -> RunNote:
        if not storable(run_id):
            return RunNote(run_id)
        with self.database.reading() as connection:
            said = select(tables.runs).where(tables.runs.c.run_id == run_id)
            row = connection.execute(said).mappings().first()
        return RunNote(run_id) if row is None else _note(row)

    def notes(self) -> dict[str, RunNote]:
        """By run, of all of which something was said."""
        with self.database.reading() as connection:
            rows = connection.execute(select(tables.runs)).mappings().all()
        return {row["run_id"]: _note(row) for row in rows}

    def set_note(
        self,
        run_id: str,
        *,
        name: str | None = None,
        tags: Sequence[str] | None = None,
        add_tags: Sequence[str] = (),
        remove_tags: Sequence[str] = (),
        pinned: bool | None = None,
    ) -> RunNote:
        """Say something of a run.  None leaves what was said; an empty name takes it back.

        Args:
            tags: all that it has from now on.
            add_tags: to those it has; two who add at once both do.
            remove_tags: from those it has; one that it has not is no error.
        """
        if not storable(run_id):
            raise RunNotFound(f"There is no run {run_id!r}.")
        given: dict[str, Any] = {}
        if name is not None:
            given["name"] = checked_line("name", name) or None
        if pinned is not None:
            given["pinned"] = pinned
        with self.database.writing(alone_for="notes") as connection:
            if tags is not None or add_tags or remove_tags:
                had = _tags_of(connection, run_id) if tags is None else tags
                given["tags"] = _changed_tags(had, add_tags, remove_tags)
            return self._put_note(connection, run_id, given)

    def _put_note(self, connection: Connection, run_id: str, given: dict[str, Any]) -> RunNote:
        row: dict[str, Any] = {"run_id": run_id, "name": None, "tags": [], "pinned": False}
        dialect = sqlite if self.database.is_sqlite else postgresql
        noted = dialect.insert(tables.runs).values(row | given)
        # The key is set to itself, since an update must set something.
        noted = noted.on_conflict_do_update(index_elements=["run_id"], set_={**given, **_SAME_RUN})
        said = connection.execute(noted.returning(*tables.runs.c))
        return _note(said.mappings().one())

    def forget(self, run_id: str) -> None:
        """Remove all that is known of a run: its note and its job."""
        if not storable(run_id):
            return
        with self.database.writing() as connection:
            connection.execute(delete(tables.runs).where(tables.runs.c.run_id == run_id))
            connection.execute(delete(tables.jobs).where(tables.jobs.c.id == run_id))


_JOB = tuple(column for column in tables.jobs.c if column.name not in ("number", "idempotency_key"))
_SAME_RUN = {"run_id": tables.runs.c.run_id}


def _select_job() -> Any:
    return select(*_JOB)


def _job(row: Mapping[Any, Any]) -> Job:
    fields = dict(row)
    progress = fields.pop("progress")
    return Job(**fields, progress=None if progress is None else Progress(**progress))


def _note(row: Mapping[Any, Any]) -> RunNote:
    return RunNote(**{**row, "tags": tuple(row["tags"])})


def _tags_of(connection: Connection, run_id: str) -> list[str]:
    said = select(tables.runs.c.tags).where(tables.runs.c.run_id == run_id)
    return list(connection.execute(said).scalar_one_or_none() or ())


def _changed_tags(had: Sequence[str], add: Sequence[str], remove: Sequence[str]) -> list[str]:
    gone = {tag.strip() for tag in remove}
    return checked_tags([tag for tag in (*had, *add) if tag.strip() not in gone])


def _by_key(connection: Connection, new: NewJob) -> Mapping[Any, Any] | None:
    if new.idempotency_key is None:
        return None
    jobs = tables.jobs
    found = _select_job().where(
        jobs.c.submitter == new.submitter, jobs.c.idempotency_key == new.idempotency_key
    )
    return connection.execute(found).mappings().first()


def _number(connection: Connection, job_id: str) -> int:
    """The place of a job in the order of jobs."""
    if JOB_ID.fullmatch(job_id):
        found = select(tables.jobs.c.number).where(tables.jobs.c.id == job_id)
        number = connection.execute(found).scalar_one_or_none()
        if number is not None:
            return int(number)
    raise _not_found(job_id)


def _not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"There is no job {job_id!r}: `deconvoy jobs` lists them.")
