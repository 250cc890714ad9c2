"""The catalogue, on SQLite and on a real PostgreSQL: jobs, the queue, what people say of runs."""

import dataclasses
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from deconvoy.errors import (
    CatalogueNewer,
    CatalogueUnavailable,
    JobNotFound,
    KeyReused,
    RequestError,
    RunExists,
    RunNotFound,
)
from service import catalogue_tables, words
from service.catalogue import STATES, Catalogue, Job, NewJob, Progress, RunNote
from tests.postgres import PASSWORD

ROOT = Path(__file__).resolve().parents[1]
SPEC = {"version": 1, "model": {"name": "zfnet"}, "data": {"limit": 3, "where": None}}


def new_job(job_id: str, **changes: Any) -> NewJob:
    job = NewJob(
        id=job_id,
        name="Ångström 🦊",
        spec=SPEC,
        url=f"/runs/{job_id}",
        submitter="ana",
        idempotency_key=None,
    )
    return dataclasses.replace(job, **changes)


def add(catalogue: Catalogue, *job_ids: str) -> None:
    for job_id in job_ids:
        catalogue.add_job(new_job(job_id))


def ids(jobs: Sequence[Job]) -> list[str]:
    return [job.id for job in jobs]


def test_a_new_job_is_queued_and_read_back_as_it_was_given(catalogue: Catalogue) -> None:
    before = datetime.now(UTC)
    added = catalogue.add_job(new_job("first"))
    assert added == catalogue.job("first")
    assert before <= added.created <= datetime.now(UTC)
    assert added.created.utcoffset() == timedelta(0)
    assert dataclasses.replace(added, created=before) == Job(
        id="first",
        name="Ångström 🦊",
        spec=SPEC,
        url="/runs/first",
        submitter="ana",
        state="queued",
        error=None,
        progress=None,
        created=before,
        started=None,
        ended=None,
        attempts=0,
    )


@pytest.mark.parametrize("job_id", ["none", "", "a\0b", "../a", "\ud800", "a" * 100])
def test_a_job_that_is_not_there_is_not_found(catalogue: Catalogue, job_id: str) -> None:
    add(catalogue, "a")
    for ask in (
        lambda: catalogue.job(job_id),
        lambda: catalogue.move(job_id, "done", among=STATES),
        lambda: catalogue.jobs(before=job_id),
        lambda: catalogue.put_progress(job_id, Progress("scan", 1, 2, None, None)),
    ):
        with pytest.raises(JobNotFound, match="There is no job"):
            ask()


def test_an_id_is_taken_once(catalogue: Catalogue) -> None:
    add(catalogue, "a")
    with pytest.raises(RunExists, match="job 'a' already"):
        add(catalogue, "a")


def test_a_key_sent_twice_gives_the_same_job(catalogue: Catalogue) -> None:
    first = catalogue.add_job(new_job("a", idempotency_key="k"))
    assert catalogue.add_job(new_job("b", idempotency_key="k")) == first
    assert ids(catalogue.jobs()) == ["a"]
    # Somebody else's key is another one, and no key is never the same.
    catalogue.add_job(new_job("c", idempotency_key="k", submitter="bo"))
    add(catalogue, "d", "e")
    assert len(catalogue.jobs()) == 4


def test_a_key_for_another_spec_is_refused(catalogue: Catalogue) -> None:
    catalogue.add_job(new_job("a", idempotency_key="k"))
    with pytest.raises(KeyReused, match="'k' stands for job 'a'"):
        catalogue.add_job(new_job("b", idempotency_key="k", spec={**SPEC, "version": 2}))
    assert ids(catalogue.jobs()) == ["a"]


def test_a_spec_with_tuples_is_the_same_as_with_lists(catalogue: Catalogue) -> None:
    catalogue.add_job(new_job("a", idempotency_key="k", spec={"layers": ("x", "y")}))
    again = catalogue.add_job(new_job("b", idempotency_key="k", spec={"layers": ["x", "y"]}))
    assert again.id == "a"


def test_words_that_no_database_takes_are_refused(catalogue: Catalogue) -> None:
    with pytest.raises(RequestError, match="'name'"):
        catalogue.add_job(new_job("a", name="a\0b"))
    with pytest.raises(RequestError, match="'Idempotency-Key'"):
        catalogue.add_job(new_job("a", idempotency_key="k" * 5000))
    assert catalogue.jobs() == []


def test_jobs_are_listed_newest_first_in_pages(catalogue: Catalogue) -> None:
    add(catalogue, "a", "b", "c", "d", "e")
    assert ids(catalogue.jobs()) == ["e", "d", "c", "b", "a"]
    assert ids(catalogue.jobs(limit=2)) == ["e", "d"]
    assert ids(catalogue.jobs(limit=2, before="d")) == ["c", "b"]
    assert ids(catalogue.jobs(limit=2, before="b")) == ["a"]
    assert catalogue.jobs(before="a") == []


