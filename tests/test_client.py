"""A service as people have it: started in a shell, used by command line, by curl and from code.

The page docs/service.md is typed as it stands.  Whatever happens to the service meanwhile, a job
ends in the bytes that `deconvoy run` writes.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

import deconvoy
from deconvoy import ClientJob, errors
from deconvoy.spec import JobSpec
from service.catalogue import Catalogue
from tests.runs import assert_same_results, small_spec
from tests.typing_in import Type, type_
from tests.upped import Service, alive, below, command_of, eventually

__all__ = ["type_"]

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/service.md").read_text(encoding="utf-8")

LONG = small_spec(data={"uri": "shapes?size=800&seed=1"})
"""Takes long enough to be killed while it is scanned."""


def blocks(language: str) -> list[str]:
    return [
        block
        for found, block in re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)
        if found == language
    ]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service") / "home") as up:
        yield up


@pytest.fixture(autouse=True)
def known(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Command line and client find the service, and its token, as on the machine of a user."""
    monkeypatch.delenv("DECONVOY_TOKEN", raising=False)
    monkeypatch.setenv("DECONVOY_HOME", str(service.home))
    monkeypatch.setenv("DECONVOY_URL", service.url)


@pytest.fixture
def client(known: None) -> Iterator[deconvoy.Client]:
    with deconvoy.Client() as made:
        yield made


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs that `deconvoy run` writes, of the small spec and the long one."""
    folder = tmp_path_factory.mktemp("expected")
    made = {}
    for name, spec in (("small", small_spec()), ("long", LONG)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(spec.to_json()))
        made[name] = folder / name
        subprocess.run(
            [sys.executable, "-m", "service.cli", "run", f"{name}.yaml", "--out", name]
            + ["--executor", "inline"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
    return made


def run_of(service: Service, job: ClientJob) -> Path:
    return service.home / "runs" / job.id


def reaches(job: ClientJob, done: int = 8) -> ClientJob:
    """The job as soon as so many images are scanned."""

    def look() -> ClientJob | None:
        now = job.refresh()
        assert not now.has_ended, now.error
        return now if now.progress is not None and now.progress.done >= done else None

    return eventually(look, 120.0)


def becomes(job: ClientJob, state: str, seconds: float = 60.0) -> ClientJob:
    def look() -> ClientJob | None:
        now = job.refresh()
        return now if now.state == state else None

    return eventually(look, seconds)


# -- the page --------------------------------------------------------------------------------------


def test_the_page_shows_the_small_spec() -> None:
    (shown,) = blocks("yaml")
    assert JobSpec.parse(yaml.safe_load(shown)) == small_spec()


def test_everything_on_the_page_does_what_it_says(
    service: Service,
    client: deconvoy.Client,
    expected: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    (shown,), (up, *scripts) = blocks("yaml"), blocks("sh")
    assert up == "deconvoy up\n"  # which the fixture has typed
    (tmp_path / "small.yaml").write_text(shown)
    before = {job.id for job in client.jobs()}

    typed = "".join(scripts).replace("http://127.0.0.1:8000", service.url)
    for program, text in (
        ("bash", typed),
        *((sys.executable, block) for block in blocks("python")),
    ):
        text = text.replace("http://127.0.0.1:8000", service.url)
        words = [program, *(["-euo", "pipefail"] if program == "bash" else [])]
        ended = subprocess.run(
            [*words, "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=400
        )
        assert ended.returncode == 0, f"{text}\n{ended.stdout}\n{ended.stderr}"
        if program == "bash":
            assert "relu5, unit 40" in ended.stdout
            assert "event: job" in ended.stdout and '"layer":"relu5"' in ended.stdout
            assert "images scanned: " in ended.stderr
            assert "was stopped" in ended.stderr
        else:
            assert "40 images" in ended.stdout or "('unit', 'rank')" in ended.stdout
    assert (tmp_path / "unit.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "relu5.csv").read_text().startswith('"layer"')
    assert (tmp_path / "hits.csv").stat().st_size > 1000

    made = [job for job in client.jobs() if job.id not in before]
    # By Client, curl and command line; a fourth was deleted.
    assert [job.state for job in made] == ["done"] * 3
    named = {run.id: (run.name, run.tags, run.pinned) for run in client.runs()}
    assert named[made[0].id] == ("Small, again", ("zfnet",), True)
    assert named[made[2].id] == ("Small, untrained", ("zfnet",), False)
    assert {job.submitter for job in made} == {"local"}
    for job in made:
        assert_same_results(run_of(service, job), expected["small"])


# -- what is refused -------------------------------------------------------------------------------


def test_the_same_key_is_one_job_however_often_it_is_sent(client: deconvoy.Client) -> None:
    spec = small_spec(name="keyed")
    first = client.submit(spec, key="one")
    with ThreadPoolExecutor(4) as threads:
        again = list(threads.map(lambda _: client.submit(spec, key="one"), range(4)))
    assert {job.id for job in again} == {first.id}
    with pytest.raises(errors.KeyReused, match="'one' stands for job"):
        client.submit(small_spec(name="another"), key="one")
    first.cancel()


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"model": {"name": "deconvoy/zfnet_small"}}, "data"),
        ({"model": {"name": "deconvoy/zfnet_small"}, "data": {"uri": "/etc"}}, "DATA_ROOTS"),
        ({"model": {"name": "x.py:f"}, "data": {"uri": "shapes?size=4"}}, "PYTHON_MODELS"),
    ],
)
def test_a_wrong_spec_is_refused_with_the_sentence_of_the_service(
    client: deconvoy.Client, spec: dict[str, Any], told: str
) -> None:
    with pytest.raises(errors.RequestError, match=told):
        client.submit(spec)


def test_what_is_not_there_is_said_by_name(client: deconvoy.Client) -> None:
    with pytest.raises(errors.JobNotFound, match="no job 'squeeze'"):
        client.job("squeeze")
    with pytest.raises(errors.RunNotFound, match="no run 'squeeze'"):
        client.run("squeeze")
    with pytest.raises(errors.RunNotFound, match="no run 'squeeze'"):
        client.table("squeeze")
    with pytest.raises(errors.RequestError, match="nearest: purity"):
        client.query("squeeze", "purty")
    with pytest.raises(errors.RequestError, match="it takes queued"):
        next(client.jobs("dome"))


def test_a_token_that_is_unknown_or_missing_is_refused(
    service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(errors.NotAllowed, match="none that is known here"):
        next(deconvoy.Client(token="dv_nobody").jobs())
    monkeypatch.setenv("DECONVOY_HOME", str(tmp_path))
    with pytest.raises(errors.NotAllowed, match="comes from DECONVOY_TOKEN"):
        next(deconvoy.Client().jobs())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["status", "squeeze"], "There is no job 'squeeze'"),
        (["wait", "squeeze"], "There is no job 'squeeze'"),
        (["logs", "squeeze"], "There is no job 'squeeze'"),
        (["cancel", "squeeze"], "There is no job 'squeeze'"),
        (["resume", "squeeze"], "no job by that id at"),
        (["resume", "squeeze", "--workers", "2"], "a service has its own"),
        (["submit", "nowhere.yaml"], "nowhere.yaml"),
        (["jobs", "--state", "dome"], "it takes queued"),
        (["jobs", "--url", "ftp://here"], "http(s)://host[:port]"),
    ],
)
def test_commands_refuse_in_one_sentence(type_: Type, arguments: list[str], told: str) -> None:
    code, out, err = type_(*arguments)
    assert code == 2 and out == ""
    assert told in err and err.count("\n") == 1


def test_a_failed_job_ends_the_wait_with_its_reason(
    type_: Type, tmp_path: Path, client: deconvoy.Client
) -> None:
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(small_spec(layers=["relu9"]).to_json()))
    code, out, err = type_("submit", tmp_path / "wrong.yaml", "--wait")
    assert code == 1
    assert "failed: " in err and "nearest: " in err
    job = client.job(out.strip())
    with pytest.raises(errors.JobConflict, match="nothing to cancel"):
        job.cancel()
    with pytest.raises(errors.JobConflict, match="would fail again"):
        job.resume()
    with pytest.raises(errors.RunNotFound, match="has no run"):
        job.run()
    code, out, _ = type_("jobs", "--state", "failed", "--json")
    assert code == 0 and job.id in [told["id"] for told in json.loads(out)]


# -- what can happen -------------------------------------------------------------------------------


def test_a_job_outlives_the_service_and_whoever_waits_for_it(
    service: Service, client: deconvoy.Client, expected: dict[str, Path]
) -> None:
    job = client.submit(LONG)
    with pytest.raises(errors.WaitTimedOut, match="it goes on"):
        job.wait(timeout=0.5)
    with subprocess.Popen(
        [sys.executable, "-m", "service.cli", "wait", job.id], stderr=subprocess.PIPE, text=True
    ) as waiting:
        at = reaches(job)
        assert at.state == "running" and repr(at).startswith(f"ClientJob({job.id!r}, running")
        service.kill()
        service.start()
        assert waiting.stderr is not None
        told = waiting.stderr.read()
    assert waiting.returncode == 0, told
    assert "images scanned" in told and f"{job.id} is done" in told
    assert job.refresh().attempts == 1
    assert_same_results(run_of(service, job), expected["long"])
    logged = job.logs()
    assert logged[-1].endswith("done") and job.logs(after=len(logged) - 1) == logged[-1:]


def test_a_job_that_is_cancelled_and_then_loses_its_ray_ends_as_any_other(
    service: Service, client: deconvoy.Client, expected: dict[str, Path], type_: Type
) -> None:
    job = reaches(client.submit(LONG))
    code, out, _ = type_("cancel", job.id)
    assert code == 0 and "stopping" in out
    with pytest.raises(errors.JobStopped, match=f"deconvoy resume {job.id}"):
        job.wait(timeout=60.0)
    assert deconvoy.open(job.url).status == "stopped"
    done = job.progress
    assert done is not None

    code, out, _ = type_("resume", job.id)
    assert code == 0 and f"goes on with {job.id}" in out
    becomes(job, "running")
    head = service.head()
    os.kill(head, signal.SIGKILL)
    interrupted = becomes(job, "interrupted", 60.0)
    assert service.head() != head
    assert interrupted.error is not None and "esume it" in interrupted.error
    with pytest.raises(errors.JobStopped, match="interrupted"):
        job.wait()

    assert job.resume().wait(timeout=120.0, progress=True).attempts == 3
    assert_same_results(run_of(service, job), expected["long"])


def test_logs_are_followed_until_the_job_has_ended(client: deconvoy.Client, type_: Type) -> None:
    job = client.submit(small_spec())
    code, out, _ = type_("logs", job.id, "--follow")
    assert code == 0
    assert out.splitlines() == job.logs()
    assert out.rstrip().endswith("done")
    code, out, _ = type_("status", job.id)
    assert code == 0 and f"{job.id}: done" in out and job.url in out


def test_ctrl_c_while_ray_starts_leaves_no_ray_behind(tmp_path: Path) -> None:
    starting = Service(tmp_path / "home")
    starting.start()

    def heads() -> set[int]:
        return {pid for pid in below(starting.pid) if "service.head" in command_of(pid)}

    (head,) = eventually(heads, 30.0)
    starting.stop()
    eventually(lambda: not alive(head), 5.0)
    assert not (tmp_path / "home/ray.json").exists()


def test_ctrl_c_ends_all_and_what_is_left_can_be_browsed(
    service: Service, client: deconvoy.Client, type_: Type, tmp_path: Path
) -> None:
    """The last test: it leaves the service in ashes."""
    job = reaches(client.submit(LONG))
    processes = service.processes()
    assert len(processes) > 5
    assert service.stop() == 130
    assert "Traceback" not in service.log()
    eventually(lambda: not any(map(alive, processes)), 10.0)
    catalogue = Catalogue(f"sqlite:///{service.home / 'catalogue.db'}")
    left = catalogue.job(job.id)
    catalogue.close()
    assert left.state == "interrupted" and left.error == "The service was stopped. Resume it."

    with pytest.raises(errors.ServiceUnreachable, match="`deconvoy up`"):
        client.job(job.id)
    code, _, err = type_("jobs")
    assert code == 1 and "No service answers at" in err and err.count("\n") == 1

    with Service(service.home, "--ray", "none") as browsing:
        code, out, _ = type_("status", job.id, "--url", browsing.url)
        assert code == 0 and "interrupted" in out
        assert job.id in [run.id for run in deconvoy.Client(browsing.url).runs()]
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_spec().to_json()))
        code, out, err = type_("submit", tmp_path / "small.yaml", "--url", browsing.url)
        assert code == 2 and out == ""
        assert "only shows runs" in err and err.count("\n") == 1
