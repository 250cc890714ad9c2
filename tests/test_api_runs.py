"""Runs over HTTP: the list, one run, its layers and units; names, tags, pins, and its end."""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode

import httpx
import numpy as np
import pytest

import deconvoy
from deconvoy import queries, tombstone
from deconvoy.errors import JobNotFound
from deconvoy.store import RunStore
from service.app import create_app
from service.catalogue import NewJob
from service.scopes import Scope
from tests.serving import client_of, problem_of, served, settings_of, with_runs

LAYER = "/v1/runs/small/layers/relu2"


@pytest.fixture(scope="module")
def client(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    home = tmp_path_factory.mktemp("home")
    with client_of(settings_of(home, runs=str(small_run.parent), page_rows=50)) as client:
        yield client


@pytest.fixture
def own(small_run: Path, tmp_path: Path) -> Iterator[httpx.Client]:
    """Of a service with a copy of the run, which may be changed."""
    runs = with_runs(tmp_path / "runs", small_run)
    with client_of(settings_of(tmp_path / "home", runs=str(runs))) as client:
        yield client


# -- lists -----------------------------------------------------------------------------------------


def test_a_list_says_what_each_run_is(client: httpx.Client, small_run: Path) -> None:
    told = client.get("/v1/runs").raise_for_status().json()
    run = deconvoy.open(small_run)
    assert (told["total"], told["next"]) == (1, None)
    (row,) = told["runs"]
    assert row | {"created": None, "commit": None} == {
        "id": "small",
        "kind": "job",
        "name": "a small one",
        "tags": [],
        "pinned": False,
        "status": "done",
        "model": "deconvoy/zfnet_small",
        "images": 40,
        "layers": 4,
        "units": sum(run.layers()["units"].to_pylist()),
        "top1": run.attributes["results"]["top1"],
        "created": None,
        "commit": None,
    }
    assert row["created"].startswith("20") and len(row["commit"]) == 16


def test_a_list_is_filtered_and_comes_in_pages(small_run: Path, tmp_path: Path) -> None:
    runs = with_runs(tmp_path / "runs", small_run)
    for name in ("b", "c"):
        shutil.copytree(small_run, runs / name)
    (runs / "no-run").mkdir()
    (runs / ".hidden").mkdir()
    change_attributes(runs / "c", {"state": {"status": "stopped"}})
    with client_of(settings_of(tmp_path / "home", runs=str(runs))) as client:

        def ids(**wanted: object) -> list[str]:
            return [run["id"] for run in client.get("/v1/runs", params=wanted).json()["runs"]]

        assert ids() == ["b", "c", "small"]
        assert ids(status="stopped") == ["c"]
        assert ids(text="SMALL") == ["b", "c", "small"]  # all have the name and model of it
        client.patch("/v1/runs/small", json={"pinned": True, "tags": ["kept"], "name": "Other"})
        assert ids() == ["small", "b", "c"]
        assert ids(tag="kept") == ["small"] and ids(tag="kep") == []
        assert ids(text="other") == ["small"]
        page = client.get("/v1/runs", params={"limit": 2}).json()
        assert page["total"] == 3 and len(page["runs"]) == 2
        rest = client.get(page["next"]).json()
        assert [run["id"] for run in rest["runs"]] == ["c"] and rest["next"] is None


def test_runs_elsewhere_are_shown_under_the_last_part_of_their_place(
    small_run: Path, tmp_path: Path
) -> None:
    elsewhere = with_runs(tmp_path / "elsewhere", small_run) / "small"
    settings = settings_of(
        tmp_path, runs=str(small_run.parent), browse=(str(elsewhere), str(tmp_path / "nothing"))
    )
    with client_of(settings) as client:
        ids = [run["id"] for run in client.get("/v1/runs").json()["runs"]]
        assert ids == ["small", "small-2"]
        told = problem_of(client.delete("/v1/runs/small-2"), 409, "run_id")
        assert "delete it where it lies" in told
    assert (elsewhere / "zarr.json").exists()


def test_a_broken_run_does_not_break_the_list(small_run: Path, tmp_path: Path) -> None:
    runs = with_runs(tmp_path / "runs", small_run)
    (runs / "broken").mkdir()
    (runs / "broken" / "zarr.json").write_text("{")
    with client_of(settings_of(tmp_path / "home", runs=str(runs))) as client:
        found = {run["id"]: run["status"] for run in client.get("/v1/runs").json()["runs"]}
        assert found == {"broken": "unreadable", "small": "done"}
        told = problem_of(client.get("/v1/runs/broken"), 500, "run_id")
        assert "broken" in told and str(runs) not in told


def test_a_run_that_changes_is_seen_as_it_is(own: httpx.Client, tmp_path: Path) -> None:
    before = own.get("/v1/runs/small").json()
    change_attributes(tmp_path / "runs/small", {"state": {"status": "failed", "error": "No."}})
    after = own.get("/v1/runs/small").json()
    assert (before["status"], after["status"]) == ("done", "failed")
    assert after["failure"] == "No." and after["commit"] != before["commit"]
    shutil.rmtree(tmp_path / "runs/small")
    problem_of(own.get("/v1/runs/small"), 404, "run_id")


def test_one_run_has_its_spec_and_provenance(client: httpx.Client, small_run: Path) -> None:
    told = client.get("/v1/runs/small").raise_for_status().json()
    run = deconvoy.open(small_run)
    assert deconvoy.JobSpec.parse(told["spec"]) == run.spec
    assert told["provenance"] == run.attributes["provenance"]
    assert told["layer_names"] == list(run.layer_names) and told["classes"] == list(run.classes)
    assert (told["labels"], told["resumable"], told["occluded"]) == ("true", False, 2)


# -- layers and units ------------------------------------------------------------------------------


def test_layers_are_those_of_the_run(client: httpx.Client, small_run: Path) -> None:
    told = client.get("/v1/runs/small/layers").raise_for_status().json()["layers"]
    run = deconvoy.open(small_run)
    looks = [one.pop("look") for one in told]
    assert told == run.layers().to_pylist()
    assert looks == [run.look(one["layer"]) for one in told]
    assert client.get("/v1/runs/small/layers/relu5").json() == told[1] | {"look": looks[1]}


def test_a_unit_is_that_of_the_run(client: httpx.Client, small_run: Path) -> None:
    unit = deconvoy.open(small_run).unit("relu2", 40)
    told = client.get(f"{LAYER}/units/40").raise_for_status().json()
    hits = told["hits"]
    assert [hit["score"] for hit in hits] == unit.score.tolist()
    assert [hit["image"] for hit in hits] == unit.image.tolist()
    assert [[hit["y"], hit["x"]] for hit in hits] == unit.position.tolist()
    assert [hit["box"] for hit in hits] == unit.box.tolist()
    assert [hit["window"] for hit in hits] == unit.window.tolist()
    assert tuple(hit["class"] for hit in hits) == unit.labels
    assert [hit["rank"] for hit in hits] == list(range(9))
    assert (told["units"], told["dead"], told["labels"]) == (64, False, "true")
    assert sum(one["count"] for one in told["classes"]) == 9
    assert told["pictures"]["both"].startswith(f"{LAYER}/units/40.png?show=both&v=")
    assert client.get(f"{LAYER}/units/41").json()["pictures"] is None


def test_a_dead_unit_has_no_hits(client: httpx.Client, small_run: Path) -> None:
    run = deconvoy.open(small_run)
    dead = run.dead_units("relu7")
    told = client.get(f"/v1/runs/small/layers/relu7/units/{dead[0]}").json()
    assert (told["dead"], told["hits"], told["classes"]) == (True, [], [])
    page = client.get("/v1/runs/small/layers/relu7/units", params={"dead": True}).json()
    assert page["total"] == len(dead) and page["units"][0]["score"] is None
    assert [row["unit"] for row in page["units"]] == dead[:50]


def test_a_page_of_units_has_what_a_grid_needs(client: httpx.Client, small_run: Path) -> None:
    run = deconvoy.open(small_run)
    best = [float(run.unit("relu2", unit).score[0]) for unit in range(64)]
    page = client.get(f"{LAYER}/units", params={"order": "score", "limit": 10}).json()
    assert page["total"] == 64
    assert [row["score"] for row in page["units"]] == sorted(best, reverse=True)[:10]
    shown = client.get(f"{LAYER}/units", params={"projected": True}).json()["units"]
    assert [row["unit"] for row in shown] == [0, 1, 40]
    purity = {row["unit"]: row for row in queries.purity(run, "relu2").to_pylist()}
    for row in shown:
        commonest = row["classes"][0]
        assert commonest["class"] == purity[row["unit"]]["class"]
        assert commonest["count"] / row["hits"] == purity[row["unit"]]["purity"]


def test_units_come_in_the_order_that_is_asked_for(client: httpx.Client, small_run: Path) -> None:
    run = deconvoy.open(small_run)
    layer = "/v1/runs/small/layers/relu7/units"
    units = len(run.density("relu7"))

    def pages(**asked: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        address = f"{layer}?{urlencode(asked)}"
        while address:
            page = client.get(address).raise_for_status().json()
            found, address = found + page["units"], page["next"]
        assert len(found) == page["total"]
        return found

    numbered = pages()
    assert [row["unit"] for row in numbered] == list(range(units))
    assert [row["density"] for row in numbered] == run.density("relu7").tolist()

    def purity(row: dict[str, Any]) -> float:
        return row["classes"][0]["count"] / row["hits"] if row["hits"] else 0.0

    keys: dict[str, Callable[[dict[str, Any]], float]] = {
        "score": lambda row: row["score"] if row["hits"] else -math.inf,
        "density": lambda row: row["density"],
        "purity": purity,
    }
    for order, key in keys.items():
        # Largest first, and the smaller number where two are equal, over all pages.
        expected = sorted(numbered, key=lambda row: (-key(row), row["unit"]))
        assert expected != numbered
        assert pages(order=order) == expected, order
    assert pages(order="unit", dead=False) == [row for row in numbered if row["hits"]]


def test_units_of_a_class_are_those_most_of_whose_hits_are_of_it(client: httpx.Client) -> None:
    layer = "/v1/runs/small/layers/relu2/units"
    rows = [
        row
        for offset in (0, 50)
        for row in client.get(f"{layer}?offset={offset}").raise_for_status().json()["units"]
    ]
    commonest = {row["unit"]: row["classes"][0] for row in rows if row["classes"]}
    names = {one["class"]: one["label"] for one in commonest.values()}
    assert len(names) > 1
    for name, index in names.items():
        expected = [unit for unit, one in commonest.items() if one["class"] == name]
        for label in (name, index):
            page = client.get(layer, params={"label": label}).raise_for_status().json()
            assert page["total"] == len(expected)
            assert [row["unit"] for row in page["units"]] == expected[:50]
    assert "zebra" in problem_of(client.get(f"{layer}?label=zebra"), 422, "label")


def test_a_unit_tells_how_its_image_maxima_lie(client: httpx.Client, small_run: Path) -> None:
    group = deconvoy.open(small_run).layer_group("relu2")
    told = client.get(f"{LAYER}/units/40").raise_for_status().json()
    assert told["ranks"] == 9
    assert told["mean"] == pytest.approx(float(np.asarray(group["mean"])[40]))
    assert told["density"] == pytest.approx(float(np.asarray(group["density"])[40]))
    bins = told["histogram"]
    assert sum(one["images"] for one in bins) == 40
    assert bins[0]["images"] > 0 and bins[-1]["images"] > 0
    for one, following in zip(bins, bins[1:], strict=False):
        assert one["high"] == following["low"] and one["low"] < one["high"]
    best = told["hits"][0]["score"]
    assert bins[-1]["low"] <= best < bins[-1]["high"]
    strong = sum(hit["score"] >= bins[-1]["low"] for hit in told["hits"])
    assert bins[-1]["images"] >= strong and (bins[-1]["images"] == strong or strong == 9)


def test_a_unit_of_more_ranks_than_hits_says_both(small_run: Path, client: httpx.Client) -> None:
    dead = deconvoy.open(small_run).dead_units("relu7")[0]
    told = client.get(f"/v1/runs/small/layers/relu7/units/{dead}").json()
    assert (told["ranks"], told["hits"], told["density"]) == (9, [], 0.0)
    # All maxima are zero, in the bin around it.
    edge = 2.0**-8
    assert told["histogram"] == [{"low": -edge, "high": edge, "images": 40}]


def test_logits_are_named(client: httpx.Client, small_run: Path) -> None:
    classes = deconvoy.open(small_run).classes
    told = client.get("/v1/runs/small/layers/logits/units").json()["units"]
    assert tuple(row["name"] for row in told) == classes


def test_a_layer_of_any_name_is_found(small_run: Path, tmp_path: Path) -> None:
    runs = with_runs(tmp_path / "runs", small_run)
    names = ("a/b c%2F", "..", "ünit/3", "logits")
    for old, new in zip(deconvoy.open(small_run).layer_names, names, strict=True):
        folder = quote(new, safe="") if new != ".." else "%2E%2E"
        os.rename(runs / "small/layers" / old, runs / "small/layers" / folder)
    change_attributes(runs / "small", {"layers": list(names)})
    with client_of(settings_of(tmp_path / "home", runs=str(runs))) as client:
        for name in names:
            path = "/v1/runs/small/layers/" + quote(name, safe="").replace(".", "%2E")
            told = client.get(f"{path}/units/1").raise_for_status().json()
            assert (told["layer"], told["unit"]) == (name, 1)
            if told["pictures"]:
                assert client.get(told["pictures"]["patch"]).status_code == 200
            assert client.get(path).json()["layer"] == name


def test_what_is_not_there_is_told_with_the_nearest(client: httpx.Client) -> None:
    told = problem_of(client.get("/v1/runs/smal"), 404, "run_id")
    assert told == "There is no run 'smal'; nearest: small."
    told = problem_of(client.get("/v1/runs/small/layers/relu3/units/0"), 404, "layer")
    assert told.startswith("The run 'small' has no layer 'relu3'; nearest: relu")
    told = problem_of(client.get(f"{LAYER}/units/64"), 404, "unit")
    assert told == "Layer 'relu2' has units 0 to 63, so there is no unit 64."
    told = problem_of(client.get("/v1/rums"), 404)
    assert "/docs lists the routes" in told
    assert "GET" in problem_of(client.post(LAYER), 405)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=51", "limit"),
        ("limit=many", "limit"),
        ("offset=-1", "offset"),
        ("offset=99999999999999999999", "offset"),
        ("order=size", "order"),
        ("dead=perhaps", "dead"),
        ("ded=true", "ded"),
    ],
)
def test_parameters_that_are_wrong_are_named(client: httpx.Client, query: str, field: str) -> None:
    assert f"'{field}'" in problem_of(client.get(f"{LAYER}/units?{query}"), 422, field)


