"""Studies at a service: they are taken in, told of, and read as jobs and runs are."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

import deconvoy
from deconvoy.errors import RunNotFound
from tests.serving import client_of, problem_of, settings_of
from tests.studies import run_study, spec_of

SPEC: dict[str, Any] = spec_of(name="a small study").to_json()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("studies") / "study"
    run_study(spec_of(name="a small study", repeats=1), url)
    return url


@pytest.fixture(scope="module")
def http(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings = settings_of(tmp_path_factory.mktemp("home"), runs=str(place.parent))
    with client_of(settings) as client:
        yield client


@pytest.fixture
def taking(tmp_path: Path) -> Iterator[httpx.Client]:
    with client_of(settings_of(tmp_path, runs=str(tmp_path / "runs"), ray="local")) as client:
        yield client


def test_a_list_of_runs_tells_studies_apart(http: httpx.Client) -> None:
    (told,) = http.get("/v1/runs").json()["runs"]
    assert (told["kind"], told["name"], told["model"]) == (
        "study", "a small study", "deconvoy/zfnet_small",
    )  # fmt: skip
    assert (told["images"], told["layers"], told["units"], told["top1"]) == (24, 0, None, None)
    details = http.get("/v1/runs/study").json()
    assert details["spec"]["kind"] == "study" and details["layer_names"] == []
    assert details["results"]["networks"] == 2


def test_its_table_is_a_query(http: httpx.Client, place: Path) -> None:
    rows = http.get("/v1/runs/study/query/study").json()["rows"]
    expected = deconvoy.open(place).study().table().to_pylist()
    assert [row["network"] for row in rows] == [row["network"] for row in expected]
    assert rows[1]["validation_top1"] == pytest.approx(expected[1]["validation_top1"])
    assert len(http.get("/v1/runs/study/query/study-curves").json()["rows"]) == 6


def test_its_first_filters_are_pictures(http: httpx.Client) -> None:
    answer = http.get("/v1/runs/study/study/0.png", params={"tile": 10})
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == (8 * 12 - 2, 4 * 12 - 2)
    answer = http.get("/v1/runs/study/study/2.png")
    assert "networks are 0 to 1" in problem_of(answer, 404, "network")
    answer = http.get("/v1/runs/study/study/0.png", params={"repeat": 5})
    assert "repeats are 0 to 0" in problem_of(answer, 404, "repeat")


@pytest.mark.parametrize(
    "path",
    [
        "layers", "layers/relu1", "layers/relu1/units/0", "table", "images", "images/0",
        "occlusion/0", "figures/relu1.png", "query/purity", "query/probe", "diff/study",
        "layers/relu1/units/0.png", "images/0.jpg", "query/invariance",
        "evolution/relu1/units/0.png",
    ],
)  # fmt: skip
def test_what_only_a_job_has_is_told(http: httpx.Client, path: str) -> None:
    answer = http.get(f"/v1/runs/study/{path}")
    assert answer.status_code in (404, 409, 422), (path, answer.text)
    assert answer.json()["detail"].endswith("."), answer.text


def test_a_study_is_read_through_the_service(http: httpx.Client, place: Path) -> None:
    remote = deconvoy.open(f"{http.base_url}/v1/runs/study".replace("//v1", "/v1"))
    here = deconvoy.open(place).study()
    assert remote.kind == "study" and remote.study().networks == here.networks
    assert (remote.study().first_layers[1].filter == here.first_layers[1].filter).all()
    with pytest.raises(RunNotFound, match="is a study of architectures"):
        remote.layers()


def test_it_is_taken_in_as_a_job_is(taking: httpx.Client) -> None:
    answer = taking.post("/v1/jobs", json=SPEC)
    assert answer.status_code in (201, 202), answer.text
    job = answer.json()
    assert job["name"] == "a small study" and job["spec"]["edits"][0]["remove"] == [3, 4]
    unnamed = taking.post("/v1/jobs", json={**SPEC, "name": None}).json()
    assert unnamed["name"] == "deconvoy/zfnet_small" and unnamed["id"].startswith("zfnet-small-")
    with deconvoy.Client(str(taking.base_url)) as client:
        assert client.submit(spec_of()).spec["kind"] == "study"


def test_a_wrong_one_is_refused_with_its_field(taking: httpx.Client) -> None:
    answer = taking.post("/v1/jobs", json={**SPEC, "edits": [{"remove": [9]}]})
    assert "layers of 3 to 7" in problem_of(answer, 422, "edits.0.remove.0")
    answer = taking.post("/v1/jobs", json={**SPEC, "data": {"uri": "/etc"}})
    assert "not below a root" in problem_of(answer, 422, "data.uri")
    answer = taking.post("/v1/jobs", json={**SPEC, "validation": {"uri": "/etc"}})
    assert "not below a root" in problem_of(answer, 422, "validation.uri")
    answer = taking.post("/v1/jobs", json={**SPEC, "kind": "probe"})
    assert "it takes `study`" in problem_of(answer, 422, "kind")


def test_a_plan_of_a_study(taking: httpx.Client) -> None:
    answer = taking.post("/v1/plans", json=SPEC)
    assert answer.status_code == 200, answer.text
    assert answer.json()["kind"] == "study" and len(answer.json()["networks"]) == 2
    answer = taking.post("/v1/plans", json={**SPEC, "validation": 0.001})
    assert "at least one must" in problem_of(answer, 422, "validation")
