"""Pictures, images and occlusion over HTTP, and how long a cache may keep them."""

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import deconvoy
from deconvoy import figure7, figures
from deconvoy.kept import Kept
from service import drawing
from tests.runs import run_inline, small_spec, write_photographs
from tests.serving import client_of, problem_of, settings_of, with_runs
from tests.test_api_runs import change_attributes
from workers.shapes import render

RUN = "/v1/runs/small"
UNIT = f"{RUN}/layers/relu2/units/40"


@pytest.fixture(scope="module")
def client(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    home = tmp_path_factory.mktemp("home")
    settings = settings_of(home, runs=str(small_run.parent), picture_pixels=4_000_000)
    with client_of(settings) as client:
        yield client


def shown(answer: httpx.Response) -> Any:
    return np.asarray(Image.open(io.BytesIO(answer.raise_for_status().content)))


def same(answer: httpx.Response, expected: Image.Image) -> bool:
    return np.array_equal(shown(answer), np.asarray(expected))


@pytest.mark.parametrize("show", ["projection", "patch", "both"])
def test_a_units_picture_is_drawn_as_from_code(
    client: httpx.Client, small_run: Path, show: Any
) -> None:
    run = deconvoy.open(small_run)
    pictures = run.unit("relu2", 40).pictures
    answer = client.get(f"{UNIT}.png", params={"show": show})
    assert answer.headers["content-type"] == "image/png"
    assert same(answer, figures.unit_picture(pictures, show=show, **run.look("relu2")))
    looked = {"show": show, "zoom": True, "smooth": 2, "tile": 32, "grey": True}
    expected = figures.unit_picture(pictures, show=show, zoom=True, sigma=2.0, tile=32, grey=True)
    assert same(client.get(f"{UNIT}.png", params=looked), expected)
    jpeg = client.get(f"{UNIT}.jpg", params={"show": show})
    assert jpeg.headers["content-type"] == "image/jpeg"
    assert np.abs(shown(jpeg).astype(int) - shown(answer)).mean() < 4


def test_a_picture_is_drawn_once(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"show": "patch", "tile": 47}
    first = client.get(f"{UNIT}.png", params=asked)

    def fails(*_: Any, **__: Any) -> None:
        raise AssertionError("it was drawn before")

    monkeypatch.setattr(figures, "unit_picture", fails)
    again = client.get(f"{UNIT}.png", params=asked)
    assert again.content == first.content and again.headers["etag"] == first.headers["etag"]
    assert client.get(f"{UNIT}.png", params={**asked, "tile": 48}).status_code == 500


def test_pictures_are_kept_within_a_limit() -> None:
    kept, drawn = Kept[bytes](10, len), []

    def ask(tag: str, size: int = 4) -> bytes:
        def draw() -> bytes:
            drawn.append(tag)
            return tag.encode() * size

        return kept.get(tag, draw)

    assert [ask(tag) for tag in "abc"] == [b"aaaa", b"bbbb", b"cccc"] and kept.bytes == 8
    assert ask("b") == b"bbbb" and "".join(drawn) == "abc"
    ask("d")  # c lay longest
    ask("b"), ask("c")
    assert "".join(drawn) == "abcdc" and kept.bytes == 8
    ask("e", 11), ask("e", 11)  # more than fits
    assert "".join(drawn) == "abcdcee" and kept.bytes == 8


def test_one_unit_can_be_too_large_a_picture(small_run: Path, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, runs=str(small_run.parent), picture_pixels=90_000)
    with client_of(settings) as asked:
        assert asked.get(f"{UNIT}.png", params={"tile": 16}).status_code == 200
        told = problem_of(asked.get(f"{UNIT}.png", params={"tile": 128}), 422, "tile")
        assert told.startswith("1 unit with tiles of 128 pixels") and "90,000 at most" in told


def test_a_figure_of_a_layer_is_that_of_code(client: httpx.Client, small_run: Path) -> None:
    run = deconvoy.open(small_run)
    expected = run.figure("relu5", [1, 40], tile=32, **run.look("relu5"))
    asked = {"units": "1,40", "tile": 32}
    assert same(client.get(f"{RUN}/figures/relu5.png", params=asked), expected)
    default = run.figure("relu2", **run.look("relu2"))
    assert same(client.get(f"{RUN}/figures/relu2.png"), default)


def test_an_occluded_image_is_that_of_the_run(client: httpx.Client, small_run: Path) -> None:
    run = deconvoy.open(small_run)
    rows = client.get(f"{RUN}/occlusion").raise_for_status().json()["occlusion"]
    assert [row["image"] for row in rows] == run.occluded()["image_id"].to_pylist()
    assert [row["lowest"] for row in rows] == run.occluded()["lowest"].to_pylist()
    one = run.occlusion(rows[0]["image"])
    told = client.get(f"{RUN}/occlusion/{one.image}").raise_for_status().json()
    assert told["probability"] == one.probability.tolist() and told["y"] == one.y.tolist()
    assert told["label"] == one.label.tolist() and told["class"] == one.name_of(one.target)
    assert list(told["layers"]) == list(one.unit)
    assert told["layers"]["relu5"]["activity"] == one.activity["relu5"].tolist()
    narrow = client.get(f"{RUN}/occlusion/{one.image}?layer=relu5").json()
    assert list(narrow["layers"]) == ["relu5"]
    others = [drawing.other_projections(run, one, "relu2")]
    expected = figure7.figure7_page([one], "relu2", others=others, side=96)
    asked = {"layer": "relu2", "side": 96}
    assert same(client.get(f"{RUN}/occlusion/{one.image}.png", params=asked), expected)


def test_images_are_those_of_the_run(client: httpx.Client, small_run: Path) -> None:
    run = deconvoy.open(small_run)
    page = client.get(f"{RUN}/images").raise_for_status().json()
    commit = client.get(RUN).json()["commit"]
    assert page["total"] == 40
    for row, expected in zip(page["images"], run.images().to_pylist(), strict=True):
        assert row == expected | {
            "class": run.class_name(expected["label"]),
            "predicted_class": run.class_name(expected["predicted"]),
            "picture": f"{RUN}/images/{expected['id']}.jpg?v={commit}",
        }
    fish = client.get(f"{RUN}/images?label=fish&limit=1").json()
    assert (fish["total"], len(fish["images"])) == (4, 1) and fish["next"]
    assert client.get(f"{RUN}/images?text=39").json()["total"] == 1
    assert client.get(f"{RUN}/images?skipped=true").json()["total"] == 0
    told = client.get(f"{RUN}/images/21").json()
    table = run.table()
    every = [row["layer"] for row in table.to_pylist() if row["image_id"] == 21]
    assert len(told["hits"]) == len(every) > 9
    assert {row["layer"]: row["units"] for row in told["layers"]} == Counter(every)


def test_hits_of_an_image_come_by_layer_and_so_many_of_each(client: httpx.Client) -> None:
    every = client.get(f"{RUN}/images/21").json()["hits"]
    few = client.get(f"{RUN}/images/21?each=2").json()
    by_layer = [[hit for hit in every if hit["layer"] == row["layer"]] for row in few["layers"]]
    assert few["hits"] == [hit for hits in by_layer for hit in hits[:2]]
    for hits in by_layer:
        assert hits == sorted(hits, key=lambda hit: (hit["rank"], -hit["score"]))
    alone = client.get(f"{RUN}/images/21?layer=relu2").json()
    assert alone["hits"] == by_layer[0] and len(alone["layers"]) == 1
    assert {hit["unit"] for hit in alone["hits"] if hit["projected"]} <= {0, 1, 40}
    problem_of(client.get(f"{RUN}/images/21?layer=relu3"), 404, "layer")
    problem_of(client.get(f"{RUN}/images/21?each=99999"), 422, "each")


def test_images_of_shapes_are_drawn_by_their_number(client: httpx.Client) -> None:
    expected = render(1, 13).image
    answer = client.get(f"{RUN}/images/13.jpg")
    assert np.abs(shown(answer).astype(int) - expected).mean() < 6
    small = shown(client.get(f"{RUN}/images/13.jpg?side=32"))
    assert small.shape == (32, 32, 3)


def test_an_image_is_shown_as_the_model_sees_it(client: httpx.Client, small_run: Path) -> None:
    image = deconvoy.open(small_run).occluded()["image_id"][0].as_py()
    kept = deconvoy.open(small_run).occlusion(image).picture
    answer = client.get(f"{RUN}/images/{image}.jpg?preprocessed=true")
    assert answer.headers["content-type"] == "image/jpeg"
    assert np.abs(shown(answer).astype(int) - kept).mean() < 4


def test_a_file_is_shown_only_below_the_data_roots(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "data/photos", 4)
    data = {"uri": str(tmp_path / "data/photos")}
    top = small_spec(data=data, layers=["relu2"], analyses=[{"kind": "top"}])
    run_inline(top, tmp_path / "runs/photos")
    secret = tmp_path / "secret.png"
    Image.new("RGB", (80, 80)).save(secret)
    fields = {"runs": str(tmp_path / "runs")}
    with client_of(settings_of(tmp_path / "a", **fields)) as client:
        told = problem_of(client.get("/v1/runs/photos/images/0.jpg"), 404, "image")
        page = client.get("/v1/runs/photos/images").json()
        assert [row["picture"] for row in page["images"]] == [None] * 4
        assert "add its folder to data_roots" in told and str(tmp_path) not in told
    with client_of(
        settings_of(tmp_path / "b", data_roots=(str(tmp_path / "data"),), **fields)
    ) as c:
        expected = np.asarray(Image.open(photographs[0]))
        found = shown(c.get("/v1/runs/photos/images/0.jpg"))
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).mean() < 12  # noise, as JPEG keeps it
        page = c.get("/v1/runs/photos/images").json()
        assert all(c.get(row["picture"]).status_code == 200 for row in page["images"])
        photographs[2].unlink()
        photographs[2].symlink_to(secret)
        (tmp_path / "data/photos/a/zz.txt").write_text("no picture")
        statuses = [c.get(f"/v1/runs/photos/images/{n}.jpg").status_code for n in range(4)]
        assert statuses.count(404) == 1, "the link that leads away is not followed"
        photographs[1].unlink()
        photographs[1].symlink_to(photographs[1])
        for number, status in enumerate(statuses):
            found = c.get(f"/v1/runs/photos/images/{number}.jpg").status_code
            assert found == (404 if number == 1 else status), "a link that leads in a circle"
        assert c.get("/v1/runs/photos/images").status_code == 200