# -- changes ---------------------------------------------------------------------------------------


def test_a_run_is_named_tagged_and_pinned(own: httpx.Client) -> None:
    changed = own.patch("/v1/runs/small", json={"name": "Mine", "tags": ["a", "b"]})
    assert changed.status_code == 200 and changed.json()["name"] == "Mine"
    own.patch("/v1/runs/small", json={"pinned": True}).raise_for_status()
    told = own.get("/v1/runs/small").json()
    assert (told["name"], told["tags"], told["pinned"]) == ("Mine", ["a", "b"], True)
    added = own.patch("/v1/runs/small", json={"add_tags": ["c", "a"], "remove_tags": ["b", "d"]})
    assert added.json()["tags"] == ["a", "c"]
    assert own.patch("/v1/runs/small", json={"name": ""}).json()["name"] == "a small one"
    for wrong, field in (({"nam": "x"}, "nam"), ({}, "body"), ({"tags": "a"}, "tags")):
        problem_of(own.patch("/v1/runs/small", json=wrong), 422, field)
    broken = own.patch("/v1/runs/small", content=b"{", headers={"content-type": "application/json"})
    assert "no JSON" in problem_of(broken, 400, "body")


def test_a_deleted_run_is_gone(own: httpx.Client, tmp_path: Path) -> None:
    own.patch("/v1/runs/small", json={"pinned": True, "name": "Mine"})
    assert "unpin it first" in problem_of(own.delete("/v1/runs/small"), 409, "run_id")
    own.patch("/v1/runs/small", json={"pinned": False})
    assert own.delete("/v1/runs/small").status_code == 204
    assert list((tmp_path / "runs").iterdir()) == []
    problem_of(own.get("/v1/runs/small"), 404, "run_id")
    problem_of(own.delete("/v1/runs/small"), 404, "run_id")


