"""Queries against answers counted again, slowly, from the table of hits; and asking by name."""

import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr

import deconvoy
from deconvoy import queries
from deconvoy.errors import DeconvoyError, RequestError, RunNotFound
from deconvoy.schema import layer_path
from tests.runs import LAYERS, run_inline, small_spec, write_photographs
from workers.shapes import CLASSES

Row = dict[str, Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("queried") / "run"
    run_inline(small_spec(analyses=[{"kind": "top"}]), url)
    return url


@pytest.fixture(scope="module")
def run(place: Path) -> deconvoy.Run:
    return deconvoy.open(place)


@pytest.fixture(scope="module")
def hits(run: deconvoy.Run) -> dict[tuple[str, int], list[Row]]:
    """The hits of every living unit, strongest first."""
    found: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in run.table().to_pylist():
        found[row["layer"], row["unit"]].append(row)
    return found


Hits = dict[tuple[str, int], list[Row]]


def test_purity_is_the_share_of_the_commonest_class(run: deconvoy.Run, hits: Hits) -> None:
    rows = queries.purity(run).to_pylist()
    assert [(row["layer"], row["unit"]) for row in rows] == list(hits)
    for row in rows:
        own = hits[row["layer"], row["unit"]]
        # most_common keeps the order of first sight among equals, which is that of the ranks
        label, count = Counter(hit["label"] for hit in own).most_common(1)[0]
        assert row["label"] == label and row["class"] == CLASSES[label]
        assert row["purity"] == pytest.approx(count / len(own)) and row["hits"] == len(own)
    assert queries.purity(run, "relu5").to_pylist() == [r for r in rows if r["layer"] == "relu5"]


def test_hits_without_label_are_of_no_class(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path / "run")
    label: Any = zarr.open_group(tmp_path / "run", mode="r+")["layers/relu2/label"]
    label[0], label[1] = [3, 3, -1, -1, -1, -1, -1, -1, -1], -1
    rows = queries.purity(deconvoy.open(tmp_path / "run"), "relu2").to_pylist()
    assert (rows[0]["label"], rows[0]["purity"], rows[0]["hits"]) == (3, 2 / 9, 9)
    assert (rows[1]["label"], rows[1]["class"], rows[1]["purity"]) == (None, None, 0.0)


def test_dead_units_are_those_without_hits(run: deconvoy.Run, hits: Hits) -> None:
    rows = queries.dead(run).to_pylist()
    units = {layer: int(str(run.layer_group(layer).attrs["units"])) for layer in LAYERS}
    everyone = [(layer, unit) for layer in LAYERS for unit in range(units[layer])]
    assert [(r["layer"], r["unit"]) for r in rows] == [u for u in everyone if u not in hits]
    assert rows and not queries.dead(run, "logits").num_rows


def test_images_most_hit_are_counted_by_unit_and_layer(run: deconvoy.Run, hits: Hits) -> None:
    units = Counter(hit["image_id"] for own in hits.values() for hit in own)
    rows = queries.images_most_hit(run, limit=0).to_pylist()
    assert {row["image_id"]: row["units"] for row in rows} == units
    assert [r["units"] for r in rows] == sorted(units.values(), reverse=True)
    first = rows[0]
    layers = {unit[0] for unit, own in hits.items() if first["image_id"] in _images(own)}
    assert first["layers"] == len(layers) and first["uri"] == str(first["image_id"])
    assert first["class"] == CLASSES[first["image_id"] % 10]
    assert queries.images_most_hit(run, limit=3).to_pylist() == rows[:3]


def test_selective_units_are_sorted_by_purity_then_hits(run: deconvoy.Run) -> None:
    every = queries.purity(run).to_pylist()
    expected = sorted(every, key=lambda row: (-row["purity"], -row["hits"]))
    assert queries.selective(run, limit=0).to_pylist() == expected
    boats = [row for row in expected if row["class"] == "boat" and row["layer"] == "relu5"]
    assert boats and queries.selective(run, "boat", "relu5", 0).to_pylist() == boats
    index = str(CLASSES.index("boat"))
    assert queries.selective(run, index, "relu5", 1).to_pylist() == boats[:1]


@pytest.mark.parametrize("within", [None, "relu7"])
def test_nearest_units_share_most_images(run: deconvoy.Run, hits: Hits, within: str | None) -> None:
    own = _images(hits["relu5", 1])
    expected = []
    for (layer, unit), others in hits.items():
        shared = own & _images(others)
        if shared and (layer, unit) != ("relu5", 1) and within in (None, layer):
            jaccard = len(shared) / len(own | _images(others))
            row = {"layer": layer, "unit": unit, "shared": len(shared), "jaccard": jaccard}
            expected.append(row)
    expected.sort(key=lambda row: -row["jaccard"])
    assert queries.nearest(run, "relu5", 1, within, limit=0).to_pylist() == expected
    assert queries.nearest(run, "relu5", 1, within, limit=2).to_pylist() == expected[:2]


def test_a_dead_unit_is_near_to_none(run: deconvoy.Run) -> None:
    unit = queries.dead(run, "relu7")["unit"][0].as_py()
    with pytest.raises(RequestError, match=f"Unit {unit} of layer 'relu7' has no hits"):
        queries.nearest(run, "relu7", unit)


def test_an_image_is_found_in_every_unit_that_has_it(run: deconvoy.Run) -> None:
    expected = [row for row in run.table().to_pylist() if row["image_id"] == 7]
    place = {layer: number for number, layer in enumerate(LAYERS)}
    expected.sort(key=lambda row: (place[row["layer"]], row["rank"], -row["score"]))
    left_out = ("image_id", "uri", "label")
    told = [{k: v for k, v in row.items() if k not in left_out} for row in expected]
    assert queries.image(run, 7).to_pylist() == queries.image(run, "7").to_pylist() == told
    assert queries.image(run, 7, "relu2").to_pylist() == [r for r in told if r["layer"] == "relu2"]


def test_images_are_found_by_path_and_near_ones_named(tmp_path: Path) -> None:
    write_photographs(tmp_path / "photos", 6)
    spec = small_spec(
        data={"uri": str(tmp_path / "photos")}, layers=["relu2"], analyses=[{"kind": "top"}]
    )
    run_inline(spec, tmp_path / "run")
    run = deconvoy.open(tmp_path / "run")
    assert run.images()["uri"][1].as_py() == "a/002.png"
    assert queries.image(run, "a/002.png").equals(queries.image(run, 1))
    with pytest.raises(RunNotFound, match="no image 'photos/b/003.png'; nearest: b/003.png"):
        queries.image(run, "photos/b/003.png")
    with pytest.raises(RunNotFound, match="no image 6: ids run from 0 to 5"):
        queries.image(run, 6)


def _images(own: list[Row]) -> set[int]:
    return {hit["image_id"] for hit in own}


# -- by name -----------------------------------------------------------------------------------


def test_the_registry_holds_the_queries_with_their_arguments() -> None:
    assert list(queries.QUERIES) == [
        *("purity", "examples", "outliers", "dead", "images-most-hit", "selective"),
        *("nearest", "image", "localisation", "invariance"),
        *("correspondence", "evolution", "probe", "study", "study-curves", "settled"),
    ]
    nearest = queries.QUERIES["nearest"]
    told = [(a.name, a.type, a.required, a.default) for a in nearest.arguments]
    assert told == [
        ("layer", str, True, None),
        ("unit", int, True, None),
        ("within", str, False, None),
        ("limit", int, False, queries.LIMIT),
    ]
    assert queries.usage(nearest) == "nearest LAYER UNIT [WITHIN] [LIMIT]"
    for query in queries.QUERIES.values():
        assert query.doc.endswith(".") and all(argument.doc for argument in query.arguments)


@pytest.mark.parametrize(
    ("name", "given", "named", "same"),
    [
        ("purity", [], {}, lambda run: queries.purity(run)),
        ("purity", ["relu2"], {}, lambda run: queries.purity(run, "relu2")),
        ("selective", ["car"], {"limit": "2"}, lambda run: queries.selective(run, "car", limit=2)),
        ("selective", [], {"class": "car"}, lambda run: queries.selective(run, "car")),
        ("nearest", ["relu2", "3"], {}, lambda run: queries.nearest(run, "relu2", 3)),
        ("image", ["5"], {"layer": "relu7"}, lambda run: queries.image(run, 5, "relu7")),
    ],
)
def test_asking_by_name_turns_text_into_arguments(
    run: deconvoy.Run, name: str, given: list[str], named: dict[str, str], same: Any
) -> None:
    found = queries.ask(run, name, given, named)
    assert isinstance(found, pa.Table) and found.equals(same(run))


@pytest.mark.parametrize(
    ("name", "given", "named", "says"),
    [
        ("puriti", [], {}, "no query 'puriti'; nearest: purity"),
        ("zzz", [], {}, "there are: purity, examples, outliers, dead"),
        ("purity", [], {"layers": "relu2"}, "no argument 'layers'; nearest: layer"),
        ("dead", ["relu2", "3"], {}, r"at most 1 arguments \(dead \[LAYER\]\), not 2"),
        ("nearest", ["relu2"], {}, "needs 'unit'"),
        ("nearest", ["relu2", "x"], {}, "unit is 'x', but it must be a whole number"),
        ("nearest", ["relu2", "1"], {"limit": "-1"}, "limit is '-1'"),
        ("purity", ["relu2"], {"layer": "relu5"}, "'layer' twice"),
        ("purity", ["relu22"], {}, "nearest: relu2"),
        ("dead", ["relu22"], {}, "nearest: relu2"),
        ("nearest", ["relu2", "1", "relu22"], {}, "nearest: relu2"),
        ("nearest", ["relu2", "64"], {}, "units 0 to 63"),
        ("selective", ["boot"], {}, "no class 'boot'; nearest: boat"),
        ("selective", ["10"], {}, "no class '10'"),
        ("image", ["40"], {}, "no image 40"),
    ],
)
def test_wrong_questions_get_a_sentence(
    run: deconvoy.Run, name: str, given: list[str], named: dict[str, str], says: str
) -> None:
    with pytest.raises(DeconvoyError, match=says) as caught:
        queries.ask(run, name, given, named)
    assert caught.value.exit_code == 2


def test_answers_can_be_written_as_json(run: deconvoy.Run) -> None:
    for name, given in (("purity", []), ("nearest", ["relu2", "0"]), ("image", ["0"])):
        assert json.loads(json.dumps(queries.ask(run, name, given).to_pylist()))


# -- two runs ----------------------------------------------------------------------------------


def test_a_run_differs_in_nothing_from_itself(run: deconvoy.Run) -> None:
    for row in queries.diff(run, run).to_pylist():
        assert (row["kept"], row["units_changed"], row["score_change"]) == (1.0, 0, 0.0)
        assert row["dead_before"] == row["dead_after"]
    assert queries.overall(run, run)["differing"] == []


def test_diff_counts_what_was_kept_and_what_changed(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path / "after")
    group = zarr.open_group(tmp_path / "after", mode="r+")
    image: Any = group["layers/relu2/image"]
    score: Any = group["layers/relu2/score"]
    before = np.asarray(image[...])
    assert (before >= 0).all()
    other = next(i for i in range(40) if i not in before[0])
    image[0, 8] = other  # one hit is another image's
    image[1], score[1] = -1, -np.inf  # and one unit has died
    density: Any = group["layers/relu2/density"]
    density[1] = 0.0
    score[2:] = np.asarray(score[2:]) + 0.5
    a, b = deconvoy.open(place), deconvoy.open(tmp_path / "after")
    row = queries.diff(a, b).to_pylist()[0]
    pairs = before.size
    assert row["kept"] == pytest.approx((pairs - 1 - 9) / pairs)
    assert (row["units"], row["units_changed"]) == (64, 2)
    assert (row["dead_before"], row["dead_after"]) == (0, 1)
    assert row["score_change"] == pytest.approx(0.5 * 62 / 63, rel=1e-5)


def test_diff_of_units_is_what_became_of_each(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path / "after")
    group = zarr.open_group(tmp_path / "after", mode="r+")
    image: Any = group["layers/relu2/image"]
    score: Any = group["layers/relu2/score"]
    before = np.asarray(image[...])
    image[0, 8] = next(i for i in range(40) if i not in before[0])
    image[1], score[1] = -1, -np.inf
    score[2] = np.asarray(score[2]) + 0.5
    a, b = deconvoy.open(place), deconvoy.open(tmp_path / "after")
    first, second, *others = queries.diff_units(a, b, "relu2").to_pylist()
    assert (first["unit"], first["kept"], first["score_after"]) == (1, 0.0, None)
    assert first["score_before"] == pytest.approx(float(a.unit("relu2", 1).score.mean()))
    assert (second["unit"], second["kept"]) == (0, pytest.approx(8 / 9))
    assert [row["unit"] for row in others] == list(range(2, 64))
    assert all(row["kept"] == 1.0 for row in others)
    assert others[0]["score_after"] == pytest.approx(others[0]["score_before"] + 0.5)
    backwards = queries.diff_units(b, a, "relu2").to_pylist()[-1]
    assert (backwards["unit"], backwards["kept"], backwards["score_before"]) == (1, None, None)
    with pytest.raises(RunNotFound, match="relu3"):
        queries.diff_units(a, b, "relu3")


def test_hits_are_matched_by_path_where_the_ids_differ(tmp_path: Path) -> None:
    photos = write_photographs(tmp_path / "photos", 8)
    spec = small_spec(
        data={"uri": str(tmp_path / "photos")}, layers=["relu2"],
        analyses=[{"kind": "top", "k": 3}],
    )  # fmt: skip
    run_inline(spec, tmp_path / "before")
    shutil.copy(photos[0], photos[0].with_name("+first.png"))  # now every id is one more
    run_inline(spec, tmp_path / "after")
    a, b = deconvoy.open(tmp_path / "before"), deconvoy.open(tmp_path / "after")
    (row,) = queries.diff(a, b).to_pylist()
    assert row["kept"] > 0.6
    assert queries.overall(a, b)["differing"] == ["images"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layers": ["relu2", "relu4"]}, "only .*run' has layers relu5, relu7, logits; only .*other"
         "' has layer relu4"),
        ({"model": {"arguments": {"num_classes": 7}}}, "'logits' has 10 units in .* and 7 in"),
        ({"analyses": [{"kind": "top", "k": 4}]}, "keeps 9 hits a unit and .* 4"),
    ],
    ids=["layers", "units", "hits"],
)  # fmt: skip
def test_runs_of_other_layouts_are_refused(
    run: deconvoy.Run, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    fields: dict[str, Any] = {"analyses": [{"kind": "top"}], "data": {"uri": "shapes?size=4"}}
    run_inline(small_spec(**{**fields, **changes}), tmp_path / "other")
    with pytest.raises(RequestError, match=f"not of one layout.*{says}"):
        queries.diff(run, deconvoy.open(tmp_path / "other"))


def test_layers_without_results_are_told(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / layer_path("relu5"))
    with pytest.raises(RunNotFound, match="'relu5' .*has no results yet"):
        queries.purity(deconvoy.open(tmp_path / "run"))


def test_a_gap_in_the_ids_is_told_with_the_nearest(tmp_path: Path) -> None:
    places = ["shapes?size=5&seed=1", "shapes?size=4&seed=2"]
    spec = small_spec(data={"uri": places}, layers=["relu2"], analyses=[{"kind": "top"}])
    run_inline(spec, tmp_path / "run")
    with pytest.raises(RunNotFound, match="no image 6: no image has this id.*nearest: 4 and 8"):
        queries.image(deconvoy.open(tmp_path / "run"), 6)
