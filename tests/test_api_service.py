"""The service as a whole: what it documents, what it counts and logs, and what it never loads."""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from pydantic import BaseModel
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service import logs
from service.api import answers, image_answers, system, table_answers
from service.app import create_app, make_ready
from service.scopes import Scope
from service.settings import Settings
from tests.runs import small_spec
from tests.serving import client_of, problem_of, served, settings_of, with_runs
from workers import support

ROOT = Path(__file__).resolve().parents[1]

EXAMPLES = 16
"""Requests an operation."""
FEW_EXAMPLES = 4

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]

# Half of the requests ask for what is there; the others for whatever comes.
THERE: dict[str, list[Any]] = {
    "run_id": ["small"],
    "layer": ["relu2", "relu5", "relu7"],
    "within": ["relu2"],
    "unit": [0, 40],
    "units": ["0,40"],
    "suffix": ["png", "jpg"],
    "image": [21],
    "v": ["3f2a9c0d1e4b5a67"],
    "path": ["zarr.json", "layers/relu2/score/c/0/0", "layers/"],
}


@pytest.fixture(scope="module")
def settings(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_of(tmp_path_factory.mktemp("home"), runs=str(small_run.parent))


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[httpx.Client]:
    with client_of(settings) as client:
        yield client


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


# -- what it documents -----------------------------------------------------------------------------


def test_every_operation_is_described_with_examples_and_problems(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    schemas = schema["components"]["schemas"]
    assert "HTTPValidationError" not in schemas
    for method, path, operation in operations(schema):
        where = f"{method} {path}"
        assert operation["summary"] and operation["description"], where
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], (where, parameter["name"])
            assert parameter["schema"].get("examples"), (where, parameter["name"])
        found = operation["responses"]
        assert {"422", "500"} <= set(found) and ("401" in found or path == "/healthz"), where
        for status, answer in found.items():
            if int(status) >= 400:
                assert list(answer["content"]) == ["application/problem+json"], (where, status)
        bodies = [operation.get("requestBody", {}), found.get("200", {})]
        for body in bodies:
            told = body.get("content", {}).get("application/json", {}).get("schema", {})
            name = told.get("$ref", "").rpartition("/")[2]
            assert not name or schemas[name]["examples"], (where, name)
    assert client.get("/docs").status_code == 200


def test_examples_are_of_their_schemas() -> None:
    from jsonschema import Draft202012Validator

    modules = (answers, image_answers, table_answers)
    own = {one for module in modules for one in vars(module).values() if isinstance(one, type)}
    models = [one for one in own if issubclass(one, BaseModel) and one is not BaseModel]
    checked = 0
    for model in (*models, system.Health, system.ModelList):
        schema = model.model_json_schema(mode="serialization")
        for example in schema.get("examples", ()):
            Draft202012Validator(schema).validate(example)
            checked += 1
    assert checked > 12


def test_whatever_is_asked_is_answered_as_documented(settings: Settings) -> None:
    """schemathesis over the OpenAPI: no 5xx, no undocumented status or content."""
    app = create_app(settings)
    with served(app) as address:
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        found = []
        for result in schema.get_all_operations():
            operation = result.ok()
            if operation.method.upper() == "DELETE":  # the run is others', too
                continue
            found.append(operation.label)
            ask(operation, address)
    assert len(found) > 25


@pytest.mark.parametrize("scope", [None, *Scope])
def test_whoever_asks_is_answered_as_documented(
    scope: Scope | None, small_run: Path, tmp_path: Path
) -> None:
    """The same with tokens, and with jobs in the queue, which nobody takes out of it."""
    runs = tmp_path / "runs"
    runs.mkdir()
    with_runs(runs, small_run)
    app = create_app(Settings(home=tmp_path / "home", runs=str(runs), ray="local"))
    make_ready(app)
    headers = {}
    if scope is not None:
        headers["Authorization"] = f"Bearer {app.state.gate.tokens.create('somebody', scope)}"
    queued, _ = app.state.queue.submit(small_spec().to_json(), "somebody")
    with served(app) as address:
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        for result in schema.get_all_operations():
            ask(result.ok(), address, THERE | {"job_id": [queued.id]}, headers, FEW_EXAMPLES)
        refused = httpx.get(f"{address}/v1/runs", headers=headers).status_code
    assert refused == (401 if scope is None else 200)


def ask(
    operation: Any,
    address: str,
    known: dict[str, list[Any]] = THERE,
    headers: dict[str, str] | None = None,
    examples: int = EXAMPLES,
) -> None:
    """Requests of an operation.

    Args:
        headers: of each.
    """
    numbers = itertools.count()

    @hypothesis_settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def run(case: Any) -> None:
        number = next(numbers)
        if number % 2:
            case.path_parameters = there(case.path_parameters, number // 2, known)
            case.query = there(case.query, number // 2, known)
        case.call_and_validate(checks=CHECKS, headers=headers)

    run()


def there(parameters: Any, number: int, known: dict[str, list[Any]]) -> dict[str, Any]:
    """The parameters with names of what is there."""
    given = dict(parameters or {})
    return given | {
        name: known[name][number % len(known[name])] for name in given.keys() & known.keys()
    }


# -- what it counts and logs -----------------------------------------------------------------------


def test_requests_are_counted_by_route_and_status(settings: Settings) -> None:
    with client_of(settings) as client:
        for path in ("/v1/runs", "/v1/runs/small", "/v1/runs/nothing", "/v1/probe/1", "/probe/2"):
            client.get(path)
        client.get("/metrics")
        page = client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=")

    def count(route: str, status: int) -> float:
        labels = f'method="GET",route="{route}",status="{status}"'
        line = f"deconvoy_request_seconds_count{{{labels}}} "
        return sum(
            float(one[len(line) :]) for one in page.text.splitlines() if one.startswith(line)
        )

    assert count("/v1/runs", 200) == 1 and count("/metrics", 200) == 1
    assert count("/v1/runs/{run_id}", 200) == 1 and count("/v1/runs/{run_id}", 404) == 1
    assert count("none", 404) == 2
    assert "# TYPE deconvoy_jobs gauge" in page.text
    assert re.search(r'deconvoy_jobs\{state="\w+"\} 0.0', page.text)


def test_a_line_a_request_without_secrets(
    small_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    app = create_app(settings_of(tmp_path, runs=str(small_run.parent), tokens=True, log="json"))
    with served(app) as address, httpx.Client(base_url=address) as client:
        token = app.state.gate.tokens.create("reader", Scope.read)
        client.get("/v1/runs?text=hush", headers={"Authorization": f"Bearer {token}"})
        client.get("/login?code=hush")
        given = client.get("/healthz", headers={"x-request-id": "mine-1"})
        assert given.headers["x-request-id"] == "mine-1"
        made = client.get("/healthz", headers={"x-request-id": "bad id"}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{16}", made)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    first = lines[0]
    assert {k: first[k] for k in ("event", "method", "route", "status", "caller")} == {
        "event": "answered",
        "method": "GET",
        "route": "/v1/runs",
        "status": 200,
        "caller": "reader",
    }
    assert first["ms"] > 0 and re.fullmatch("[0-9a-f]{16}", first["request"])
    assert [line["request"] for line in lines[2:]] == ["mine-1", made]
    told = json.dumps(lines)
    assert "hush" not in told and token not in told


def test_what_fails_is_logged_and_not_told(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    app = create_app(settings)

    @app.get("/v1/fails")
    def fail() -> None:
        raise ZeroDivisionError("a secret")

    with served(app) as address:
        answer = httpx.get(f"{address}/v1/fails")
    assert "a secret" not in problem_of(answer, 500) and "its log says why" in answer.text
    assert "ZeroDivisionError: a secret" in capfd.readouterr().err


# -- models, and what is never loaded --------------------------------------------------------------


def test_models_are_those_of_the_page(client: httpx.Client) -> None:
    rows = json.loads((ROOT / "service/torchvision.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/models.md").read_text(encoding="utf-8").splitlines()
    expected = [line for line in page if line.startswith("| `")]
    assert [support.line(support.Support(**row)) for row in rows] == expected, "run `make docs`"
    assert [row["model"] for row in rows] == support.names()
    told = client.get("/v1/models").json()["models"]
    names = [model["name"] for model in told]
    assert names == [*system.BUILT_IN, *(f"torchvision/{name}" for name in support.names())]
    assert [m["name"] for m in client.get("/v1/models?text=ZFNET").json()["models"]] == list(
        system.BUILT_IN
    )


SERVE = """
import sys
import uvicorn
from service.app import create_app
from service.settings import Settings
app = create_app(Settings())
@app.get("/loaded")
def loaded() -> list[str]:
    return sorted({"torch", "torchvision", "ray"} & sys.modules.keys())
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
"""


def test_the_process_loads_no_torch_and_stays_small(small_run: Path, tmp_path: Path) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "DECONVOY_HOME": str(tmp_path),
        "DECONVOY_RUNS": str(small_run.parent),
        "DECONVOY_TOKENS": "false",
        "DECONVOY_RAY": "none",
    }
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(port)], cwd=ROOT, env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_for(client, server)
            for path in ("units/0", "units/0.png", "units"):
                client.get(f"/v1/runs/small/layers/relu2/{path}").raise_for_status()
            for path in ("table?format=arrow", "table?format=parquet", "query/purity",
                         "figures/relu2.png", "occlusion", "images", "zarr/zarr.json"):  # fmt: skip
                client.get(f"/v1/runs/small/{path}").raise_for_status()
            image = client.get("/v1/runs/small/occlusion").json()["occlusion"][0]["image"]
            client.get(f"/v1/runs/small/occlusion/{image}.png").raise_for_status()
            client.get(f"/v1/runs/small/images/{image}.jpg").raise_for_status()
            client.get("/v1/models").raise_for_status()
            assert client.get("/loaded").json() == []
        status = Path(f"/proc/{server.pid}/status").read_text()
        (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
        assert int(peak) * 1024 < 400e6
    finally:
        server.terminate()
        server.wait(30)


def wait_for(client: httpx.Client, server: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 60
    while True:
        try:
            client.get("/healthz").raise_for_status()
            return
        except httpx.TransportError:
            assert server.poll() is None and time.monotonic() < until
            time.sleep(0.1)


def test_the_log_is_text_or_json(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    logs.log.info("one", number=1)
    assert json.loads(capfd.readouterr().err)["number"] == 1
    logs.configure("text")
    logs.log.info("two", number=2)
    assert "number=2" in capfd.readouterr().err