def test_a_deletion_that_was_cut_off_is_told_and_finished(
    own: httpx.Client, tmp_path: Path
) -> None:
    place = tmp_path / "runs/small/zarr.json"
    place.write_bytes(tombstone.engraved(place.read_bytes()))
    (listed,) = own.get("/v1/runs").json()["runs"]
    assert (listed["id"], listed["status"]) == ("small", "deleting")
    for path in ("", "/layers", "/layers/relu2/units/40", "/images/3", "/table"):
        told = problem_of(own.get(f"/v1/runs/small{path}"), 404, "run_id")
        assert "delete it again to finish" in told and str(tmp_path) not in told
    assert own.delete("/v1/runs/small").status_code == 204
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_that_goes_while_a_list_is_made_is_left_out(
    own: httpx.Client, tmp_path: Path
) -> None:
    """A list of runs is good for a second: this one is deleted within it."""
    shutil.copytree(tmp_path / "runs/small", tmp_path / "runs/other")
    assert {run["id"] for run in eventually_two(own)} == {"small", "other"}
    shutil.rmtree(tmp_path / "runs/other")
    listed = own.get("/v1/runs").json()
    assert (listed["total"], [run["id"] for run in listed["runs"]]) == (1, ["small"])


def eventually_two(client: httpx.Client) -> list[dict[str, Any]]:
    """The list, as soon as it has both."""
    until = time.monotonic() + 10
    while True:
        found: list[dict[str, Any]] = client.get("/v1/runs").json()["runs"]
        if len(found) == 2 or time.monotonic() > until:
            return found
        time.sleep(0.05)


