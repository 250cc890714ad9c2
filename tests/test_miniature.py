"""Test the paper in miniature: verdicts on paper, and the whole report of small runs."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deconvoy
from deconvoy import expectations
from deconvoy.correspondence import Correspondence
from deconvoy.expectations import Expectation
from deconvoy.invariance import Invariance
from deconvoy.probe import Probe
from deconvoy.study import FirstLayer, Study
from service import full_demo, launcher
from workers import demo


def study_of(*errors: float) -> Study:
    """The base, without 3 and 4, and with narrower hidden layers."""
    arguments = ({}, {"remove": [3, 4]}, {"widths": {"6": 1, "7": 1}})
    count = len(errors)
    validation = np.array(errors).reshape(count, 1, 1, 1).repeat(2, 3)
    layer = FirstLayer(
        np.zeros((1, 2, 7, 7, 3), np.float32), np.array([[0.1, 0.05]]),
        np.array([[0.0, 1.0]], np.float32), np.full((1, 2, 3), 1 / 3),
    )  # fmt: skip
    return Study(
        networks=("base", "without 3, 4", "6, 7: 1 wide")[:count],
        arguments=tuple({"num_classes": 10, **own} for own in arguments[:count]),
        classes=("a", "b"), parameters=np.ones(count, np.int64),
        loss=np.ones((count, 1, 1)), running_error=np.ones((count, 1, 1)),
        validation_error=validation, training_error=np.zeros((count, 1, 2)),
        max_filter_rms=0.1, first_layers=(layer,) * count,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("errors", "holds"), [((0.1, 0.3, 0.2), True), ((0.1, 0.2, 0.3), False), ((0.1, 0.3), None)]
)
def test_depth_against_width_on_paper(errors: tuple[float, ...], holds: bool | None) -> None:
    found = expectations.depth_matters_more_than_width(study_of(*errors))
    assert found.holds is holds
    assert holds is None or "without 3, 4 " in found.told


def test_a_study_counts_dead_and_dominating_filters() -> None:
    row = study_of(0.1).table().to_pylist()[0]
    assert (row["filters"], row["dead"], row["at_bound"]) == (2, 1, 1)
    assert replace(study_of(0.1), max_filter_rms=None).table().to_pylist()[0]["at_bound"] is None


def moved(first: float, last: float) -> Invariance:
    distance = np.array([[[first, last], [9.0, 9.0]]])
    return Invariance(
        image=np.array([0]), uris=("a",), layers=("relu1", "logits"),
        transformation=("translation", "translation"), amount=np.array([1.0, 5.0]), border="mean",
        distance=distance, norm=np.ones((1, 2)), target=np.array([0]),
        probability=np.ones((1, 2), np.float32), clean_probability=np.ones(1, np.float32),
        label=np.zeros((1, 2), np.int64), clean_label=np.array([0]), predicted=False, classes=(),
    )  # fmt: skip


def test_the_smallest_shift_decides() -> None:
    assert expectations.lower_layers_move_more(moved(0.8, 0.2)).holds is True
    assert expectations.lower_layers_move_more(moved(0.2, 0.8)).holds is False
    turned = replace(moved(0.8, 0.2), transformation=("rotation", "rotation"))
    assert expectations.lower_layers_move_more(turned).holds is None


@pytest.mark.parametrize(
    ("delta", "holds"),
    [
        (((0.6, 0.01), (0.6, 0.01), (0.6, 0.6)), True),
        (((0.01, 0.6), (0.01, 0.6), (0.01, 0.6)), False),  # in the lower layer alone
        (((0.6, 0.01), (0.6, 0.6), (0.6, 0.6)), False),  # one part of three
    ],
)
def test_parts_correspond_where_chance_does_not(
    delta: tuple[tuple[float, float], ...], holds: bool
) -> None:
    random = np.linspace(0.4, 0.5, 20).reshape(1, 20, 1).repeat(3, 0).repeat(2, 2)
    parts, layers, none = ("nose", "eye", "mouth"), ("relu1", "relu5"), np.zeros((3, 2))
    found = Correspondence(parts, layers, np.arange(3), np.array(delta), none, random)
    told = expectations.parts_correspond(found)
    assert told.holds is holds
    assert ("relu5 (nose" in told.told) is (delta[0][1] < 0.4)


@pytest.mark.parametrize(
    ("trained", "random", "holds"),
    [
        ([0.3, 0.8], [0.2, 0.2], True),
        ([0.8, 0.3], [0.2, 0.2], False),
        ([0.3, 0.8], [0.9] * 2, False),
    ],
)
def test_probes_rise_with_depth_and_beat_random_weights(
    trained: list[float], random: list[float], holds: bool
) -> None:
    accuracy = np.array([trained, random]).reshape(2, 2, 1, 1, 1)
    found = Probe(
        ("trained", "random"), ("relu1", "relu5"), ("", ""), ("softmax",), (5,), ("a", "b"),
        accuracy, np.ones(accuracy.shape, bool),
    )  # fmt: skip
    assert expectations.deeper_features_tell_more(found).holds is holds


def test_verdicts_are_said() -> None:
    said = [Expectation("", "", holds, "").verdict for holds in (True, False, None)]
    assert said == ["holds here", "does not hold here", "cannot be told here"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A full demo of a tenth of the size."""
    out = tmp_path_factory.mktemp("full") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("DEMO_IMAGES", 64), ("IMAGES", 200), ("STUDY_IMAGES", 32)):
            patch.setattr(demo, name, value)
        patch.setattr(demo, "DEMO_EPOCHS", 2)
        run = launcher.run

        def inline(*given: Any, **named: Any) -> Any:
            return run(*given, **named, executor="inline")

        patch.setattr(launcher, "run", inline)
        found = launcher.demo(out, full=True, observe=lambda _: None, say=lambda _: None)
        full_demo.write(found["folder"])
    yield out


def test_every_figure_and_table_of_the_paper_is_there(small: Path) -> None:
    figures = {path.stem for path in (small / "figures").iterdir()}
    assert {"fig-2-relu1", "fig-2-relu5", "fig-4-relu3", "fig-5-all-layers"} <= figures
    assert any(name.startswith("fig-7") for name in figures)
    tables = {path.name: path.read_text() for path in (small / "tables").iterdir()}
    assert {"table-1.csv", "table-3.csv", "tables-4-to-7.csv"} <= set(tables)
    assert tables["table-3.csv"].count("\n") == 1 + 8


def test_the_report_is_one_file_that_asks_nobody(small: Path) -> None:
    page = (small / "report.html").read_text()
    assert "default-src 'none'" in page and "<script" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for source in ("Fig. 2", "Fig. 4", "Fig. 5", "Fig. 7", "Table 1", "Table 3", "Tables 4–7"):
        assert f"<h2>{source}: " in page
    run, study = deconvoy.open(small / "run"), deconvoy.open(small / "study")
    for one in expectations.expectations(run, study.study()):
        assert one.verdict in page and one.claim in page
    assert page.endswith("</html>\n")


def test_it_is_made_anew_where_it_was(small: Path) -> None:
    folder = demo.prepare(small)
    assert not folder.report.exists() and not folder.study.exists()