def test_a_picture_under_its_commit_is_kept_for_ever(client: httpx.Client) -> None:
    address = client.get(UNIT).json()["pictures"]["both"]
    first = client.get(address)
    assert first.headers["cache-control"] == "public, max-age=31536000, immutable"
    tag = first.headers["etag"]
    again = client.get(address, headers={"if-none-match": tag})
    assert again.status_code == 304 and again.content == b"" and again.headers["etag"] == tag
    for other in (f"{UNIT}.png", f"{UNIT}.png?v=0123456789abcdef"):
        plain = client.get(other)
        assert plain.headers["cache-control"] == "public, no-cache"
        fresh = client.get(other, headers={"if-none-match": f'W/{plain.headers["etag"]}, "x"'})
        assert fresh.status_code == 304
    changed = client.get(f"{UNIT}.png?tile=32", headers={"if-none-match": tag})
    assert changed.status_code == 200


def test_a_run_that_is_not_done_is_not_kept(small_run: Path, tmp_path: Path) -> None:
    runs = with_runs(tmp_path / "runs", small_run)
    with client_of(settings_of(tmp_path / "home", runs=str(runs))) as client:
        before = client.get(UNIT).json()["pictures"]["both"]
        change_attributes(runs / "small", {"state": {"status": "stopped"}})
        address = client.get(UNIT).json()["pictures"]["both"]
        assert address != before
        assert client.get(address).headers["cache-control"] == "public, no-cache"
        assert client.get(before).headers["cache-control"] == "public, no-cache"


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("layers/relu2/units/2.png", 404, "unit"),  # not projected
        ("layers/relu2/units/64.png", 404, "unit"),
        ("layers/relu2/units/x.png", 422, "unit"),
        ("layers/relu2/units/40.gif", 422, "suffix"),
        ("layers/relu3/units/40.png", 404, "layer"),
        ("layers/relu2/units/40.png?show=all", 422, "show"),
        ("layers/relu2/units/40.png?smooth=nan", 422, "smooth"),
        ("layers/relu2/units/40.png?tile=100000", 422, "tile"),
        ("figures/relu3.png", 404, "layer"),
        ("figures/relu7.png", 404, "units"),
        ("figures/relu2.png?units=0-", 422, "units"),
        ("figures/relu2.png?units=2", 404, "units"),
        ("figures/relu2.png?units=0-63", 422, "tile"),
        ("figures/relu2.png?units=0-99999999999", 422, "units"),
        ("images/40.jpg", 404, "image"),
        ("images/99999999999999999999.jpg", 422, "image"),
        ("images/99999999999.jpg", 404, "image"),
        ("images/x", 422, "image"),
        ("images/0.jpg?side=5000", 422, "side"),
        ("images/{other}.jpg?preprocessed=true", 404, "image"),
        ("images?label=dog", 422, "label"),
        ("occlusion/0", 404, "image"),
        ("occlusion/0.png", 404, "image"),
        ("occlusion/{occluded}?layer=relu3", 422, "layer"),
        ("occlusion/{occluded}.png?layer=relu3", 422, "layer"),
        ("occlusion/{occluded}.png?side=9999", 422, "side"),
    ],
)
def test_what_cannot_be_drawn_is_told(
    client: httpx.Client, small_run: Path, path: str, status: int, field: str
) -> None:
    run = deconvoy.open(small_run)
    occluded = run.occluded()["image_id"].to_pylist()
    whole = run.table("logits").to_pylist()  # the only layer with pictures of whole images
    kept = {*occluded, *(row["image_id"] for row in whole if row["unit"] in (0, 1))}
    other = next(image for image in range(40) if image not in kept)
    address = path.format(occluded=occluded[0], other=other)
    problem_of(client.get(f"{RUN}/{address}"), status, field)
