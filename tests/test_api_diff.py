"""Two runs side by side over HTTP, and from a client."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import zarr

import deconvoy
from deconvoy import queries
from deconvoy.client import Client
from deconvoy.errors import RequestError, RunNotFound
from tests.runs import run_inline, small_spec
from tests.serving import client_of, problem_of, settings_of, with_runs

DIFF = "/v1/runs/small/diff"


@pytest.fixture(scope="module")
def runs(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run, one in which every unit of a layer has lost a hit, and one of few layers."""
    place = with_runs(tmp_path_factory.mktemp("diff") / "runs", small_run)
    shutil.copytree(small_run, place / "after")
    image: Any = zarr.open_group(place / "after", mode="r+")["layers/relu5/image"]
    images = np.asarray(image[...])
    for row in images:
        if row[0] >= 0:
            row[0] = next(i for i in range(40) if i not in row)
    image[...] = images
    fields: dict[str, Any] = {"analyses": [{"kind": "top"}], "data": {"uri": "shapes?size=9"}}
    run_inline(small_spec(layers=["relu2"], **fields), place / "narrow")
    return place


@pytest.fixture(scope="module")
def client(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with client_of(settings_of(tmp_path_factory.mktemp("home"), runs=str(runs))) as client:
        yield client


def test_the_diff_is_that_of_code(client: httpx.Client, runs: Path) -> None:
    before, after = deconvoy.open(runs / "small"), deconvoy.open(runs / "after")
    told = client.get(f"{DIFF}/after").raise_for_status().json()
    assert told["layers"] == queries.diff(before, after).to_pylist()
    assert {key: told[key] for key in ("differing", "top1_before", "top1_after")} == (
        queries.overall(before, after)
    )
    assert (told["before"], told["after"]) == ("small", "after")
    with Client(str(client.base_url)) as asked:
        assert asked.diff("small", "after").equals(queries.diff(before, after))
        of_units = asked.diff("small", "after", "relu5")
    assert of_units.equals(queries.diff_units(before, after, "relu5"))


def test_units_that_changed_come_first_and_in_pages(client: httpx.Client, runs: Path) -> None:
    every = queries.diff_units(
        deconvoy.open(runs / "small"), deconvoy.open(runs / "after"), "relu5"
    ).to_pylist()
    page = client.get(f"{DIFF}/after/relu5?limit=7").raise_for_status().json()
    assert page["units"] == every[:7] and page["total"] == len(every)
    assert client.get(page["next"]).json()["units"] == every[7:14]
    changed = client.get(f"{DIFF}/after/relu5?changed=true").json()
    assert changed["total"] == sum(row["kept"] not in (None, 1.0) for row in every) > 0
    assert client.get(f"{DIFF}/after/relu2?changed=true").json()["total"] == 0


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("narrow", 422, "other_id"),
        ("narrow/relu2", 422, "other_id"),
        ("nope", 404, "other_id"),
        ("after/relu3", 404, "layer"),
        ("after/relu2?changed=maybe", 422, "changed"),
        ("after?layer=relu2", 422, "layer"),
    ],
)
def test_what_cannot_be_compared_is_told(
    client: httpx.Client, runs: Path, path: str, status: int, field: str
) -> None:
    told = problem_of(client.get(f"{DIFF}/{path}"), status, field)
    assert str(runs) not in told


def test_a_client_raises_what_the_service_says(client: httpx.Client) -> None:
    with Client(str(client.base_url)) as asked:
        with pytest.raises(RequestError, match="not of one layout"):
            asked.diff("small", "narrow")
        with pytest.raises(RunNotFound, match="nope"):
            asked.diff("small", "nope")