def test_jobs_are_found_by_state(catalogue: Catalogue) -> None:
    add(catalogue, "a", "b", "c")
    catalogue.move("a", "running", among=("queued",))
    catalogue.move("b", "done", among=("queued",))
    assert ids(catalogue.jobs(state="queued")) == ["c"]
    assert ids(catalogue.in_states("running", "done")) == ["a", "b"]
    assert catalogue.in_states() == []
    assert catalogue.places("running", "done") == {
        name: catalogue.job(name).url for name in ("a", "b")
    }
    expected = dict.fromkeys(STATES, 0) | {"running": 1, "done": 1, "queued": 1}
    assert catalogue.counts() == expected
    with pytest.raises(RequestError, match="'gone' is none: it takes queued, "):
        catalogue.jobs(state="gone")


def test_the_oldest_queued_job_is_claimed_up_to_the_limit(catalogue: Catalogue) -> None:
    add(catalogue, "a", "b", "c")
    first = catalogue.claim(2)
    assert first is not None and first == catalogue.job("a")
    assert (first.state, first.attempts) == ("starting", 1)
    assert first.started is not None and first.started >= first.created
    catalogue.move("a", "running", among=("starting",))
    assert ids([job for job in (catalogue.claim(2), catalogue.claim(2)) if job]) == ["b"]
    catalogue.move("a", "done", among=("running",))
    third = catalogue.claim(2)
    assert third is not None and third.id == "c"
    assert catalogue.claim(64) is None


def test_a_state_is_left_only_from_those_named(catalogue: Catalogue) -> None:
    add(catalogue, "a")
    assert not catalogue.move("a", "stopped", among=("running", "starting"))
    assert catalogue.job("a").state == "queued"
    assert catalogue.move("a", "stopped", among=("queued", "running"))
    assert not catalogue.move("a", "stopped", among=("queued", "running"))
    assert catalogue.job("a").state == "stopped"


def test_times_and_errors_follow_the_state(catalogue: Catalogue) -> None:
    add(catalogue, "a")
    claimed = catalogue.claim(1)
    assert claimed is not None
    catalogue.move("a", "running", among=("starting",))
    assert catalogue.job("a").started == claimed.started
    catalogue.move("a", "failed", among=("running",), error="Layer \0 broke.\n\ud800")
    failed = catalogue.job("a")
    assert failed.ended is not None and failed.ended >= (failed.started or failed.ended)
    assert failed.error == "Layer \N{REPLACEMENT CHARACTER} broke.\n\N{REPLACEMENT CHARACTER}"
    catalogue.move("a", "queued", among=("failed",))
    again = catalogue.job("a")
    assert (again.started, again.ended, again.error, again.attempts) == (None, None, None, 1)
    second = catalogue.claim(1)
    assert second is not None and second.attempts == 2


def test_progress_is_kept_with_the_job(catalogue: Catalogue) -> None:
    add(catalogue, "a", "b")
    progress = Progress("scan", 17, 400, 88.5, 4.3)
    catalogue.put_progress("a", progress)
    assert (catalogue.job("a").progress, catalogue.job("b").progress) == (progress, None)


def test_what_people_say_of_a_run_is_kept(catalogue: Catalogue) -> None:
    assert catalogue.note("a") == RunNote("a", None, (), False)
    assert catalogue.notes() == {}
    assert catalogue.set_note("a", name=" Füchse ", tags=["x", "y", "x"]) == RunNote(
        "a", "Füchse", ("x", "y"), False
    )
    assert catalogue.set_note("a", pinned=True) == RunNote("a", "Füchse", ("x", "y"), True)
    assert catalogue.set_note("a", name="", tags=[]) == RunNote("a", None, (), True)
    assert catalogue.set_note("a", add_tags=["z", " y"], remove_tags=["x"]).tags == ("z", "y")
    assert catalogue.set_note("a", tags=["x", "y"], remove_tags=["y "]).tags == ("x",)
    assert catalogue.set_note("a", add_tags=["x"], remove_tags=["gone"]).tags == ("x",)
    catalogue.set_note("a", tags=[])
    assert catalogue.set_note("a") == catalogue.note("a") == RunNote("a", None, (), True)
    catalogue.set_note("b", pinned=False)
    assert set(catalogue.notes()) == {"a", "b"}


