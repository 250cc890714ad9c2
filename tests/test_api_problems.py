"""What wrong requests get: the field, its value, the rule and the remedy, in words of ours."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from tests.runs import small_spec
from tests.serving import problem_of, served, settings_of

SPEC: dict[str, Any] = small_spec().to_json()
JSON = {"Content-Type": "application/json"}

LIBRARIES = ("input should", "unable to", "value error", "parsing", "dictionary", "valid ")
"""How FastAPI and pydantic speak."""


@pytest.fixture(scope="module")
def client(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    home = tmp_path_factory.mktemp("home")
    app = create_app(settings_of(home, runs=str(small_run.parent), ray="local"))
    with served(app) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


def told(answer: httpx.Response, status: int, field: str) -> str:
    detail = problem_of(answer, status, field)
    assert not [words for words in LIBRARIES if words in detail.lower()], detail
    return detail


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b'{"model": "\xff"}', 400, "no UTF-8 text (its byte 11)"),
        (b'{"a": 1,\n "b" 2}', 400, "breaks at '2}' (line 2, column 6)"),
        (b'{"a": 1', 400, "breaks where it ends (line 1, column 8)"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, 400, "nested too deep"),
        (b'{"seed": ' + b"9" * 5000 + b"}", 400, "too many digits"),
        (b"", 422, "is missing"),
        (b"null", 422, "is missing"),
        (b"[1, 2]", 422, "is a list, but it takes a JSON object"),
        (b'"text"', 422, "is a text, but it takes a JSON object"),
        (b"true", 422, "is true or false, but it takes a JSON object"),
        (b"1.5", 422, "is a number, but it takes a JSON object"),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/jobs"), ("POST", "/v1/plans"), ("PATCH", "/v1/runs/small")]
)
def test_a_body_that_is_no_json_object(
    client: httpx.Client, method: str, path: str, body: bytes, status: int, said: str
) -> None:
    assert said in told(client.request(method, path, content=body, headers=JSON), status, "body")


@pytest.mark.parametrize("kind", ["application/yaml", "text/plain", None])
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/jobs"), ("PATCH", "/v1/runs/small")])
def test_a_body_that_is_not_declared_as_json(
    client: httpx.Client, method: str, path: str, kind: str | None
) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = client.request(method, path, content=b"model: {name: x}\n", headers=headers)
    assert "Content-Type: application/json" in told(answer, 415, "Content-Type")


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"seed": "a"}, "seed", "'a'"),
        ({"compute": {"workers": -1}}, "compute.workers", "`auto` or a whole number"),
        ({"analyses": [{"kind": "tp"}]}, "analyses.0.kind", "'tp'"),
        ({"analyses": [{"kind": "top"}] * 2}, "analyses", "exactly once"),
        ({"data": {"uri": "/etc"}}, "data.uri", "DECONVOY_DATA_ROOTS"),
        ({"data": {"uri": "shapes", "boxes": "/etc/passwd"}}, "data.boxes", "DECONVOY_DATA_ROOTS"),
        ({"model": {"name": "python/os:system"}}, "model.name", "DECONVOY_PYTHON_MODELS"),
        ({"seed": float("nan")}, "seed", "finite"),
        ({"name": "a\0"}, "name", "Unicode"),
        ({"model": {"name": "x", "arguments": {"y": ["\ud800"]}}}, "model.arguments.y.0", "NUL"),
        ({"\ud800": 1}, "\\ud800", "Unicode"),
        ({"name": "two\nlines"}, "name", "on one line"),
        ({"modle": 1}, "modle", "did you mean 'model'"),
    ],
)
def test_what_is_wrong_with_a_spec_is_named(
    client: httpx.Client, changes: dict[str, Any], field: str, said: str
) -> None:
    body = json.dumps({**SPEC, **changes})
    answer = client.post("/v1/jobs", content=body, headers=JSON)
    assert said in told(answer, 422, field)


def test_every_wrong_field_is_told(client: httpx.Client) -> None:
    spec = {"data": {"labels": 3}, "seed": "x"}
    sentence = told(client.post("/v1/jobs", json=spec), 422, "seed")
    assert all(f"'{name}'" in sentence for name in ("model", "data.uri", "data.labels", "seed"))
    sentence = told(client.patch("/v1/runs/small", json={"tags": 3, "pinned": "may"}), 422, "tags")
    assert "'tags' is 3, but it takes a list" in sentence and "'pinned' is 'may'" in sentence
    sentence = told(client.get("/v1/runs/small/query/nearest"), 422, "layer")
    assert "'layer' is missing" in sentence and "'unit' is missing" in sentence
    many = client.patch("/v1/runs/small", json={name: 1 for name in "abcdefg"})
    assert told(many, 422, "a").endswith("3 more are wrong.")


def test_a_field_without_a_name_is_no_failure(client: httpx.Client) -> None:
    assert "The field '' is unknown" in problem_of(client.post("/v1/jobs", json={"": 1}), 422)


@pytest.mark.parametrize(
    ("path", "field", "said"),
    [
        ("jobs?limit=x", "limit", "'x', but it takes a whole number"),
        ("jobs?limit=0", "limit", "takes 1 or more"),
        ("jobs?limit=99999999999999999999", "limit", "takes 2147483648 or less"),
        ("jobs?state=sleeping", "state", "it takes queued, starting"),
        ("jobs?stat=running", "stat", "nearest: state"),
        ("jobs?zzzz=1", "zzzz", "there are: before, limit, state"),
        ("runs?status=x", "status", "takes 'running', 'done'"),
        ("runs/small/layers/relu2/units/x", "unit", "part of the path 'unit' is 'x'"),
        ("runs/small/layers/relu2/units?dead=x", "dead", "takes true or false"),
        ("runs/small/layers/relu2/units/40.png?smooth=x", "smooth", "takes a number"),
        ("runs/small/images?label=zz", "label", "there are: face"),
        (f"runs/small/images?text={'x' * 3000}", "text", "takes 2000 characters at most"),
    ],
)
def test_parameters_that_do_not_fit(client: httpx.Client, path: str, field: str, said: str) -> None:
    assert said in told(client.get(f"/v1/{path}"), 422, field)


@pytest.mark.parametrize(
    ("method", "path", "field", "said"),
    [
        ("GET", "jobs/x", "job_id", "deconvoy jobs"),
        ("GET", "jobs/x/logs", "job_id", "deconvoy jobs"),
        ("GET", "jobs/x/events", "job_id", "deconvoy jobs"),
        ("DELETE", "jobs/x", "job_id", "deconvoy jobs"),
        ("POST", "jobs/x/resume", "job_id", "deconvoy jobs"),
        ("GET", "jobs?before=x", "before", "deconvoy jobs"),
        ("GET", "runs/qqqqqq", "run_id", "there are: small"),
        ("GET", "runs/small/layers/relu", "layer", "nearest: relu2, relu5, relu7"),
        ("GET", "runs/small/layers/zzz", "layer", "there are: relu2"),
        ("GET", "runs/small/query/puri", "name", "nearest: purity"),
    ],
)
def test_what_is_not_there(
    client: httpx.Client, method: str, path: str, field: str, said: str
) -> None:
    assert said in told(client.request(method, f"/v1/{path}"), 404, field)


def test_a_key_that_is_no_line_is_told_as_one(client: httpx.Client) -> None:
    answer = client.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "k" * 300})
    assert len(told(answer, 422, "Idempotency-Key")) < 300
