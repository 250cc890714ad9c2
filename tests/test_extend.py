"""Test extending a finished run: bit for bit the run over all images, and no work done twice."""

from pathlib import Path
from typing import Any

import pytest

import deconvoy
from deconvoy.errors import RequestError
from tests.runs import (
    assert_same_results,
    grants_of,
    ignore,
    log_of,
    run_inline,
    small_spec,
    write_photographs,
)
from workers import extend, pipeline
from workers.executors.inline import InlineExecutor

OLD, NEW = "shapes?size=37&seed=1", "shapes?size=21&seed=2"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("old") / "run"
    run_inline(small_spec(data={"uri": OLD}), url)
    return url


def extended(old: Path, uri: str, url: Path, **more: Any) -> dict[str, Any]:
    job, run = extend.create(str(old), uri, str(url), **more)
    return pipeline.execute(job, run, InlineExecutor(), ignore)


def test_a_run_that_was_extended_is_the_run_over_all(old: Path, tmp_path: Path) -> None:
    summary = extended(old, NEW, tmp_path / "extended")
    everything = run_inline(small_spec(data={"uri": [OLD, NEW]}), tmp_path / "all")
    assert_same_results(tmp_path / "all", tmp_path / "extended")
    assert summary == everything
    assert (summary["images"], summary["labelled"]) == (58, 58)
    # 37 images are five shards of eight, 21 are three
    grants = grants_of(tmp_path / "extended")
    assert {item for item in grants if item.startswith("scan")} == {
        "scan/part-000005", "scan/part-000006", "scan/part-000007",
    }  # fmt: skip


def test_ids_of_a_further_place_begin_a_shard_and_its_images_carry_its_number(
    old: Path, tmp_path: Path
) -> None:
    extended(old, NEW, tmp_path / "run")
    images = deconvoy.open(tmp_path / "run").images().to_pydict()
    assert images["id"] == [*range(37), *range(40, 61)]
    assert images["uri"] == [*map(str, range(37)), *(f"+1:{i}" for i in range(21))]
    run = deconvoy.open(tmp_path / "run")
    rows = run.table("relu2").to_pylist()
    known = dict(zip(images["id"], images["uri"], strict=True))
    assert all(known[row["image_id"]] == row["uri"] for row in rows)
    assert any(row["image_id"] >= 40 for row in rows) and any(row["image_id"] < 37 for row in rows)


def test_projections_of_units_whose_hits_stay_are_taken_over(old: Path, tmp_path: Path) -> None:
    """Copies of old images come last among equals, so that no hit changes."""
    extended(old, "shapes?size=3&seed=1", tmp_path / "run")
    before, after = deconvoy.open(old), deconvoy.open(tmp_path / "run")
    full = [u for u in (0, 1, 40) if (before.unit("relu2", u).image >= 0).all()]
    assert full
    taken = {event["item"] for event in log_of(tmp_path / "run") if event["event"] == "taken over"}
    granted = {item for item in grants_of(tmp_path / "run") if item.startswith("projection")}
    assert taken | granted == {"projection/relu2/item-000000", "projection/relu5/item-000000"}
    run_inline(small_spec(data={"uri": [OLD, "shapes?size=3&seed=1"]}), tmp_path / "all")
    assert_same_results(tmp_path / "all", tmp_path / "run")
    assert (after.unit("relu2", full[0]).patches == before.unit("relu2", full[0]).patches).all()


def test_a_run_is_extended_again_and_resumed(old: Path, tmp_path: Path) -> None:
    extended(old, NEW, tmp_path / "once")
    job, run = extend.create(str(tmp_path / "once"), "shapes?size=9&seed=3", str(tmp_path / "run"))

    def stop(advance: pipeline.Advance) -> None:
        if advance.stage == "projection":
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        pipeline.execute(job, run, InlineExecutor(), stop)
    job, run = pipeline.reopen(str(tmp_path / "run"))
    pipeline.execute(job, run, InlineExecutor(), ignore)
    spec = small_spec(data={"uri": [OLD, NEW, "shapes?size=9&seed=3"]})
    run_inline(spec, tmp_path / "all")
    assert_same_results(tmp_path / "all", tmp_path / "run")


def test_folders_are_extended_with_the_meaning_their_names_had(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"old/class{number}").mkdir(parents=True)
    for number, place in enumerate(write_photographs(tmp_path / "made", 10)):
        place.rename(tmp_path / f"old/class{number}/x.png")
    for number, place in enumerate(write_photographs(tmp_path / "made", 2)):
        (tmp_path / f"new/class{7 + number}").mkdir(parents=True)
        place.rename(tmp_path / f"new/class{7 + number}/y.png")
    spec = small_spec(data={"uri": str(tmp_path / "old")}, layers=["relu2"])
    run_inline(spec, tmp_path / "run")
    extended(tmp_path / "run", str(tmp_path / "new"), tmp_path / "more")
    labels = deconvoy.open(tmp_path / "more").images()["label"].to_pylist()
    assert labels == [*range(10), 7, 8]


def test_what_cannot_be_extended_is_told(old: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        extend.create(str(old), "nowhere", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    job, run = pipeline.create(small_spec(), str(tmp_path / "begun"))
    with pytest.raises(RequestError, match="only a finished one can be extended"):
        extend.create(str(tmp_path / "begun"), NEW, str(tmp_path / "run"))
