"""Test extending a finished run: bit for bit the run over all images, and no work done twice."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import deconvoy
from deconvoy.errors import RequestError
from deconvoy.store import RunStore
from tests.runs import (
    assert_same_results,
    grants_of,
    ignore,
    log_of,
    results_of,
    run_inline,
    small_spec,
    write_photographs,
)
from workers import extend, pipeline
from workers.executors.inline import InlineExecutor
from workers.verify import verify

OLD, NEW = "shapes?size=37&seed=1", "shapes?size=21&seed=2"

WIDE = {
    "analyses": [{"kind": "top"}, {"kind": "projection", "units": {"ids": [0, 1, 40, 62]}}],
    "storage": {"projection": "float16"},
}
"""Pictures of relu5 that fill two items, of units 0, 1 and 40 and of unit 62."""

ITEMS = {
    f"projection/{name}" for name in ("relu2/item-000000", "relu5/item-000000", "relu5/item-000001")
}


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


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("wide") / "run"
    run_inline(small_spec(data={"uri": OLD}, **WIDE), url)
    return url


def taken_over(url: Path) -> set[str]:
    return {event["item"] for event in log_of(url) if event["event"] == "taken over"}


def projected(url: Path) -> set[str]:
    return {item for item in grants_of(url) if item.startswith("projection")}


def items_that_stay(old: Path, new: Path) -> set[str]:
    """By the tables of two runs: items of which no unit has other hits."""
    stay = set()
    for marker in (new / "ledger/projection").rglob("item-*.json"):
        layer, units = marker.parent.name, json.loads(marker.read_text())["units"]
        before, after = (deconvoy.open(url) for url in (old, new))
        each = [[run.unit(layer, unit) for run in (before, after)] for unit in units]
        if all((a.score == b.score).all() and (a.image == b.image).all() for a, b in each):
            stay.add(f"projection/{layer}/{marker.stem}")
    return stay


@pytest.mark.parametrize(
    ("uri", "changed"),
    [
        ("shapes?size=3&seed=1", set()),
        ("shapes?size=2&seed=2", {"projection/relu5/item-000000"}),
        (NEW, ITEMS),
    ],
)
def test_projections_of_exactly_the_units_whose_hits_stay_are_taken_over(
    wide: Path, tmp_path: Path, uri: str, changed: set[str]
) -> None:
    """The first are copies of old images: they come last among equals and change no hit."""
    extended(wide, uri, tmp_path / "run")
    run_inline(small_spec(data={"uri": [OLD, uri]}, **WIDE), tmp_path / "all")
    assert_same_results(tmp_path / "all", tmp_path / "run")
    stay = items_that_stay(wide, tmp_path / "all")
    assert taken_over(tmp_path / "run") == stay == ITEMS - changed
    assert projected(tmp_path / "run") == changed
    assert markers_of(tmp_path / "run") == markers_of(tmp_path / "all")
    assert verify(str(tmp_path / "run"), 20).faults == []


def markers_of(url: Path) -> dict[str, Any]:
    """What the markers of the projection say, by path."""
    found = (url / "ledger/projection").rglob("item-*.json")
    return {p.relative_to(url).as_posix(): json.loads(p.read_text()) for p in found}


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


@pytest.fixture
def begun(wide: Path, tmp_path: Path) -> tuple[Path, Any, RunStore]:
    """A copy of a run, and one that extends it and is not executed yet; all could be taken over."""
    shutil.copytree(wide, tmp_path / "old")
    uri = "shapes?size=3&seed=1"
    return tmp_path / "old", *extend.create(str(tmp_path / "old"), uri, str(tmp_path / "run"))


def test_from_a_run_that_was_replaced_nothing_is_taken_over(
    begun: tuple[Path, Any, RunStore], tmp_path: Path
) -> None:
    old, job, run = begun
    shutil.rmtree(old)
    other = {**WIDE, "storage": {"projection": "float16", "max_side": 32}}
    run_inline(small_spec(data={"uri": OLD}, **other), old)
    pipeline.execute(job, run, InlineExecutor(), ignore)
    assert taken_over(tmp_path / "run") == set() and projected(tmp_path / "run") == ITEMS
    assert verify(str(tmp_path / "run"), 0).faults == []


def test_what_the_old_run_stores_otherwise_or_has_no_marker_for_is_computed(
    begun: tuple[Path, Any, RunStore], tmp_path: Path
) -> None:
    """Its attributes are those it had; but another Zarr may have written it."""
    old, job, run = begun
    array = old / "layers/relu2/patch/zarr.json"
    fields = json.loads(array.read_text())
    fields["chunk_grid"]["configuration"]["chunk_shape"][0] += 1
    array.write_text(json.dumps(fields))
    (old / "ledger/projection/relu5/item-000001.json").unlink()
    pipeline.execute(job, run, InlineExecutor(), ignore)
    assert taken_over(tmp_path / "run") == {"projection/relu5/item-000000"}
    assert verify(str(tmp_path / "run"), 0).faults == []


def test_pictures_that_were_taken_over_and_lost_are_missed(
    begun: tuple[Path, Any, RunStore], tmp_path: Path
) -> None:
    _, job, run = begun
    pipeline.execute(job, run, InlineExecutor(), ignore)
    lost = tmp_path / "run/layers/relu2/patch/c/0/0/0/0/0"
    lost.unlink()
    assert lost.relative_to(tmp_path / "run").as_posix() in [
        fault.place for fault in verify(str(tmp_path / "run"), 0).faults
    ]


def test_devices_of_the_old_run_are_told(old: Path, tmp_path: Path) -> None:
    shutil.copytree(old, tmp_path / "old")
    group = RunStore(tmp_path / "old").zarr("r+")
    provenance: Any = group.attrs["provenance"]
    group.attrs["provenance"] = {**provenance, "device": ["a GPU"]}
    extended(tmp_path / "old", NEW, tmp_path / "run")
    told = deconvoy.open(tmp_path / "run").attributes["provenance"]
    assert told["device"] == ["a GPU", "cpu"] and told["places"] == [37, 21]


@pytest.mark.parametrize("out", ["old", "old/new", ".", "link"])
def test_a_run_is_not_extended_into_itself(old: Path, tmp_path: Path, out: str) -> None:
    shutil.copytree(old, tmp_path / "old")
    (tmp_path / "link").symlink_to(tmp_path / "old")
    before = results_of(tmp_path / "old")
    with pytest.raises(RequestError, match="one folder or lie in each other"):
        extend.create(str(tmp_path / "old"), NEW, str(tmp_path / out), overwrite=True)
    assert results_of(tmp_path / "old") == before and verify(str(old), 0).faults == []


@pytest.mark.parametrize("labelled", ["none", "old", "new"])
def test_images_kept_by_predicted_class_are_not_mixed_with_those_kept_by_label(
    tmp_path: Path, labelled: str
) -> None:
    places = [tmp_path / "one", tmp_path / "two"]
    for place, name in zip(places, ("old", "new"), strict=True):
        write_photographs(place, 3)
        if name == labelled:
            rows = [f"{path.relative_to(place)},{n}" for n, path in enumerate(files_of(place))]
            (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    files = [str(tmp_path / "labels.csv") if labelled == name else None for name in ("old", "new")]
    top = [{"kind": "top", "per_class": 1}]
    one, two = ({"uri": str(place)} for place in places)
    if files[0]:
        one["labels"] = files[0]
    run_inline(small_spec(data=one, layers=["relu2"], analyses=top), tmp_path / "run")
    if labelled == "new":
        with pytest.raises(RequestError, match="kept images per predicted class"):
            extended(tmp_path / "run", two["uri"], tmp_path / "more", labels=files[1])
        assert not (tmp_path / "more").exists()
        return
    extended(tmp_path / "run", two["uri"], tmp_path / "more", labels=files[1])
    both = {"uri": [str(place) for place in places], "labels": files}
    run_inline(small_spec(data=both, layers=["relu2"], analyses=top), tmp_path / "all")
    assert_same_results(tmp_path / "all", tmp_path / "more")
    assert verify(str(tmp_path / "more"), 5).faults == []


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"))


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ({"ids": ["b/003.png", 1]}, ["a/002.png", "b/003.png"]),
        ({"without": [0, "b/001.png"]}, ["a/002.png", "b/003.png"]),
        ({"ids": [0, 3], "without": ["b/003.png"]}, ["a/000.png"]),
    ],
)
def test_a_choice_of_images_stays_what_it_was_and_new_ones_all_take_part(
    tmp_path: Path, where: dict[str, Any], kept: list[str]
) -> None:
    write_photographs(tmp_path / "one", 4)
    write_photographs(tmp_path / "two", 2)
    data = {"uri": str(tmp_path / "one"), "where": where}
    run_inline(small_spec(data=data, layers=["relu2"], analyses=[{"kind": "top"}]), tmp_path / "1")
    assert deconvoy.open(tmp_path / "1").images()["uri"].to_pylist() == kept
    extended(tmp_path / "1", str(tmp_path / "two"), tmp_path / "2")
    extended(tmp_path / "2", "shapes?size=3&seed=5", tmp_path / "3")
    found = deconvoy.open(tmp_path / "3").images()["uri"].to_pylist()
    assert found == [*kept, "+1:a/000.png", "+1:b/001.png", "+2:0", "+2:1", "+2:2"]
    assert verify(str(tmp_path / "3"), 20).faults == []


def test_a_run_of_a_file_called_like_one_of_a_further_place_is_not_extended(
    tmp_path: Path,
) -> None:
    """Alone it is left out by its name, which beside another place would mean that one's."""
    for number, path in enumerate(write_photographs(tmp_path / "one", 3)):
        path.rename(tmp_path / f"one/{['x', '+1:x', 'y'][number]}.png")
    data = {"uri": str(tmp_path / "one"), "where": {"without": ["+1:x.png"]}}
    run_inline(small_spec(data=data, layers=["relu2"], analyses=[{"kind": "top"}]), tmp_path / "1")
    with pytest.raises(RequestError, match="has '\\+1:x.png', but"):
        extended(tmp_path / "1", "shapes?size=3&seed=5", tmp_path / "2")


def test_a_run_that_changes_while_it_is_copied_is_refused(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = iter(["before", "after"])
    monkeypatch.setattr(extend, "digest_of", lambda _: next(digests))
    with pytest.raises(RequestError, match="was replaced while it was copied"):
        extend.create(str(old), NEW, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_whose_images_would_change_places_is_not_extended(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As files do that come between the two looks at them."""
    other = small_spec(data={"uri": ["shapes?size=36&seed=1", NEW]})
    monkeypatch.setattr(extend, "extended", lambda *_: other)
    with pytest.raises(RequestError, match="would not be the same with the new ones after them"):
        extend.create(str(old), NEW, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
