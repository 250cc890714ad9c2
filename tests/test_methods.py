"""A job with each method of projection: its numbers, its bits, and what a run says of it."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import deconvoy
import workers
from dashboard import library
from dashboard.views import upload
from deconvoy import figures, markup, queries, report
from deconvoy.methods import METHODS
from deconvoy.spec import Method
from service import drawing, tables
from tests import reference
from tests.reference import Seed
from tests.runs import (
    assert_same_results,
    ignore,
    images_of,
    model_of,
    places_of,
    results_of,
    run_on_ray,
    small_spec,
)
from tests.test_results import HALF, in_window
from workers import pipeline
from workers.executors.inline import InlineExecutor
from workers.plan import plan

BY_INPUT: tuple[Method, ...] = ("guided", "gradient")

LAYERS = ("relu2", "relu5", "relu7")
"""The last one of neurons."""


def spec_of(method: Method, **changes: Any) -> deconvoy.JobSpec:
    projection = {
        "kind": "projection", "method": method, "layers": list(LAYERS),
        "units": {"ids": [0, 1, 40]},
    }  # fmt: skip
    occlusion = {"kind": "occlusion", "images": {"ids": [3]}, "patch": 32, "stride": 16}
    return small_spec(analyses=[{"kind": "top"}, projection, occlusion], **changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("methods")


@cache
def made(place: Path, method: Method) -> deconvoy.Run:
    """The job with one thread."""
    job, run = pipeline.create(spec_of(method), str(place / method))
    pipeline.execute(job, run, InlineExecutor(threads=1), ignore)
    return deconvoy.open(place / method)


@pytest.mark.parametrize("method", METHODS)
def test_every_stored_projection_equals_the_slow_one_to_half_a_step(
    place: Path, method: Method
) -> None:
    run = made(place, method)
    job, _ = pipeline.reopen(run.url)
    model, images = model_of(job), dict(images_of(job))
    place_of = dict(zip((layer.name for layer in job.layers), places_of(job), strict=True))
    compared = 0
    for name in LAYERS:
        for index in (0, 1, 40):
            unit = run.unit(name, index)
            for rank in np.flatnonzero(unit.image >= 0)[::4]:
                seed = Seed(place_of[name], index, *unit.position[rank].tolist())
                image = images[int(unit.image[rank])]
                (whole,) = reference.projections(model, image, [seed], method)
                expected = in_window(whole, unit.window[rank])
                step = np.abs(expected).max() / 127
                assert step > 0
                found = unit.projections[rank]
                np.testing.assert_allclose(found, expected, rtol=0, atol=HALF * step)
                compared += 1
    assert compared >= 9


@pytest.mark.parametrize("method", BY_INPUT)
def test_the_number_of_threads_changes_no_bit(place: Path, tmp_path: Path, method: Method) -> None:
    run = made(place, method)
    job, again = pipeline.create(spec_of(method), str(tmp_path / "run"))
    pipeline.execute(job, again, InlineExecutor(threads=2), ignore)
    assert_same_results(run.url, tmp_path / "run")


def test_methods_have_the_same_hits_and_other_projections(place: Path) -> None:
    runs = [made(place, method) for method in METHODS]
    for run in runs[1:]:
        assert run.table().equals(runs[0].table())
    for name in LAYERS:
        found = [run.unit(name, 1).projections for run in runs]
        for number, one in enumerate(found):
            assert all(not np.array_equal(one, other) for other in found[:number]), name


def test_occlusion_figures_keep_the_deconvnet(place: Path) -> None:
    first = made(place, "deconvnet")
    assert first.occlusion(3).projection
    for method in BY_INPUT:
        run = made(place, method)
        ours, theirs = (one.occlusion(3).projection for one in (run, first))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_says_how_its_projections_came_about(place: Path, method: Method) -> None:
    run = made(place, method)
    assert run.spec.method == method
    assert run.layer_array("relu2", "projection").attrs["method"] == method
    occluded = pipeline.reopen(run.url)[1].zarr()["occlusion/projection"]
    assert occluded.attrs["method"] == "deconvnet"
    unit = run.unit("relu2", 0)
    assert unit.pictures.method == method
    told = METHODS[method]
    assert f"{told.name} projections left" in markup.unit_figure(unit, {})
    page = "".join(report.pages(run, 1))
    assert f"{told.name} projections (left)" in page
    assert f"Method: {markup.text(told.source)}" in page
    (words,) = {line.text for line in figures._foot([unit.pictures], 10_000, figures.Look())}
    assert f"{told.name} projections left" in words


def test_a_run_that_is_older_than_the_field_has_deconvnet_projections(place: Path) -> None:
    fields = spec_of("deconvnet").to_json()
    del fields["analyses"][1]["method"]
    assert deconvoy.JobSpec.parse(fields) == spec_of("deconvnet")
    only_top = small_spec(analyses=[{"kind": "top"}])
    assert only_top.method == "deconvnet"


def test_a_plan_is_made_with_the_method_of_the_job() -> None:
    job = pipeline.settle(spec_of("guided"))
    assert job.assignment("run", 1).method == "guided"
    planned = plan(job).to_json()
    assert planned["method"] == "guided"
    assert any("guided backpropagation projections" in line for line in tables.plan_lines(planned))


def test_a_model_object_is_analysed_with_a_method(tmp_path: Path) -> None:
    analyses = [{"kind": "top"}, {"kind": "projection", "method": "gradient"}]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    images = list(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8))
    transform = {"resize": 16, "crop": 16}
    run = workers.analyse(
        model, images, analyses=analyses, transform=transform, out=tmp_path / "run"
    )
    assert run.spec.method == "gradient"
    assert run.unit("1", 0).projections.any()


def test_figure_7_shows_only_projections_of_one_method(place: Path) -> None:
    found = []
    for method in METHODS:
        run = made(place, method)
        one = replace(run.occlusion(3), unit={"relu2": 1})
        found.append(len(drawing.other_projections(run, one, "relu2")))
    assert found[0] > 0 and found[1:] == [0, 0]


def test_the_dashboard_asks_for_the_method_of_a_run(place: Path) -> None:
    of_run = {"spec": made(place, "guided").attributes["spec"], "provenance": {"transform": {}}}
    assert library.method_of(of_run) == "guided"
    asked = upload.spec_of(of_run, "a.png", "a", projected=True)
    assert {"kind": "projection", "method": "guided"} in asked["analyses"]
    of_run["spec"]["analyses"] = [{"kind": "top"}, {"kind": "projection"}]
    assert library.method_of(of_run) == "deconvnet"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("method", BY_INPUT)
def test_the_number_of_workers_changes_no_bit(place: Path, tmp_path: Path, method: Method) -> None:
    run = made(place, method)
    run_on_ray(spec_of(method), tmp_path / "run", workers=2)
    assert_same_results(run.url, tmp_path / "run")


def test_two_runs_that_differ_in_the_method_alone_are_told_so(place: Path) -> None:
    told = queries.overall(made(place, "deconvnet"), made(place, "guided"))
    assert told["differing"] == ["method of projection"]


def test_a_run_goes_on_with_the_method_it_began_with(place: Path, tmp_path: Path) -> None:
    job, run = pipeline.create(spec_of("guided"), str(tmp_path / "run"))
    with pytest.raises(RuntimeError):
        pipeline.execute(job, run, InlineExecutor(threads=1), _stop_at_projections)
    job, run = pipeline.reopen(str(tmp_path / "run"))
    pipeline.execute(job, run, InlineExecutor(threads=1), ignore)
    assert results_of(tmp_path / "run") == results_of(made(place, "guided").url)


def _stop_at_projections(advance: pipeline.Advance) -> None:
    if advance.stage == "projection" and advance.done:
        raise RuntimeError("the observer has seen enough")
