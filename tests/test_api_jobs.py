"""Jobs and plans over HTTP: what each route answers, and what wrong requests get."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deconvoy.errors import JobFailed
from deconvoy.spec import JobSpec
from service import planner
from service.app import create_app
from service.catalogue import Progress
from service.settings import Settings
from tests.runs import small_spec
from tests.serving import problem_of, served, settings_of

SPEC: dict[str, Any] = small_spec(name="a small one").to_json()


class Caller:
    """Somebody who asks a service whose dispatcher is not there: jobs stay where they are put."""

    def __init__(self, home: Path, **fields: Any) -> None:
        made = {"home": home, "runs": str(home / "runs"), "ray": "local", **fields}
        self.app = create_app(Settings(**made))
        self.catalogue = self.app.state.catalogue

    def submit(self, spec: dict[str, Any] = SPEC, **headers: str) -> httpx.Response:
        return self.http.post("/v1/jobs", json=spec, headers=headers)


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[Caller]:
    made = Caller(tmp_path, tokens=False)
    with served(made.app) as address, httpx.Client(base_url=address, timeout=60) as made.http:
        yield made


def test_a_submitted_job_is_queued_and_found_again(caller: Caller) -> None:
    answer = caller.submit()
    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["id"].startswith("a-small-one-") and job["state"] == "queued"
    assert job["run"] == f"/v1/runs/{job['id']}"
    assert caller.http.get(answer.headers["location"]).json() == job
    assert caller.http.get("/v1/jobs").json() == {"jobs": [job], "next": None}


def test_the_same_key_gives_the_same_job_and_another_spec_is_refused(caller: Caller) -> None:
    first = caller.submit(**{"Idempotency-Key": "mine"})
    again = caller.submit(**{"Idempotency-Key": "mine"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    other = caller.submit({**SPEC, "seed": 5}, **{"Idempotency-Key": "mine"})
    assert "mine" in problem_of(other, 409, "Idempotency-Key")


def test_pages_go_from_the_newest_to_the_oldest(caller: Caller) -> None:
    ids = [caller.submit().json()["id"] for _ in range(5)]
    found, address = [], "/v1/jobs?limit=2"
    while address:
        page = caller.http.get(address).json()
        assert len(page["jobs"]) <= 2
        found += [job["id"] for job in page["jobs"]]
        address = page["next"]
    assert found == ids[::-1]


def test_jobs_of_one_state(caller: Caller) -> None:
    first, second = (caller.submit().json()["id"] for _ in range(2))
    caller.catalogue.claim(1)
    assert [j["id"] for j in caller.http.get("/v1/jobs?state=starting").json()["jobs"]] == [first]
    assert [j["id"] for j in caller.http.get("/v1/jobs?state=queued").json()["jobs"]] == [second]
    assert "sleeping" in problem_of(caller.http.get("/v1/jobs?state=sleeping"), 422, "state")


def test_cancelling_and_resuming(caller: Caller) -> None:
    place = f"/v1/jobs/{caller.submit().json()['id']}"
    stopped = caller.http.delete(place)
    assert (stopped.status_code, stopped.json()["state"]) == (202, "stopped")
    assert caller.http.delete(place).json()["state"] == "stopped"  # a cancelled cancel
    resumed = caller.http.post(f"{place}/resume")
    assert (resumed.status_code, resumed.json()["state"]) == (202, "queued")
    assert "nothing to resume" in problem_of(caller.http.post(f"{place}/resume"), 409, "job_id")
    caller.catalogue.claim(1)
    assert caller.http.delete(place).json()["state"] == "stopping"
    caller.catalogue.move(place.rpartition("/")[2], "done", among=("stopping",))
    assert "nothing to cancel" in problem_of(caller.http.delete(place), 409, "job_id")


def test_events_tell_every_change_and_end_with_the_job(caller: Caller) -> None:
    job_id = caller.submit().json()["id"]

    def work() -> None:
        caller.catalogue.claim(1)
        time.sleep(0.8)
        caller.catalogue.move(job_id, "running", among=("starting",))
        caller.catalogue.put_progress(job_id, Progress("scan", 3, 40, 2.5, 14.8))
        time.sleep(0.8)
        caller.catalogue.move(job_id, "done", among=("running",))

    threading.Thread(target=work).start()
    with caller.http.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = list(stream.iter_lines())
    assert {line for line in lines if line.startswith("event:")} == {"event: job"}
    told = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert [one["state"] for one in told][-1] == "done"
    assert len(told) == len({json.dumps(one) for one in told}) > 1
    assert {"stage": "scan", "done": 3, "total": 40, "rate": 2.5, "seconds_left": 14.8} in [
        one["progress"] for one in told
    ]


def test_a_log_is_told_from_any_line_on(caller: Caller, tmp_path: Path) -> None:
    job_id = caller.submit().json()["id"]
    assert caller.http.get(f"/v1/jobs/{job_id}/logs").text == ""
    place = tmp_path / "runs" / job_id / "logs" / "driver.txt"
    place.parent.mkdir(parents=True)
    place.write_text("one\ntwo\nthree\n")
    assert caller.http.get(f"/v1/jobs/{job_id}/logs").text == "one\ntwo\nthree\n"
    assert caller.http.get(f"/v1/jobs/{job_id}/logs?after=2").text == "three\n"


@pytest.mark.parametrize(
    ("spec", "field", "told"),
    [
        ({}, "model", "is missing"),
        ({**SPEC, "modle": {}}, "modle", "did you mean"),
        ({**SPEC, "data": {"uri": "/etc"}}, "data.uri", "DECONVOY_DATA_ROOTS"),
        ({**SPEC, "model": {"name": "python/os:system"}}, "model.name", "DECONVOY_PYTHON_MODELS"),
        ({**SPEC, "compute": {"workers": -1}}, "compute.workers", "whole number"),
    ],
)
@pytest.mark.parametrize("route", ["/v1/jobs", "/v1/plans"])
def test_wrong_specs_are_refused_in_a_sentence(
    caller: Caller, route: str, spec: dict[str, Any], field: str, told: str
) -> None:
    assert told in problem_of(caller.http.post(route, json=spec), 422, field)
    assert caller.http.get("/v1/jobs").json()["jobs"] == []


def test_a_body_that_is_no_json_is_refused(caller: Caller) -> None:
    answer = caller.http.post(
        "/v1/jobs", content=b"{not json", headers={"Content-Type": "application/json"}
    )
    problem_of(answer, 400, "body")
    problem_of(caller.http.post("/v1/jobs", json=["a", "list"]), 422, "body")


@pytest.mark.parametrize("job_id", ["nowhere", "..", "%2e%2e%2fetc", "a" * 200, "A", "x\0y"])
@pytest.mark.parametrize("route", ["", "/logs", "/events"])
def test_jobs_that_are_not_there(caller: Caller, job_id: str, route: str) -> None:
    answer = caller.http.get(f"/v1/jobs/{job_id.replace(chr(0), '%00')}{route}")
    problem_of(answer, 404, None if job_id in ("..", "%2e%2e%2fetc") else "job_id")


def test_a_plan_says_what_the_job_would_do_and_loads_no_torch_here(caller: Caller) -> None:
    answer = caller.http.post("/v1/plans", json=SPEC)
    assert answer.status_code == 200, answer.text
    planned = answer.json()
    assert planned["images"] == 40 and planned["batch_size"] == 4
    assert "nowhere" in problem_of(
        caller.http.post("/v1/plans", json={**SPEC, "layers": ["nowhere"]}), 422, "layers"
    )


SLEEPING = [sys.executable, "-c", "import time; print('on'); time.sleep(60)"]


def test_a_plan_is_given_up_when_whoever_asked_has_left(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, begun, ended = planner._run, threading.Event(), threading.Event()

    def sleeping(_: Any, *more: Any) -> Any:
        begun.set()
        try:
            return run(SLEEPING, *more)
        finally:
            ended.set()

    monkeypatch.setattr(planner, "_run", sleeping)
    with pytest.raises(httpx.ReadTimeout):
        caller.http.post("/v1/plans", json=SPEC, timeout=1)
    assert begun.is_set() and ended.wait(10)


def test_a_planner_is_ended_and_how_it_ended_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, spec = settings_of(tmp_path), JobSpec.parse(SPEC)
    begin = time.monotonic()
    with pytest.raises(JobFailed, match="Nobody waits"):
        planner._run(SLEEPING, "", 60.0, lambda: False)
    assert time.monotonic() - begin < 10
    shot = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    run = planner._run
    monkeypatch.setattr(planner, "_run", lambda _, *more: run(shot, *more))
    with pytest.raises(JobFailed, match=r"signal SIGKILL.*DECONVOY_PLAN_BYTES"):
        planner.plan(spec, settings)


def test_a_plan_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    made = Caller(tmp_path, tokens=False, plan_seconds=0.3)
    with served(made.app) as address, httpx.Client(base_url=address, timeout=60) as made.http:
        told = problem_of(made.http.post("/v1/plans", json=SPEC), 503)
    assert "DECONVOY_PLAN_SECONDS" in told


def test_a_service_without_ray_takes_no_jobs_but_shows_them(tmp_path: Path) -> None:
    made = Caller(tmp_path, tokens=False, ray="none")
    with served(made.app) as address, httpx.Client(base_url=address, timeout=60) as made.http:
        assert "only shows runs" in problem_of(made.submit(), 409)
        assert made.http.get("/v1/jobs").json()["jobs"] == []


def test_scopes(tmp_path: Path) -> None:
    from service.scopes import Scope

    made = Caller(tmp_path)
    with served(made.app) as address, httpx.Client(base_url=address, timeout=60) as made.http:
        reader, submitter = (
            {"Authorization": f"Bearer {made.app.state.gate.tokens.create(name, scope)}"}
            for name, scope in (("rita", Scope.read), ("sam", Scope.submit))
        )
        problem_of(made.submit(), 401)
        assert "submit" in problem_of(made.submit(SPEC, **reader), 403)
        job = made.submit(SPEC, **submitter).json()
        assert job["submitter"] == "sam"
        place = f"/v1/jobs/{job['id']}"
        assert made.http.get(place, headers=reader).status_code == 200
        problem_of(made.http.delete(place, headers=reader), 403)
        problem_of(made.http.post(f"{place}/resume", headers=reader), 403)
        assert made.http.delete(place, headers=submitter).status_code == 202