def test_tags_that_are_added_at_once_are_all_there(catalogue: Catalogue) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: catalogue.set_note("a", add_tags=[f"t{n}"]), range(16)))
    assert set(catalogue.note("a").tags) == {f"t{n}" for n in range(16)}


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"add_tags": [f"t{n}" for n in range(words.MOST_TAGS + 1)]}, "33 tags"),
        ({"name": "a\nb"}, "'name'"),
        ({"name": "\x1b[2J"}, "'name'"),
        ({"name": "n" * (words.LINE_LENGTH + 1)}, "'name'"),
        ({"tags": ["ok", " "]}, "'tags'"),
        ({"tags": [f"t{n}" for n in range(words.MOST_TAGS + 1)]}, "33 tags"),
    ],
    ids=["many-added", "lines", "terminal", "long", "empty-tag", "many-tags"],
)
def test_what_is_no_name_or_tag_is_refused(
    catalogue: Catalogue, said: dict[str, Any], field: str
) -> None:
    with pytest.raises(RequestError, match=field):
        catalogue.set_note("a", **said)
    assert catalogue.notes() == {}


def test_a_run_whose_id_cannot_be_stored_has_no_note(catalogue: Catalogue) -> None:
    assert catalogue.note("a\0") == RunNote("a\0")
    catalogue.forget("a\0")
    with pytest.raises(RunNotFound):
        catalogue.set_note("a\0", pinned=True)


def test_a_deleted_run_is_forgotten_with_its_job(catalogue: Catalogue) -> None:
    add(catalogue, "a", "b")
    catalogue.set_note("a", pinned=True)
    catalogue.forget("a")
    assert (ids(catalogue.jobs()), catalogue.notes()) == (["b"], {})
    catalogue.forget("a")


def test_migrations_make_the_tables_of_the_code(catalogue: Catalogue) -> None:
    with catalogue.database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, catalogue_tables.metadata) == []
    catalogue.upgrade()  # once more is no change


def test_a_catalogue_of_a_later_version_is_left_alone(catalogue: Catalogue) -> None:
    add(catalogue, "a")
    with catalogue.database.writing() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9000'"))
    with pytest.raises(CatalogueNewer, match="revision 9000.*knows 0001.*install"):
        catalogue.upgrade()
    assert ids(catalogue.jobs()) == ["a"]


RUN_MANY = """
import sys
from service.catalogue import Catalogue
catalogue = Catalogue(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
"""
UPGRADE = RUN_MANY + "catalogue.upgrade(); print(sum(catalogue.counts().values()))"
CLAIM = (
    RUN_MANY
    + """
import time
while True:
    job = catalogue.claim(int(sys.argv[2]))
    if job is None:
        if not catalogue.in_states("queued"):
            break
        time.sleep(0.01)
        continue
    print(job.id, len(catalogue.in_states("starting", "running")), flush=True)
    catalogue.move(job.id, "running", among=("starting",))
    catalogue.move(job.id, "done", among=("running",))
"""
)
DIE = (
    RUN_MANY
    + """
import time
for number in range(2):
    print(catalogue.claim(3).id, flush=True)
with catalogue.database.writing(alone_for="claim"):
    print("in a claim", flush=True)
    time.sleep(600)
"""
)
ADD = (
    RUN_MANY
    + """
from service.catalogue import NewJob
for number in range(20):
    own = f"{sys.argv[2]}-{number}"
    job = catalogue.add_job(NewJob(own, "", {}, "", "ana", f"key {number}"))
    print(job.id)
"""
)


