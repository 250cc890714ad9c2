"""Test the paper in miniature: verdicts on paper, and the whole report of small runs."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import deconvoy
from deconvoy import expectations, noise
from deconvoy.correspondence import Correspondence
from deconvoy.expectations import Expectation
from deconvoy.invariance import Invariance
from deconvoy.localisation import Localisation
from deconvoy.probe import Probe
from deconvoy.study import FirstLayer, Study
from service import full_demo, launcher
from workers import demo


def study_of(
    *errors: float | tuple[float, ...],
    images: int = 1000,
    smaller: tuple[dict[str, int], ...] = ({"6": 1, "7": 1},),
    larger: bool = False,
) -> Study:
    """The base, without 3 and 4, and with hidden layers of another width; an error a repeat."""
    arguments = ({}, {"remove": [3, 4]}, *({"widths": widths} for widths in smaller))
    count = len(errors)
    of_repeats = np.array(errors, np.float64).reshape(count, -1)
    repeats = of_repeats.shape[1]
    layer = FirstLayer(
        np.zeros((repeats, 2, 7, 7, 3), np.float32), np.array([[0.1, 0.05]] * repeats),
        np.array([[0.0, 1.0]] * repeats, np.float32), np.full((repeats, 2, 3), 1 / 3),
    )  # fmt: skip
    return Study(
        networks=("base", "without 3, 4", "narrow", "narrower")[:count],
        arguments=tuple({"num_classes": 10, **own} for own in arguments[:count]),
        classes=("a", "b"),
        parameters=np.array([9, 8, *[10 if larger else 5] * 2][:count]),
        loss=np.ones((count, repeats, 1)), running_error=np.ones((count, repeats, 1)),
        validation_error=of_repeats[:, :, None, None].repeat(2, 3),
        training_error=np.zeros((count, repeats, 2)), validation_images=images,
        max_filter_rms=0.1, first_layers=(layer,) * count,
        diverged=np.zeros((count, repeats), np.int32),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("errors", "holds"),
    [
        (((0.1, 0.1), (0.3, 0.3), (0.2, 0.2)), True),
        (((0.1, 0.1), (0.2, 0.2), (0.3, 0.3)), False),
        (((0.2, 0.2), (0.1, 0.1), (0.05, 0.05)), False),  # removing helps
        (((0.1, 0.1), (0.22, 0.22), (0.2, 0.2)), None),  # 2 ± 1.8 % by the images
        (((0.1, 0.1), (0.2, 0.4), (0.1, 0.3)), None),  # repeats lie wider apart
        ((0.1, 0.3, 0.2), None),  # once
        (((0.1, 0.1), (0.3, 0.3)), None),
    ],
)
def test_depth_against_width_on_paper(
    errors: tuple[float | tuple[float, float], ...], holds: bool | None
) -> None:
    found = expectations.depth_matters_more_than_width(study_of(*errors))
    assert found.holds is holds
    assert len(errors) == 2 or "without 3, 4 " in found.told
    assert ("trained once" in found.told) is isinstance(errors[0], float)


def test_more_images_tell_a_smaller_difference() -> None:
    errors = ((0.1, 0.1), (0.22, 0.22), (0.2, 0.2))
    found = expectations.depth_matters_more_than_width(study_of(*errors, images=100_000))
    assert found.holds is True


def test_what_is_wider_than_the_base_is_not_shrunk() -> None:
    errors = ((0.1, 0.1), (0.3, 0.3), (0.2, 0.2))
    found = expectations.depth_matters_more_than_width(study_of(*errors, larger=True))
    assert found.holds is None and "no two such networks" in found.told
    # The names of layers may come in any order, or be of one.
    for widths in ({"7": 1, "6": 1}, {"7": 1}):
        found = expectations.depth_matters_more_than_width(study_of(*errors, smaller=(widths,)))
        assert found.holds is True
    other = study_of(*errors, smaller=({"5": 1, "6": 1},))
    assert expectations.depth_matters_more_than_width(other).holds is None


@pytest.mark.parametrize(("narrower", "holds"), [(0.25, True), (0.5, None)])
def test_every_way_of_shrinking_counts(narrower: float, holds: bool | None) -> None:
    errors = ((0.1, 0.1), (0.35, 0.35), (0.2, 0.2), (narrower, narrower))
    study = study_of(*errors, smaller=({"6": 2, "7": 2}, {"6": 1, "7": 1}))
    assert expectations.depth_matters_more_than_width(study).holds is holds


def test_noise_is_twice_the_standard_error() -> None:
    # 0.1 · 0.9 / 100 is 0.03²; variances 0 and 0.02 of two repeats make 0.01 / 2 = 0.005.
    assert noise.share_error(0.1, 100) == pytest.approx(0.03)
    scattered = noise.training_error(np.array([[0.1, 0.1], [0.1, 0.3]]))
    assert scattered == pytest.approx(0.005**0.5)
    assert np.isnan(noise.training_error(np.array([[0.1], [0.3]])))
    assert [noise.sign(one, 0.1) for one in (0.21, 0.2, 0.0, -0.2, -0.21)] == [1, 0, 0, 0, -1]
    assert noise.sign(1.0, np.nan) == 0
    # Mean 2, deviation 2 of two: error √2; of eight alike it is none.
    assert noise.paired(np.array([2 - 2**0.5, 2 + 2**0.5])) == 0
    assert noise.paired(np.full(8, -2.0)) == -1
    assert noise.paired(np.array([5.0])) == 0


def test_a_study_counts_dead_and_dominating_filters() -> None:
    row = study_of(0.1).table().to_pylist()[0]
    assert (row["filters"], row["dead"], row["at_bound"]) == (2, 1, 1)
    assert replace(study_of(0.1), max_filter_rms=None).table().to_pylist()[0]["at_bound"] is None


def settling(images: list[int | None], filters: list[int | None]) -> pa.Table:
    names = (*(f"relu{number + 1}" for number in range(len(images) - 1)), "logits")
    return pa.table(
        {
            "layer": pa.array(names),
            "overlap_at": pa.array(images, pa.int64()),
            "cosine_at": pa.array(filters, pa.int64()),
        }
    )


@pytest.mark.parametrize(
    ("at", "holds"),
    [
        ([0, 1, 2, 3], True),
        ([3, 2, 1, 0], False),
        ([4, 5, 5, 5], None),  # one layer, by one checkpoint
        ([4, 4, 5, 5], True),
        ([0, 9, 2], True),  # the middle one is in neither half
        ([0, None, None, 3], True),
        ([0, None, None, None], None),
        ([None] * 4, None),
    ],
)
def test_halves_settle_a_checkpoint_apart(at: list[int | None], holds: bool | None) -> None:
    images, _ = expectations.lower_layers_settle_first(settling(at, [0] * len(at)), 6)
    assert images.holds is holds
    _, filters = expectations.lower_layers_settle_first(settling([0] * len(at), at), 6)
    assert filters.holds is holds


def test_checkpoints_are_told_from_one_on_and_neighbours_together() -> None:
    images, filters = expectations.lower_layers_settle_first(
        settling([4, 5, 5, 5], [0, 1, 1, 1]), 6
    )
    assert "relu1 at 5; relu2–logits at 6, of 6" in images.told
    assert "checkpoint 5.50 in the lower half (relu1–relu2) and 6.00 in the upper" in images.told
    assert "less than one checkpoint apart" in images.told
    assert "its final self" in images.told and "its final self" not in filters.told


def moved(*relative: tuple[float, float], name: str = "translation") -> Invariance:
    """Distances in the first layer and the last but the output, of two images each: by 1, 5 and
    −1."""
    near, far = np.array(relative), np.full((len(relative), 2), 9.0)
    three = np.stack([near, far, near], 1)
    distance = np.concatenate([three, np.full((len(relative), 3, 1), 99.0)], 2)
    images = len(relative)
    return Invariance(
        image=np.arange(images), uris=("a",) * images, layers=("relu1", "relu7", "logits"),
        transformation=(name,) * 3, amount=np.array([1.0, 5.0, -1.0]), border="mean",
        distance=distance, norm=np.ones((images, 3)), target=np.zeros(images, np.int64),
        probability=np.ones((images, 3), np.float32),
        clean_probability=np.ones(images, np.float32),
        label=np.zeros((images, 3), np.int64), clean_label=np.zeros(images, np.int64),
        predicted=False, classes=(),
    )  # fmt: skip


def test_the_smallest_step_of_every_transformation_decides() -> None:
    down, up = [(0.8, 0.2), (0.7, 0.2)], [(0.2, 0.8), (0.2, 0.7)]
    said = expectations.lower_layers_move_more(moved(*down))
    assert said.holds is True
    assert "shifted by ±1 pixels, 0.75 in relu1 and 0.20 in relu7" in said.told
    assert "None was scaled or turned" in said.told
    assert expectations.lower_layers_move_more(moved(*up)).holds is False
    close = expectations.lower_layers_move_more(moved((0.8, 0.2), (0.2, 0.7)))
    assert close.holds is None and "from image to image" in close.told
    one = expectations.lower_layers_move_more(moved((0.8, 0.2)))
    assert one.holds is None


def test_each_transformation_has_its_own_nothing() -> None:
    down, up = [(0.8, 0.2), (0.7, 0.2)], [(0.2, 0.8), (0.2, 0.7)]
    turned = replace(moved(*down, name="rotation"), amount=np.array([345.0, 360.0, 15.0]))
    told = expectations.lower_layers_move_more(turned)
    assert told.holds is True and "turned by ±15°" in told.told
    scaled = replace(moved(*down, name="scale"), amount=np.array([0.9, 1.0, 1.1]))
    assert "scaled by 0.9 or 1.1, 0.75" in expectations.lower_layers_move_more(scaled).told
    nothing = replace(turned, amount=np.array([0.0, 360.0, 0.0]))
    assert expectations.lower_layers_move_more(nothing).holds is None
    # One that says the opposite refutes, whatever the others say.
    against = moved(*down)
    against.distance[:, 1] = moved(*up).distance[:, 0]
    names = ("translation", "rotation", "rotation")
    both = replace(against, transformation=names, amount=np.array([1.0, 1.0, 90.0]))
    assert expectations.lower_layers_move_more(both).holds is False


def parted(low: tuple[tuple[int, ...], ...], draws: int = 20) -> Correspondence:
    """Of three parts in ``relu1 …`` and ``logits``: 1 where Δ lies below all random boxes."""
    delta = np.where(np.array(low) == 1, 0.01, 0.6)
    layers = (*(f"relu{number + 1}" for number in range(delta.shape[1] - 1)), "logits")
    random = np.linspace(0.4, 0.5, draws).reshape(1, draws, 1).repeat(3, 0)
    random = random.repeat(delta.shape[1], 2)
    parts = ("nose", "eye", "mouth")
    return Correspondence(parts, layers, np.arange(3), delta, np.zeros(delta.shape), random)


@pytest.mark.parametrize(
    ("low", "holds"),
    [
        (((0, 1, 0), (0, 1, 0), (0, 0, 0)), True),
        (((1, 0, 0), (1, 0, 0), (1, 0, 0)), False),  # in the lower layer alone
        (((0, 1, 0), (0, 0, 0), (0, 0, 0)), False),  # one part of three
        (((0, 0, 1), (0, 0, 1), (0, 0, 1)), False),  # in the output alone
        (((0, 0, 0, 1, 0),) * 3, False),  # in one upper layer of two
        (((0, 0, 1, 1, 0),) * 2 + ((0, 0, 0, 0, 0),), True),
        (((1, 1),) * 3, None),  # no upper layer
    ],
)
def test_parts_correspond_where_chance_does_not(
    low: tuple[tuple[int, ...], ...], holds: bool | None
) -> None:
    assert expectations.parts_correspond(parted(low)).holds is holds


def test_of_which_parts_and_in_which_layers_is_told() -> None:
    low = ((1, 0, 0, 1, 1), (1, 0, 0, 1, 1), (1, 0, 0, 0, 1))
    told = expectations.parts_correspond(parted(low)).told
    assert "relu1 all parts; relu2–relu3 no part; relu4 nose and eye." in told
    assert "upper half (relu3–relu4) it does in 2 of 6 cases" in told and "logits" not in told


def test_too_few_random_boxes_cannot_tell() -> None:
    low = ((1, 1, 1),) * 3
    assert expectations.parts_correspond(parted(low, draws=20)).holds is True
    assert expectations.parts_correspond(parted(low, draws=19)).holds is None


MAPS = ("relu1", "relu2", "relu3")


def probed(*weights: list[float], scatter: float = 0.0) -> Probe:
    """Of three layers with maps, one without, and the output; two folds that lie apart by
    ``scatter`` in the third layer."""
    mean = np.array(weights).reshape(len(weights), 5, 1, 1, 1).repeat(2, 4)
    mean[:, 2, ..., 0] -= scatter / 2
    mean[:, 2, ..., 1] += scatter / 2
    return Probe(
        ("trained", "random")[: len(weights)], (*MAPS, "relu6", "logits"), ("",) * 5,
        ("softmax",), (5,), ("a", "b"), mean, np.ones(mean.shape, bool),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("trained", "scatter", "holds"),
    [
        ([0.3, 0.5, 0.8, 0.1, 0.1], 0.0, True),  # what has no maps has no say
        ([0.8, 0.5, 0.3, 0.9, 0.9], 0.0, False),
        ([0.3, 0.8, 0.7, 0.9, 0.9], 0.0, False),  # falls at the last
        ([0.3, 0.8, 0.7, 0.9, 0.9], 0.2, None),  # by no more than the folds scatter
        ([0.3, 0.5, 0.8, 0.9, 0.9], 0.9, None),  # rises by no more
        ([0.3, 0.3, 0.3, 0.9, 0.9], 0.0, None),
    ],
)
def test_probes_rise_with_depth(trained: list[float], scatter: float, holds: bool | None) -> None:
    found = expectations.deeper_features_tell_more(probed(trained, scatter=scatter), MAPS)
    assert found.holds is holds
    falls = "It falls from relu2 to relu3 by 10.0 points" in found.told
    assert falls is (trained[1:3] == [0.8, 0.7])
    assert ("within the noise of the 2 folds" in found.told) is (falls and scatter > 0)


@pytest.mark.parametrize(
    ("random", "holds"),
    [
        ([0.2, 0.2, 0.2, 0.2, 0.9], True),  # the output is no feature
        ([0.3, 0.4, 0.4, 0.2, 0.2], None),  # one layer of four tells no more
        ([0.3, 0.6, 0.4, 0.2, 0.2], False),
    ],
)
def test_probes_beat_random_weights(random: list[float], holds: bool | None) -> None:
    found = probed([0.3, 0.5, 0.7, 0.8, 0.8], random)
    told = expectations.learned_features_tell_more(found)
    assert told.holds is holds
    assert ("not clearly more in relu1." in told.told) is (holds is None)


def test_a_probe_of_one_set_of_weights_leaves_the_other_claim_open() -> None:
    found = probed([0.3, 0.5, 0.7, 0.8, 0.8])
    assert expectations.deeper_features_tell_more(found, MAPS).holds is True
    other = expectations.learned_features_tell_more(found)
    assert other.holds is None and "not measured" in other.told


def test_one_fold_or_one_layer_tells_nothing_of_depth() -> None:
    found = probed([0.3, 0.5, 0.7, 0.8, 0.8])
    assert expectations.deeper_features_tell_more(found, MAPS[:1]).holds is None
    once = replace(found, accuracy=found.accuracy[..., :1], converged=found.converged[..., :1])
    told = expectations.deeper_features_tell_more(once, MAPS)
    assert told.holds is None and "One fold" in told.told


def pointed(hit: list[float], centre: list[bool], chance: float = 0.3) -> Localisation:
    rows = pa.table(
        {
            "positions": pa.array([9] * len(hit), pa.int64()),
            "places": pa.array([1] * len(hit), pa.int64()),
            "hit": pa.array(hit, pa.float64()),
            "centre": pa.array(centre, pa.bool_()),
            "chance": pa.array([chance] * len(hit), pa.float64()),
        }
    )
    return Localisation(rows, 0, "true classes")


@pytest.mark.parametrize(
    ("hit", "centre", "chance", "holds"),
    [
        ([1.0] * 8, [False] * 8, 0.3, True),
        ([1.0] * 8, [True] * 8, 0.3, None),  # the centre does as well
        ([1.0] * 8, [True] * 7 + [False], 0.3, None),  # and here, but for one image
        ([1.0] * 7 + [0.0], [True] * 8, 0.3, None),  # or better
        ([0.0] * 8, [False] * 8, 0.3, False),
        ([1.0, 0.0, 0.0], [False] * 3, 0.3, None),  # a third of three, where chance is 0.3
        ([], [], 0.3, None),
    ],
)
def test_occlusion_is_judged_beside_the_centre(
    hit: list[float], centre: list[bool], chance: float, holds: bool | None
) -> None:
    found = expectations.occlusion_points_at_the_object(pointed(hit, centre, chance))
    assert found.holds is holds
    assert ("pointing at the centre" in found.told) is (bool(hit) and any(centre))


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