def test_a_run_that_is_worked_on_is_not_deleted(own: httpx.Client, tmp_path: Path) -> None:
    with RunStore(tmp_path / "runs/small").driver_lock():
        told = problem_of(own.delete("/v1/runs/small"), 409, "run_id")
    assert "is being worked on" in told
    assert own.get("/v1/runs/small").status_code == 200


def test_the_run_of_a_job_has_the_jobs_id(small_run: Path, tmp_path: Path) -> None:
    elsewhere = with_runs(tmp_path / "elsewhere", small_run) / "small"
    app = create_app(settings_of(tmp_path / "home"))
    with served(app) as address, httpx.Client(base_url=address) as client:
        spec = deconvoy.open(small_run).attributes["spec"]
        new = NewJob("job-1", "one", spec, str(elsewhere), "me", None)
        app.state.catalogue.add_job(new)
        app.state.catalogue.claim(1)
        assert client.get("/v1/runs/job-1").json()["status"] == "done"
        assert "cancel it first" in problem_of(client.delete("/v1/runs/job-1"), 409, "run_id")
        app.state.catalogue.move("job-1", "done", among=["starting"])
        assert client.delete("/v1/runs/job-1").status_code == 204
        assert not elsewhere.exists()
        with pytest.raises(JobNotFound):
            app.state.catalogue.job("job-1")


