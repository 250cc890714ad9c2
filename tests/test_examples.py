"""Test what is kept besides the strongest hits: by hand, against all maxima, and across shards."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import deconvoy
from deconvoy import queries
from deconvoy.errors import RequestError, RunNotFound
from deconvoy.schema import histogram_edges
from tests.runs import (
    all_maxima,
    assert_same_results,
    run_inline,
    run_on_ray,
    small_spec,
    write_photographs,
)
from workers import pipeline
from workers.examples import Entries, bands_of_bins, folded, lowest, rankings_of, uniform
from workers.job import settle
from workers.plan import plan
from workers.verify import verify

TOP = {"kind": "top", "bottom": 3, "per_class": 2, "bands": {"count": 4, "examples": 2}}


def entries_of(*rows: tuple[int, int, float, int]) -> Entries:
    """unit, group, key, image."""
    unit, group, key, image = (np.array(column) for column in zip(*rows, strict=True))
    ids = image.astype(np.int64)
    return Entries(
        unit.astype(np.int32), group.astype(np.int32), key.astype(np.float64),
        key.astype(np.float32), ids, content=ids,
    )  # fmt: skip


def test_the_lowest_keys_stay_by_image_among_equals() -> None:
    given = entries_of((0, 0, 2, 5), (0, 0, 1, 9), (0, 0, 1, 3), (0, 1, 7, 1), (1, 0, 4, 4))
    kept, rank = lowest(given, 2)
    assert kept.image.tolist() == [3, 9, 1, 4]
    assert rank.tolist() == [0, 1, 0, 0]


def test_folding_in_any_order_and_cut_is_the_same() -> None:
    rng = np.random.default_rng(0)
    rows = [
        (int(rng.integers(3)), int(rng.integers(2)), float(rng.integers(9)), i) for i in range(200)
    ]
    spec = small_spec(analyses=[TOP])
    (ranking, *_) = rankings_of(spec.top, 0)
    whole = lowest(entries_of(*rows), ranking.k)[0]
    for _ in range(20):
        order = rng.permutation(200)
        cuts = np.split(order, sorted(rng.integers(0, 200, 4)))
        parts = [{"bottom": entries_of(*(rows[i] for i in cut))} for cut in cuts if len(cut)]
        found = folded(parts, [ranking])["bottom"]
        assert (found.image == whole.image).all() and (found.unit == whole.unit).all()


def test_draws_are_even_and_depend_on_unit_image_and_seed() -> None:
    unit, image = np.divmod(np.arange(100_000), 1000)
    drawn = uniform(3, unit, image)
    assert ((drawn >= 0) & (drawn < 1)).all()
    counts = np.histogram(drawn, 20, (0, 1))[0]
    assert abs(counts - 5000).max() < 5 * np.sqrt(5000)
    assert len(np.unique(drawn)) == 100_000
    assert (uniform(4, unit, image) != drawn).all()
    table = drawn.reshape(100, 1000)
    assert abs(np.corrcoef(table)[0, 1:]).max() < 0.15


def test_bands_are_quarters_of_the_images_as_near_as_bins_allow() -> None:
    histogram = np.array([[0, 10, 10, 0, 10, 10], [40, 0, 0, 0, 0, 0], [1, 1, 0, 98, 0, 0]])
    bands = bands_of_bins(histogram, 4)
    assert bands[0].tolist() == [0, 0, 1, 2, 2, 3]
    assert bands[1][0] == 2  # all in one bin: its middle
    assert bands[2][3] == 2 and bands[2][:2].tolist() == [0, 0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("examples") / "run"
    run_inline(small_spec(analyses=[TOP]), url)
    return url


def test_examples_are_those_of_all_maxima(finished: Path) -> None:
    run = deconvoy.open(finished)
    labels = np.arange(40) % 10
    for layer, maxima in all_maxima(finished).items():
        rectified = layer != "logits"
        for unit in range(0, maxima.shape[1], 7):
            scores = maxima[:, unit]
            for kind, expected in (
                ("bottom", {0: sorted(range(40), key=lambda i: (scores[i], i))[:3]}),
                ("class", strongest_of_classes(scores, labels, rectified)),
            ):
                rows = of_unit(run, layer, kind, unit)
                for group, images in expected.items():
                    ours = [row for row in rows if row["group"] == group]
                    there = scores[[row["image_id"] for row in ours]]
                    np.testing.assert_allclose(there, scores[images], rtol=1e-5, atol=1e-6)
                    assert [row["rank"] for row in ours] == list(range(len(images)))
                assert {row["group"] for row in rows} == {g for g, i in expected.items() if i}


def test_a_query_gives_the_examples_of_a_unit(finished: Path) -> None:
    run = deconvoy.open(finished)
    asked = queries.ask(run, "examples", ["relu2", "band", "5"]).to_pylist()
    assert asked == of_unit(run, "relu2", "band", 5) and asked


def of_unit(run: deconvoy.Run, layer: str, kind: str, unit: int) -> list[dict[str, Any]]:
    return [row for row in run.examples(layer, kind).to_pylist() if row["unit"] == unit]


def strongest_of_classes(
    scores: np.ndarray, labels: np.ndarray, rectified: bool
) -> dict[int, list[int]]:
    return {
        label: sorted(
            (i for i in range(40) if labels[i] == label and (scores[i] > 0 or not rectified)),
            key=lambda i: (-scores[i], i),
        )[:2]
        for label in range(10)
    }


def test_bands_hold_images_of_their_strength_drawn_by_the_seed(finished: Path) -> None:
    run = deconvoy.open(finished)
    edges = histogram_edges()
    for layer, maxima in all_maxima(finished).items():
        histogram = np.stack([np.histogram(column, edges)[0] for column in maxima.T])
        bands = bands_of_bins(histogram, 4)
        for unit in range(0, maxima.shape[1], 7):
            bin_of = np.searchsorted(edges, maxima[:, unit].astype(np.float32), side="right") - 1
            number = unit_number(run, layer, unit)
            key = uniform(0, np.full(40, number), np.arange(40))
            for band in range(4):
                inside = [i for i in range(40) if bands[unit, bin_of[i]] == band]
                expected = sorted(inside, key=lambda i: key[i])[:2]
                rows = [r for r in of_unit(run, layer, "band", unit) if r["group"] == band]
                assert [row["image_id"] for row in rows] == expected


def unit_number(run: deconvoy.Run, layer: str, unit: int) -> int:
    """Of all units of the run: what the draw is made by."""
    before = run.layer_names[: run.layer_names.index(layer)]
    return sum(int(str(run.layer_group(name).attrs["units"])) for name in before) + unit


@pytest.mark.ray
def test_examples_do_not_depend_on_workers_threads_or_shards(
    ray_cluster: str, finished: Path, tmp_path: Path
) -> None:
    run_on_ray(small_spec(analyses=[TOP]), tmp_path / "ray", workers=2)
    assert_same_results(finished, tmp_path / "ray")
    run_inline(small_spec(analyses=[TOP], compute={"shard_size": 12}), tmp_path / "cut")
    for kind in ("bottom", "class", "band"):
        assert rows_of(tmp_path / "cut", kind) == rows_of(finished, kind)


def rows_of(url: Path, kind: str) -> list[tuple[Any, ...]]:
    """What does not depend on where shards are cut: ids do, and what is drawn by them.  Of equal
    images any may be the one that is kept."""
    run = deconvoy.open(url)
    drop = ["image_id", "uri", "label"] + (["score"] if kind == "band" else [])
    return [
        tuple(row.values())
        for layer in run.layer_names
        for row in run.examples(layer, kind).drop_columns(drop).to_pylist()
    ]


@pytest.mark.parametrize("where", [{}, {"wrong": True}])
def test_equal_images_count_once_however_shards_are_cut(
    tmp_path: Path, where: dict[str, Any]
) -> None:
    """Copies lie in other classes, so that one may be predicted rightly and the other not."""
    folder = tmp_path / "images"
    for number, place in enumerate(write_photographs(folder, 9)):
        if number % 4:  # dull ones, so that the others are outliers
            Image.open(place).point(lambda value: 96 + value // 4).save(place)
        other = folder / ("b" if place.parent.name == "a" else "a")
        shutil.copy(place, other / f"copy-{place.name}")
    top = {**TOP, "k": 3, "outliers": {"multiple": 1.05, "at_most": 3}}
    found = []
    for size in (2, 8, 64):
        spec = small_spec(
            model={"name": "deconvoy/zfnet_small", "classes": ["a", "b", *"cdefghij"]},
            data={"uri": str(folder), "distinct": True, "where": where},
            layers=["relu2", "logits"],
            analyses=[top],
            compute={"shard_size": size, "batch_size": 4},
        )
        url = tmp_path / f"run{size}"
        run_inline(spec, url)
        run = deconvoy.open(url)
        outliers = [run.outliers(layer).drop_columns(["image_id"]) for layer in run.layer_names]
        kinds = [rows_of(url, kind) for kind in ("bottom", "class", "band")]
        hits = run.table().drop_columns(["image_id"]).to_pylist()
        assert hits and outliers[0].num_rows
        for layer in run.layer_names:
            for table in (run.examples(layer, "bottom"), run.examples(layer, "band")):
                rows = table.to_pylist()
                pictures = [(r["unit"], r["group"], Path(r["uri"]).name[-7:]) for r in rows]
                assert len(set(pictures)) == len(pictures)
            names = [Path(uri).name[-7:] for uri in run.outliers(layer)["uri"].to_pylist()]
            assert len(set(names)) == len(names)
        found.append((hits, kinds, [table.to_pylist() for table in outliers]))
    assert found[0] == found[1] == found[2]


def test_a_killed_scan_goes_on_to_the_same_examples(finished: Path, tmp_path: Path) -> None:
    from workers.executors.inline import InlineExecutor

    job, run = pipeline.create(small_spec(analyses=[TOP]), str(tmp_path / "run"))

    def stop(advance: pipeline.Advance) -> None:
        if advance.done >= 16:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        pipeline.execute(job, run, InlineExecutor(), stop)
    job, run = pipeline.reopen(str(tmp_path / "run"))
    pipeline.execute(job, run, InlineExecutor(), lambda advance: None)
    assert_same_results(finished, tmp_path / "run")


def test_without_labels_classes_are_the_predicted_ones(tmp_path: Path) -> None:
    write_photographs(tmp_path / "images", 12)
    spec = small_spec(data={"uri": str(tmp_path / "images")}, layers=["relu2"], analyses=[TOP])
    run_inline(spec, tmp_path / "run")
    rows = deconvoy.open(tmp_path / "run").examples("relu2", "class").to_pylist()
    assert rows and all(row["group"] == row["label"] for row in rows)


def test_what_was_not_asked_for_is_told(tmp_path: Path) -> None:
    run_inline(small_spec(layers=["relu2"], analyses=[{"kind": "top"}]), tmp_path / "run")
    with pytest.raises(RunNotFound, match="ask for them with bottom of the top analysis"):
        deconvoy.open(tmp_path / "run").examples("relu2", "bottom")


def test_more_than_memory_holds_is_refused(tmp_path: Path) -> None:
    top = {"kind": "top", "per_class": 100}
    spec = small_spec(model={"name": "torchvision/squeezenet1_1"}, layers="all", analyses=[top])
    with pytest.raises(RequestError, match=r"4,944 units, 1,000 classes\).*name fewer layers"):
        pipeline.create(spec, str(tmp_path / "run"))


def test_verify_finds_a_run_with_examples_whole_and_an_altered_one_not(
    finished: Path, tmp_path: Path
) -> None:
    assert verify(str(finished), 0).faults == []
    shutil.copytree(finished, tmp_path / "run")
    place = tmp_path / "run/layers/relu2/class_score/c/0/0/0"
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(content)
    assert any("class_score" in str(fault) for fault in verify(str(tmp_path / "run"), 0).faults)


def test_plan_counts_the_bytes_of_examples() -> None:
    with_examples, without = (
        plan(settle(small_spec(analyses=[top]))).bytes for top in (TOP, {"kind": "top"})
    )
    assert with_examples["tables"] > without["tables"]
    assert with_examples["ledger"] > without["ledger"]
