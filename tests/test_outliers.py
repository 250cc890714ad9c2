"""Test that outliers are left out: by hand, against all maxima, across shards and workers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import deconvoy
from deconvoy import queries
from deconvoy.errors import RunNotFound
from tests import reference
from tests.runs import (
    all_maxima,
    assert_same_results,
    resume_inline,
    run_inline,
    run_on_ray,
    small_spec,
    write_photographs,
)
from workers import pipeline
from workers.examples import Maxima
from workers.executors.inline import InlineExecutor
from workers.job import settle
from workers.outliers import NORM_BINS, NORM_EDGES, Norms, NormScan
from workers.plan import plan
from workers.verify import verify

MULTIPLE, AT_MOST = 1.1, 4

TOP = {"kind": "top", "k": 5, "outliers": {"multiple": MULTIPLE, "at_most": AT_MOST}}


def maxima_of(scores: np.ndarray, first: int = 0) -> Maxima:
    count, units = scores.shape
    return Maxima(
        np.arange(first, first + count),
        np.arange(first, first + count),
        np.ones(count, dtype=bool),
        np.zeros(count, np.int64),
        scores.astype(np.float32),
        np.ones(units, dtype=bool),
    )


def norms_of(scores: np.ndarray, at_most: int = 3, first: int = 0) -> Norms:
    scan = NormScan([slice(0, scores.shape[1])], at_most)
    scan.add(maxima_of(scores, first))
    return scan.norms


def test_an_image_of_a_norm_above_the_limit_is_left_out() -> None:
    scores = np.array([[3, 4], [3, 4], [0, 5], [5, 0], [12, 16], [9, 12.0]])  # 5 5 5 5 20 15
    (left_out,) = norms_of(scores).outliers(2.5)
    assert left_out.image.tolist() == [4, 5]
    assert left_out.norm.tolist() == [20, 15]
    assert left_out.limit == pytest.approx(2.5 * 5, rel=0.022) and left_out.limit <= 12.5
    (left_out,) = norms_of(scores, at_most=1).outliers(2.5)
    assert left_out.image.tolist() == [4]


def test_where_the_median_image_excites_nothing_none_is_left_out() -> None:
    (left_out,) = norms_of(np.array([[0, 0], [0, 0], [0, 0], [1, 1.0]])).outliers(2.0)
    assert len(left_out.image) == 0 and left_out.limit == np.inf


def test_one_image_is_no_outlier_and_no_image_has_none() -> None:
    (left_out,) = norms_of(np.array([[7.0, 7]])).outliers(1.5)
    assert len(left_out.image) == 0
    (left_out,) = norms_of(np.zeros((0, 2))).outliers(1.5)
    assert len(left_out.image) == 0


def test_images_that_may_not_be_hits_do_not_count() -> None:
    batch = maxima_of(np.array([[1.0], [1], [1], [9]]))
    batch.eligible[3] = False
    scan = NormScan([slice(0, 1)], 3)
    scan.add(batch)
    assert scan.norms.histogram.sum() == 3
    assert 3 not in scan.norms.largest.image


def test_norms_fold_in_any_cut_and_order() -> None:
    scores = np.random.default_rng(0).exponential(size=(60, 7))
    whole = norms_of(scores)
    for cut in (1, 17, 59):
        one, other = norms_of(scores[:cut]), norms_of(scores[cut:], first=cut)
        for folded in (one.plus(other, 3), other.plus(one, 3)):
            assert (folded.histogram == whole.histogram).all()
            assert folded.largest.image.tolist() == whole.largest.image.tolist()


def test_bins_cover_every_norm_and_are_fine() -> None:
    assert len(NORM_EDGES) == NORM_BINS - 1
    assert NORM_EDGES[0] < 1e-6 and NORM_EDGES[-1] > 1e6
    assert (NORM_EDGES[1:] / NORM_EDGES[:-1]).max() < 1.022


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("outliers") / "run"
    run_inline(small_spec(analyses=[TOP, {"kind": "projection", "units": {"ids": [0, 40]}}]), url)
    return url


def test_hits_are_the_strongest_of_the_images_not_left_out(finished: Path) -> None:
    run = deconvoy.open(finished)
    counts = []
    for layer, maxima in all_maxima(finished).items():
        told = run.outliers(layer).to_pylist()
        left_out, median = reference.outliers(maxima, MULTIPLE, AT_MOST)
        counts.append(len(left_out))
        assert [row["image_id"] for row in told] == left_out
        norms = np.linalg.norm(maxima[left_out], axis=1)
        np.testing.assert_allclose([row["norm"] for row in told], norms, rtol=1e-5)
        assert all(row["median"] == pytest.approx(median, rel=0.022) for row in told)
        group = run.layer_group(layer)
        image, score = (np.asarray(group[name][:]) for name in ("image", "score"))
        assert not np.isin(image, left_out).any()
        for unit in range(maxima.shape[1]):
            others = {i: maxima[i, unit] for i in range(40) if i not in left_out}
            best = sorted(others.values(), reverse=True)[:5]
            if layer != "logits":
                best = [value for value in best if value > 0]
            found = score[unit][image[unit] >= 0]
            np.testing.assert_allclose(found, best, rtol=1e-5, atol=1e-6)
    assert max(counts) == AT_MOST and 0 < min(counts)


def test_left_out_images_count_in_everything_else(finished: Path, tmp_path: Path) -> None:
    run_inline(small_spec(analyses=[{"kind": "top", "k": 5}]), tmp_path / "plain")
    left, plain = deconvoy.open(finished), deconvoy.open(tmp_path / "plain")
    for name in ("mean", "density", "histogram"):
        ours, theirs = (np.asarray(r.layer_group("relu5")[name][:]) for r in (left, plain))
        assert (ours == theirs).all()
    assert left.attributes["results"] == plain.attributes["results"]


def test_the_query_lists_them_by_layer(finished: Path) -> None:
    run = deconvoy.open(finished)
    asked = queries.ask(run, "outliers", ["relu2"]).to_pylist()
    assert asked == run.outliers("relu2").to_pylist() and asked
    everywhere = queries.ask(run, "outliers", []).to_pylist()
    assert {row["layer"] for row in everywhere} == set(run.layer_names)


def test_a_test_card_among_photographs_is_left_out(tmp_path: Path) -> None:
    write_photographs(tmp_path / "images", 24)
    for photograph in (tmp_path / "images").rglob("*.png"):  # dull ones
        Image.open(photograph).point(lambda value: 112 + value // 8).save(photograph)
    board = np.indices((64, 64)).sum(0) // 2 % 2 * 255
    Image.fromarray(board.astype(np.uint8)).convert("RGB").save(tmp_path / "images/card.png")
    spec = small_spec(
        data={"uri": str(tmp_path / "images")},
        layers=["relu2"],
        analyses=[{"kind": "top", "outliers": {}}],
    )
    run_inline(spec, tmp_path / "run")
    run = deconvoy.open(tmp_path / "run")
    (row,) = run.outliers("relu2").to_pylist()
    assert row["uri"] == "card.png" and row["norm"] > 3 * row["median"]
    assert "card.png" not in run.table("relu2").column("uri").to_pylist()


@pytest.mark.ray
def test_workers_and_shards_change_nothing(
    ray_cluster: str, finished: Path, tmp_path: Path
) -> None:
    spec = deconvoy.open(finished).spec
    run_on_ray(spec, tmp_path / "ray", workers=2)
    assert_same_results(finished, tmp_path / "ray")
    cut = spec.model_copy(update={"compute": spec.compute.model_copy(update={"shard_size": 20})})
    run_inline(cut, tmp_path / "cut")
    for layer in deconvoy.open(finished).layer_names:
        assert rows_of(tmp_path / "cut", layer) == rows_of(finished, layer)


def rows_of(url: Path, layer: str) -> list[dict[str, Any]]:
    """What does not depend on where shards are cut: ids do."""
    rows = deconvoy.open(url).outliers(layer).to_pylist()
    return [{"uri": row["uri"], "norm": row["norm"], "median": row["median"]} for row in rows]


def test_a_killed_scan_goes_on_to_the_same(finished: Path, tmp_path: Path) -> None:
    job, run = pipeline.create(deconvoy.open(finished).spec, str(tmp_path / "run"))

    def stop(advance: pipeline.Advance) -> None:
        if advance.done >= 16:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        pipeline.execute(job, run, InlineExecutor(), stop)
    resume_inline(tmp_path / "run")
    assert_same_results(finished, tmp_path / "run")


def test_verify_leaves_the_same_out(finished: Path) -> None:
    assert verify(str(finished), 5).faults == []


def test_plan_counts_the_spare_hits() -> None:
    spare, none = (
        plan(settle(small_spec(analyses=[top]))) for top in (TOP, {"kind": "top", "k": 5})
    )
    assert spare.bytes["ledger"] > none.bytes["ledger"]


def test_what_was_not_asked_for_is_told(tmp_path: Path) -> None:
    run_inline(small_spec(layers=["relu2"], analyses=[{"kind": "top"}]), tmp_path / "run")
    with pytest.raises(RunNotFound, match="ask for it with outliers of the top analysis"):
        deconvoy.open(tmp_path / "run").outliers("relu2")