# -- who may ---------------------------------------------------------------------------------------


def test_scopes_are_asked_for(small_run: Path, tmp_path: Path) -> None:
    runs = with_runs(tmp_path / "runs", small_run)
    app = create_app(settings_of(tmp_path / "home", runs=str(runs), tokens=True))
    with served(app) as address, httpx.Client(base_url=address) as client:
        tokens = {scope: app.state.gate.tokens.create(scope.value, scope) for scope in Scope}

        def by(scope: Scope) -> dict[str, str]:
            return {"Authorization": f"Bearer {tokens[scope]}"}

        for path in ("/v1/runs", "/v1/runs/small", f"{LAYER}/units/0", f"{LAYER}/units/0.png",
                     "/v1/runs/small/table", "/v1/runs/small/zarr/zarr.json", "/metrics",
                     "/v1/models", "/v1/runs/small/query/dead", "/v1/runs/small/images/0",
                     "/v1/runs/small/occlusion", "/v1/runs/small/figures/relu2.png"):  # fmt: skip
            refused = client.get(path)
            problem_of(refused, 401)
            assert refused.headers["www-authenticate"].startswith("Bearer")
            assert client.get(path, headers=by(Scope.read)).status_code == 200, path
        assert client.get("/healthz").json()["status"] == "ok"
        change = {"pinned": False}
        problem_of(client.patch("/v1/runs/small", json=change, headers=by(Scope.read)), 403)
        assert client.patch("/v1/runs/small", json=change, headers=by(Scope.submit)).is_success
        problem_of(client.delete("/v1/runs/small", headers=by(Scope.submit)), 403)
        kept = client.get(f"{LAYER}/units/0.png", headers=by(Scope.read))
        assert kept.headers["cache-control"].startswith("private")
        assert client.delete("/v1/runs/small", headers=by(Scope.admin)).status_code == 204


