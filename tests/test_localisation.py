"""The pointing game on grids made by hand, and as a query of a run."""

import json
from pathlib import Path

import numpy as np
import pytest

import deconvoy
from deconvoy import queries
from deconvoy.errors import RunNotFound
from deconvoy.localisation import localisation_of
from deconvoy.occlusion import Occlusion
from tests.occlusions import handmade
from tests.runs import run_inline, small_spec
from tests.typing_in import Type, type_
from workers.shapes import render

__all__ = ["type_"]

# The centres of the square in 40 pixels are at 5 and 35.
UPPER_RIGHT, MIDDLE = [0, 30, 10, 40], [15, 15, 25, 25]


def boxed(*boxes: list[int], probability: object = ((0.9, 0.2), (0.8, 0.7))) -> Occlusion:
    return handmade(probability, boxes=np.array(boxes, np.int32))


def test_a_hit_is_an_image_whose_weakest_place_is_in_a_box() -> None:
    found = localisation_of([boxed(UPPER_RIGHT), boxed(MIDDLE)], "true classes")
    assert found.rows["hit"].to_pylist() == [1.0, 0.0]
    assert found.rows["centre"].to_pylist() == [False, True]
    assert found.rows["chance"].to_pylist() == [0.25, 0.0]
    assert (found.share("hit"), found.share("chance"), found.unmoved) == (0.5, 0.125, 0)
    first = found.rows.to_pylist()[0]
    assert (first["y"], first["x"], first["boxes"], first["class"]) == (5.0, 35.0, 1, "cat")
    assert first["lowest"] == pytest.approx(0.2) and first["clean_probability"] == 0.85


def test_any_of_several_boxes_counts_and_overlapping_ones_count_once() -> None:
    (row,) = localisation_of([boxed(MIDDLE, UPPER_RIGHT, UPPER_RIGHT)], "").rows.to_pylist()
    assert row["hit"] == 1 and row["centre"] and row["chance"] == 0.25 and row["boxes"] == 3


def test_of_equally_improbable_places_each_counts_its_share() -> None:
    tied = ((0.9, 0.2), (0.2, 0.2))
    found = localisation_of([boxed(UPPER_RIGHT, probability=tied)], "")
    assert found.share("hit") == pytest.approx(1 / 3) and found.unmoved == 0
    assert found.rows["places"].to_pylist() == [3]


def test_a_square_that_changes_nothing_is_right_as_often_as_chance_and_told() -> None:
    same = ((1.0, 1.0), (1.0, 1.0))
    found = localisation_of([boxed(box, probability=same) for box in (UPPER_RIGHT, MIDDLE)], "true")
    assert found.rows["hit"].to_pylist() == found.rows["chance"].to_pylist() == [0.25, 0.0]
    assert found.unmoved == 2 and "(true; in 2 the square changes nothing)" in found.told()


def test_a_box_ends_before_its_far_corner() -> None:
    assert localisation_of([boxed([0, 20, 5, 40])], "").share("hit") == 0, "the point is in row 5"
    assert localisation_of([boxed([5, 35, 6, 36])], "").share("hit") == 1


def test_images_without_boxes_take_no_part_and_are_counted() -> None:
    found = localisation_of([boxed(UPPER_RIGHT), handmade(), handmade()], "true classes")
    assert (len(found.rows), found.without_boxes, found.share("hit")) == (1, 2, 1.0)
    assert found.told() == (
        "localisation: in 100% of 1 occluded images the class is least probable where the object "
        "is covered; the image's centre would be right in 0%, chance in 25% (true classes; 2 more "
        "have no box)"
    )
    nothing = localisation_of([handmade()], "true classes")
    assert nothing.share("hit") is None and "none of the 1 occluded images has a box" in (
        nothing.told()
    )


def test_on_a_large_grid_all_numbers_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(4)
    images = []
    for _ in range(20):
        corners = np.sort(rng.integers(0, 41, (3, 2, 2)), axis=1) + [[[0, 0]], [[1, 1]], [[2, 2]]]
        boxes = [[y0, x0, y1 + 1, x1 + 1] for (y0, x0), (y1, x1) in corners.tolist()]
        images.append(boxed(*boxes, probability=rng.random((7, 5))))
    found = localisation_of(images, "")
    for one, row in zip(images, found.rows.to_pylist(), strict=True):
        inside, lowest, at = 0, 2.0, (0.0, 0.0)
        for i, top in enumerate(one.y.tolist()):
            for j, left in enumerate(one.x.tolist()):
                y, x = top + 5, left + 5
                inside += any(b[0] <= y < b[2] and b[1] <= x < b[3] for b in one.boxes.tolist())
                if one.probability[i, j] < lowest:
                    lowest, at = float(one.probability[i, j]), (y, x)
        assert row["chance"] == pytest.approx(inside / 35)
        assert (row["y"], row["x"]) == at
        hit = any(b[0] <= at[0] < b[2] and b[1] <= at[1] < b[3] for b in one.boxes.tolist())
        assert row["hit"] == hit


@pytest.fixture(scope="module")
def occluded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of shapes, five of them under a square."""
    url = tmp_path_factory.mktemp("localisation") / "run"
    square = {"kind": "occlusion", "images": {"sample": 5}, "patch": 16, "stride": 16}
    spec = small_spec(
        data={"uri": "shapes?size=12&seed=1"},
        layers=["relu5", "logits"],
        analyses=[{"kind": "top"}, square],
    )
    run_inline(spec, url)
    return url


def test_the_query_asks_of_every_occluded_image_of_a_run(type_: Type, occluded: Path) -> None:
    run = deconvoy.open(occluded)
    ids = run.occluded()["image_id"].to_pylist()
    rows = queries.ask(run, "localisation").to_pylist()
    assert [row["image_id"] for row in rows] == ids and len(ids) == 5
    for row in rows:
        y0, x0, y1, x1 = render(1, int(row["uri"])).box
        assert row["places"] > 1 or row["hit"] == (y0 <= row["y"] < y1 and x0 <= row["x"] < x1)
        assert row["centre"] == (y0 <= 32 < y1 and x0 <= 32 < x1)
    code, out, _ = type_("query", occluded, "localisation")
    share = sum(row["hit"] for row in rows) / 5
    assert code == 0 and f"in {share:.0%} of 5 occluded images" in out and "(true classes)" in out
    answer = json.loads(type_("query", occluded, "localisation", "--json")[1])
    assert (answer["with_boxes"], answer["rows"]) == (5, rows)
    assert answer["hit"] == pytest.approx(share) and answer["labels"] == "true classes"


def test_a_run_without_occlusion_says_what_is_missing(type_: Type, tmp_path: Path) -> None:
    run_inline(
        small_spec(data={"uri": "shapes?size=4"}, analyses=[{"kind": "top"}]), tmp_path / "r"
    )
    with pytest.raises(RunNotFound, match="has slid no square over its images"):
        queries.pointing_game(deconvoy.open(tmp_path / "r"))
    code, _, err = type_("query", tmp_path / "r", "localisation")
    assert code == 2 and "an analysis of kind occlusion in the spec asks for it" in err