def start(code: str, *arguments: Sequence[str]) -> "list[subprocess.Popen[str]]":
    """Processes with these arguments, which go on at once when all of them are ready."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, *given], cwd=ROOT, text=True, **pipes)
        for given in arguments
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return processes


def outputs(processes: "Sequence[subprocess.Popen[str]]") -> list[list[str]]:
    lines = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return lines


def test_several_processes_may_upgrade_at_once(catalogue_url: str) -> None:
    assert outputs(start(UPGRADE, *[[catalogue_url]] * 4)) == [["0"]] * 4


def test_a_key_sent_to_several_processes_gives_one_job(
    catalogue: Catalogue, catalogue_url: str
) -> None:
    told = outputs(start(ADD, *([catalogue_url, name] for name in ("a", "b", "c"))))
    assert told[0] == told[1] == told[2]
    assert len(catalogue.jobs()) == 20


def test_no_job_is_claimed_twice_and_the_limit_holds(
    catalogue: Catalogue, catalogue_url: str
) -> None:
    """Another process was killed in the middle of a claim: what it held stays held, and no lock."""
    names = [f"job-{number}" for number in range(50)]
    add(catalogue, *names)
    (victim,) = start(DIE, [catalogue_url])
    assert victim.stdout is not None and victim.stdin is not None
    told = [victim.stdout.readline().strip() for _ in range(3)]
    assert told == ["job-0", "job-1", "in a claim"]
    victim.send_signal(signal.SIGKILL)
    assert victim.wait(30) == -signal.SIGKILL
    victim.stdout.close()
    victim.stdin.close()
    assert catalogue.move("job-0", "done", among=("starting",))
    told = sum(outputs(start(CLAIM, *[[catalogue_url, "3"]] * 4)), [])
    lines = [line.split() for line in told]
    assert sorted(job_id for job_id, _ in lines) == sorted(names[2:])
    assert max(int(active) for _, active in lines) <= 3
    assert ids(catalogue.in_states("starting", "running")) == ["job-1"]
    assert catalogue.counts()["done"] == 49


def test_migrations_run_from_an_installed_wheel(tmp_path: Path) -> None:
    """With no file of ours in the folder it runs in."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    done = subprocess.run(
        [sys.executable, "-c", UPGRADE + "; print(sys.modules['service'].__file__)"]
        + [f"sqlite:///{tmp_path / 'catalogue.db'}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        input="go",
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[1:] == ["0", str(tmp_path / "installed/service/__init__.py")]


def test_a_connection_that_broke_is_made_anew(postgresql: str) -> None:
    catalogue = Catalogue(postgresql)
    end_others = sa.text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    other = Catalogue(postgresql)
    for _ in range(2):
        with other.database.reading() as connection:
            assert connection.execute(sa.text("SELECT 1")).scalar() == 1
        with catalogue.database.reading() as connection:
            assert len(connection.execute(end_others).all()) == 1
    for made in (catalogue, other):
        made.close()


def test_a_catalogue_that_cannot_be_reached_is_told_without_its_password() -> None:
    secret = "very-secret"
    url = f"postgresql+psycopg://ana:{secret}@127.0.0.1:1/x?password={secret}"
    with pytest.raises(CatalogueUnavailable) as caught:
        Catalogue(url).upgrade()
    assert "postgresql+psycopg://ana:***@127.0.0.1:1/x cannot be used" in str(caught.value)
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"), [(PASSWORD, "password authentication failed"), ("/postgres", "exist")]
)
def test_a_server_that_does_not_let_us_in_is_told_without_the_password(
    postgresql: str, change: str, reason: str
) -> None:
    url = f"{change}-not".join(postgresql.rsplit(change, 1))
    with pytest.raises(CatalogueUnavailable, match=reason) as caught:
        Catalogue(url).upgrade()
    assert PASSWORD not in str(caught.value)


def test_a_file_that_is_no_catalogue_is_told(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("This is a text, and a longer one than the header of SQLite." * 20)
    with pytest.raises(CatalogueUnavailable, match="not a database"):
        Catalogue(f"sqlite:///{file}").upgrade()
    with pytest.raises(CatalogueUnavailable, match="unable to open"):
        Catalogue(f"sqlite:///{tmp_path}").upgrade()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://ana:secret@host/x",
        "sqlite://",
        "sqlite:///:memory:",
        "secret",
        "",
        "x://a:b:secret",
    ],
)
def test_a_url_of_another_kind_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(RequestError, match="postgresql\\+psycopg://") as caught:
        Catalogue(url)
    assert "secret" not in str(caught.value)


def test_sqlite_keeps_a_log_and_checks_what_rows_refer_to(tmp_path: Path) -> None:
    catalogue = Catalogue(f"sqlite:///{tmp_path / 'deep' / 'er' / 'catalogue.db'}")
    catalogue.upgrade()
    assert (tmp_path / "deep" / "er").stat().st_mode & 0o777 == 0o700
    with catalogue.database.reading() as connection:
        pragmas = ("journal_mode", "foreign_keys", "busy_timeout")
        found = [connection.execute(sa.text(f"PRAGMA {name}")).scalar() for name in pragmas]
    assert found == ["wal", 1, 30_000]
    stray = {"digest": "x", "token_id": 7, "expires": datetime.now(UTC)}
    with pytest.raises(sa.exc.IntegrityError), catalogue.database.writing() as connection:
        connection.execute(sa.insert(catalogue_tables.sessions).values(stray))
    catalogue.close()


def test_values_never_show_in_messages(catalogue: Catalogue) -> None:
    row = {"name": "a", "digest": "do-not-show", "scope": "read", "created": datetime.now(UTC)}
    for _ in range(2):
        try:
            with catalogue.database.writing() as connection:
                connection.execute(sa.insert(catalogue_tables.tokens).values(row))
        except sa.exc.IntegrityError as error:
            statement = str(error).partition("[SQL")[2]
    assert "do-not-show" not in statement and "hidden" in statement