# -- parts -----------------------------------------------------------------------------------------


def change_attributes(run: Path, attributes: dict[str, object]) -> None:
    """As a driver would."""
    place = run / "zarr.json"
    content = json.loads(place.read_text())
    content["attributes"] |= attributes
    draft = place.with_name("draft")
    draft.write_text(json.dumps(content))
    os.replace(draft, place)


def test_a_run_below_the_runs_root_that_is_named_besides_is_listed_once(
    small_run: Path, tmp_path: Path
) -> None:
    runs = with_runs(tmp_path / "runs", small_run)
    link = tmp_path / "link"
    link.symlink_to(runs / "small")
    browse = (str(runs / "small"), str(link), f"{runs}/../runs/small/")
    settings = settings_of(tmp_path / "home", runs=str(runs), browse=browse)
    with served(create_app(settings)) as address:
        told = httpx.get(f"{address}/v1/runs").json()
    assert [run["id"] for run in told["runs"]] == ["small"]


def test_tables_of_a_run_of_any_name_are_sent(small_run: Path, tmp_path: Path) -> None:
    shutil.copytree(small_run, tmp_path / "runs" / 'größe "1"')
    settings = settings_of(tmp_path / "home", runs=str(tmp_path / "runs"))
    with served(create_app(settings)) as address, httpx.Client(base_url=address) as client:
        (run,) = client.get("/v1/runs").json()["runs"]
        path = f"/v1/runs/{quote(run['id'], safe='')}/table"
        answer = client.get(path, params={"format": "csv"})
    assert answer.status_code == 200
    file = answer.headers["content-disposition"].partition("''")[2]
    assert unquote(file) == 'größe "1".csv'


def test_a_run_with_half_its_attributes_is_told_as_broken(tmp_path: Path) -> None:
    place = tmp_path / "runs" / "half"
    place.mkdir(parents=True)
    half = {"zarr_format": 3, "node_type": "group", "attributes": {"format": "deconvoy-run/1"}}
    (place / "zarr.json").write_text(json.dumps(half))
    settings = settings_of(tmp_path / "home", runs=str(tmp_path / "runs"))
    with served(create_app(settings)) as address, httpx.Client(base_url=address) as client:
        assert client.get("/v1/runs").json()["runs"][0]["status"] == "unreadable"
        for path in ("", "/layers", "/images", "/table", "/query/dead", "/occlusion"):
            answer = client.get(f"/v1/runs/half{path}")
            assert answer.status_code == 500 and "lack spec" in answer.json()["detail"], path
