"""Test what a job finds, beside the oracle, and what it makes of odd images, weights and labels.

Every test runs twice: with the worker in this process, and with a worker on Ray.
"""

import math
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deconvoy
from deconvoy.errors import JobFailed, RequestError, TooManyBadImages
from deconvoy.schema import PAD_PIXEL
from tests import reference
from tests.runs import (
    LAYERS,
    assert_same_results,
    grants_of,
    images_of,
    model_of,
    places_of,
    resume_inline,
    run_inline,
    run_on_ray,
    small_spec,
    write_photographs,
)
from workers import pipeline

SCORES_AGREE = 1e-5
"""Relative: BatchNorm folded or not, batches of one or of four."""

HALF = 0.51
"""Of a step: a stored number is within half a one.  The rest is for engine and oracle, which round
in float32 each in its way, by some 1e-5 of the largest number, more or less with the processor."""

ONE_MAP = {"layers": ["relu2"], "analyses": [{"kind": "top"}]}
"""Changes of the small spec to the quickest job there is."""

RunJob = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module", params=["inline", pytest.param("ray", marks=pytest.mark.ray)])
def run_job(request: pytest.FixtureRequest) -> RunJob:
    """Runs a spec to a folder on one of the executors; returns the summary."""
    if request.param == "inline":
        return run_inline
    request.getfixturevalue("ray_cluster")
    return run_on_ray


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, run_job: RunJob) -> Path:
    """The small job, undisturbed."""
    url = tmp_path_factory.mktemp("calm") / "run"
    run_job(small_spec(), url)
    return url


# --- what is found ---


def test_every_hit_of_every_layer_equals_the_brute_force(calm: Path) -> None:
    job, _ = pipeline.reopen(str(calm))
    expected = reference.brute_force(model_of(job), images_of(job))
    run = deconvoy.open(calm)
    for place, layer in zip(places_of(job), job.layers, strict=True):
        for index, hits in enumerate(expected[place]):
            unit = run.unit(layer.name, index)
            assert unit.image.tolist() == [hit.image for hit in hits]
            assert unit.position.tolist() == [[hit.y, hit.x] for hit in hits]
            scores = [hit.score for hit in hits]
            np.testing.assert_allclose(unit.score, scores, rtol=SCORES_AGREE, atol=1e-6)


def test_every_stored_projection_equals_the_slow_deconvnet_to_half_a_step(calm: Path) -> None:
    job, _ = pipeline.reopen(str(calm))
    model, images = model_of(job), dict(images_of(job))
    place_of = dict(zip((layer.name for layer in job.layers), places_of(job), strict=True))
    compared = 0
    for name in ("relu2", "relu5"):
        for index in (0, 1, 40):
            unit = deconvoy.open(calm).unit(name, index)
            for rank in np.flatnonzero(unit.image >= 0)[::4]:
                y, x = unit.position[rank].tolist()
                image = images[int(unit.image[rank])]
                whole = reference.deconvnet(model, image, place_of[name], index, y, x)
                expected = in_window(whole, unit.window[rank])
                step = np.abs(expected).max() / 127
                np.testing.assert_allclose(
                    unit.projections[rank], expected, rtol=0, atol=HALF * step
                )
                compared += 1
    assert compared >= 6


def in_window(picture: torch.Tensor, window: np.ndarray, fill: float = 0.0) -> np.ndarray:
    """The part of a picture ("channel row col") in a window, as "row col channel"."""
    y0, x0, y1, x1 = window.tolist()
    height, width = picture.shape[1:]
    shown = np.full((y1 - y0, x1 - x0, 3), fill)
    for y in range(max(y0, 0), min(y1, height)):
        for x in range(max(x0, 0), min(x1, width)):
            shown[y - y0, x - x0] = picture[:, y, x].numpy()
    return shown


def test_every_stored_patch_is_the_image_in_its_window(calm: Path) -> None:
    job, _ = pipeline.reopen(str(calm))
    run = deconvoy.open(calm)
    beyond = 0
    for name in ("relu2", "relu5"):
        unit = run.unit(name, 40)
        for rank in np.flatnonzero(unit.image >= 0):
            uri = job.listing.uris[int(unit.image[rank])]
            pixels = job.listing.source.read(uri, job.packed.transform).pixels
            shown = in_window(pixels, unit.window[rank], PAD_PIXEL)
            np.testing.assert_array_equal(unit.patches[rank], shown)
            beyond += int((unit.window[rank] != unit.box[rank]).any())
    assert beyond, "no window reaches beyond its image, so the padding was not tested"


def test_the_statistics_of_a_unit_are_those_of_all_image_maxima(calm: Path) -> None:
    job, run = pipeline.reopen(str(calm))
    model, images = model_of(job), images_of(job)
    maxima = [
        reference.layers(model, pixels[None])[1].ranking[0].amax((1, 2)) for _, pixels in images
    ]
    expected = torch.stack(maxima).double()  # "image unit"
    group = deconvoy.open(calm).layer_group("relu2")
    np.testing.assert_allclose(group["mean"][:], expected.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(group["density"][:], (expected > 0).double().mean(0))
    assert (np.asarray(group["histogram"][:]).sum(1) == len(images)).all()


def test_the_images_table_has_every_image_with_the_models_answer(calm: Path) -> None:
    job, _ = pipeline.reopen(str(calm))
    images = deconvoy.open(calm).images().to_pydict()
    assert images["id"] == list(range(40))
    assert images["uri"] == [str(i) for i in range(40)]
    assert images["label"] == [i % 10 for i in range(40)]
    assert set(images["skipped"]) == {None}
    logits = reference.layer_outputs(model_of(job), torch.stack([p for _, p in images_of(job)]))[-1]
    probability, predicted = logits.flatten(1).softmax(1).max(1)
    assert images["predicted"] == predicted.tolist()
    np.testing.assert_allclose(images["probability"], probability.numpy(), rtol=1e-5)


def test_where_the_data_carries_no_labels_hits_are_labelled_by_the_predicted_class(
    tmp_path: Path, run_job: RunJob
) -> None:
    photographs, url = tmp_path / "photographs", tmp_path / "run"
    write_photographs(photographs, 20)  # in two folders: no fit for ten outputs
    summary = run_job(small_spec(data={"uri": str(photographs)}), url)
    run = deconvoy.open(url)
    assert summary["top1"] is None
    assert run.labels == "predicted"
    assert "the predicted class is used" in run.attributes["provenance"]["labels_from"]
    images = run.images().to_pydict()
    assert set(images["label"]) == {None}
    predicted = dict(zip(images["id"], images["predicted"], strict=True))
    rows = run.table().to_pylist()
    assert [row["label"] for row in rows] == [predicted[row["image_id"]] for row in rows]


def test_provenance_names_the_device_that_computed(calm: Path) -> None:
    run = deconvoy.open(calm)
    assert run.labels == "true"
    assert run.attributes["provenance"]["device"] == ["cpu"]


def test_the_summary_is_returned_and_kept_in_the_run(tmp_path: Path, run_job: RunJob) -> None:
    summary = run_job(small_spec(), tmp_path / "run")
    run = deconvoy.open(tmp_path / "run")
    assert run.attributes["results"] == summary
    assert run.status == "done"
    assert summary["images"] == summary["labelled"] == 40
    assert summary["top1"] == run.top1()
    dead = sum(run.layers().column("dead_units").to_pylist())
    assert summary["dead_units"] == dead


def test_progress_starts_at_zero_never_goes_back_and_ends_at_the_total(
    tmp_path: Path, run_job: RunJob
) -> None:
    seen: list[pipeline.Advance] = []
    run_job(small_spec(), tmp_path / "run", seen.append)
    for stage in ("scan", "projection"):
        done = [advance.done for advance in seen if advance.stage == stage]
        (total,) = {advance.total for advance in seen if advance.stage == stage}
        assert done[0] == 0
        assert done == sorted(done)
        assert done[-1] == total
    assert total == len(
        [
            1
            for name in ("relu2", "relu5")
            for unit in (0, 1, 40)
            for image in deconvoy.open(tmp_path / "run").unit(name, unit).image
            if image >= 0
        ]
    )


def test_a_model_from_a_file_is_analysed_like_any_other(
    calm: Path, tmp_path: Path, run_job: RunJob
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        textwrap.dedent(
            """
            from workers.zfnet import zfnet_small

            def small(outputs):
                return zfnet_small(outputs)
            """
        )
    )
    model = {"name": f"{file}:small", "arguments": {"outputs": 10}}
    run_job(small_spec(model=model), tmp_path / "run")
    assert_same_results(calm, tmp_path / "run")


def test_dead_units_have_no_hits_and_are_counted(calm: Path) -> None:
    run = deconvoy.open(calm)
    dead = {row["layer"]: row["dead_units"] for row in run.layers().to_pylist()}
    assert sum(dead.values()) > 0
    for layer in LAYERS:
        images = run.layer_group(layer)["image"][:]
        density = run.layer_group(layer)["density"][:]
        assert dead[layer] == (images[:, 0] < 0).sum()
        if layer != "logits":
            assert dead[layer] == (density == 0).sum()


# --- images that are not as they should be ---


def test_unreadable_images_are_recorded_and_skipped_and_ids_are_carried(
    tmp_path: Path, run_job: RunJob
) -> None:
    places = write_photographs(tmp_path / "images", 20)
    places[3].write_bytes(b"not an image")
    places[8].write_bytes(places[8].read_bytes()[:200])
    data = {"uri": str(tmp_path / "images"), "max_bad": 0.1}
    summary = run_job(small_spec(data=data, **ONE_MAP), tmp_path / "run")
    assert (summary["images"], summary["skipped"]) == (18, 2)
    run = deconvoy.open(tmp_path / "run")
    images = run.images().to_pydict()
    assert images["id"] == list(range(20))
    bad = {uri: why for uri, why in zip(images["uri"], images["skipped"], strict=True) if why}
    assert set(bad) == {p.relative_to(tmp_path / "images").as_posix() for p in places[3:9:5]}
    assert all("not readable as an image" in why for why in bad.values())

    job, _ = pipeline.reopen(str(tmp_path / "run"))
    readable = images_of(job, leave_out=set(bad))
    for unit, hits in enumerate(reference.brute_force(model_of(job), readable)[1]):
        assert run.unit("relu2", unit).image.tolist() == [hit.image for hit in hits]


def test_the_statistics_leave_skipped_images_out(tmp_path: Path, run_job: RunJob) -> None:
    places = write_photographs(tmp_path / "images", 6)
    run_job(small_spec(data={"uri": str(tmp_path / "images")}, **ONE_MAP), tmp_path / "whole")
    for number in range(3):
        (tmp_path / "images/a" / f"bad{number}.png").write_bytes(b"")
    data = {"uri": str(tmp_path / "images"), "max_bad": 0.5}
    run_job(small_spec(data=data, **ONE_MAP), tmp_path / "run")
    assert len(places) == 6
    for name in ("mean", "density", "histogram"):
        whole = deconvoy.open(tmp_path / "whole").layer_group("relu2")[name][:]
        group = deconvoy.open(tmp_path / "run").layer_group("relu2")
        np.testing.assert_allclose(group[name][:], whole, rtol=1e-12)


def test_too_many_unreadable_images_fail_the_job_and_are_named(
    tmp_path: Path, run_job: RunJob
) -> None:
    places = write_photographs(tmp_path / "images", 20)
    for place in places[::4]:
        place.write_bytes(b"not an image")
    data = {"uri": str(tmp_path / "images"), "max_bad": 0.1}
    with pytest.raises(TooManyBadImages, match=r"of 20 images.*data\.max_bad = 0\.1.*\d\.png"):
        run_job(small_spec(data=data, **ONE_MAP), tmp_path / "run")
    assert deconvoy.open(tmp_path / "run").status == "failed"
    with pytest.raises(TooManyBadImages):  # also where the markers alone tell so
        resume_inline(tmp_path / "run")


def test_an_image_that_vanishes_after_the_scan_fails_the_job_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_job: RunJob
) -> None:
    write_photographs(tmp_path / "images", 4)
    url = tmp_path / "run"
    analyses = [{"kind": "top"}, {"kind": "projection", "units": {"ids": [0]}}]
    spec = small_spec(data={"uri": str(tmp_path / "images")}, layers=["relu2"], analyses=analyses)

    def observe(advance: pipeline.Advance) -> None:
        if advance.stage == "projection":
            shutil.rmtree(tmp_path / "images/a", ignore_errors=True)  # it may be told twice

    with pytest.raises(JobFailed, match=r"a/00\d\.png.*put it back"):
        run_job(spec, url, observe)


def test_fewer_than_nine_images_leave_the_last_ranks_missing(
    tmp_path: Path, run_job: RunJob
) -> None:
    spec = small_spec(data={"uri": "shapes?size=5&seed=1"})
    run_job(spec, tmp_path / "run")
    run = deconvoy.open(tmp_path / "run")
    for layer in LAYERS:
        unit = run.unit(layer, 1)
        there = unit.image >= 0
        assert there.sum() <= 5
        assert (unit.score[~there] == -math.inf).all()
        assert (unit.position[~there] == -1).all()
        assert (unit.box[~there] == 0).all()
    assert run.unit("logits", 0).image[:5].tolist() != [-1] * 5
    missing = run.unit("relu2", 1).projections[5:]
    assert not missing.any()
    assert run.table("logits").num_rows == 50


def test_one_image_is_the_strongest_of_every_unit_it_excites(
    tmp_path: Path, run_job: RunJob
) -> None:
    spec = small_spec(data={"uri": "shapes?size=1&seed=1"})
    run_job(spec, tmp_path / "run")
    run = deconvoy.open(tmp_path / "run")
    images = np.concatenate([run.layer_group(layer)["image"][:] for layer in LAYERS])
    assert set(images[:, 0].tolist()) == {0, -1}
    assert (images[:, 1:] == -1).all()


def test_units_that_are_only_negative_still_have_their_strongest_images(
    tmp_path: Path, run_job: RunJob
) -> None:
    file = tmp_path / "negative.py"
    file.write_text(
        textwrap.dedent(
            """
            import torch
            from workers.zfnet import zfnet_small

            def negative():
                model = zfnet_small()
                torch.nn.init.constant_(model.fc8.bias, -100.0)
                return model
            """
        )
    )
    run_job(small_spec(model={"name": f"{file}:negative"}, layers=["logits"]), tmp_path / "run")
    group = deconvoy.open(tmp_path / "run").layer_group("logits")
    assert (np.asarray(group["score"][:]) < -90).all()
    assert (np.asarray(group["image"][:]) >= 0).all()
    assert not np.asarray(group["density"][:]).any()


def test_equal_images_rank_by_their_id(tmp_path: Path, run_job: RunJob) -> None:
    places = write_photographs(tmp_path / "images", 4)
    for number in range(12):
        shutil.copy(places[0], tmp_path / "images" / "b" / f"copy{number:02d}.png")
    spec = small_spec(data={"uri": str(tmp_path / "images")}, layers=["relu2", "logits"])
    run_job(spec, tmp_path / "run")
    job, _ = pipeline.reopen(str(tmp_path / "run"))
    same = {n for n, uri in enumerate(job.listing.uris) if "copy" in uri or uri == "a/000.png"}
    assert len(same) == 13
    expected = reference.brute_force(model_of(job), images_of(job))
    run = deconvoy.open(tmp_path / "run")
    tied = 0
    for place, layer in zip(places_of(job), job.layers, strict=True):
        for index, hits in enumerate(expected[place]):
            images = run.unit(layer.name, index).image.tolist()
            assert images == [hit.image for hit in hits]
            tied += len(set(images) & same) == 9
    assert tied > 10


def test_images_smaller_than_the_crop_are_padded(tmp_path: Path, run_job: RunJob) -> None:
    write_photographs(tmp_path / "images", 12, side=20)
    transform = {"resize": 40, "crop": 64}
    data = {"uri": str(tmp_path / "images"), "transform": transform}
    run_job(small_spec(data=data), tmp_path / "run")
    run = deconvoy.open(tmp_path / "run")
    assert run.images().column("width").to_pylist() == [20] * 12
    patches = run.unit("relu5", 40).patches if not run.unit("relu5", 40).dead else None
    assert patches is not None
    rim = np.concatenate([patches[0, :, 0], patches[0, :, -1]])
    assert set(rim.flatten().tolist()) <= {0, PAD_PIXEL}


# --- numbers that are not as they should be ---


def test_nan_in_the_weights_fails_the_job_and_names_layer_and_image(
    tmp_path: Path, run_job: RunJob
) -> None:
    file = tmp_path / "broken.py"
    file.write_text(
        textwrap.dedent(
            """
            import torch
            from workers.zfnet import zfnet_small

            def broken():
                model = zfnet_small()
                with torch.no_grad():
                    model.conv3.weight[7] = float("nan")
                return model
            """
        )
    )
    spec = small_spec(model={"name": f"{file}:broken"}, layers="all")
    with pytest.raises(JobFailed, match=r"'relu3', unit 7.*image 0 is nan") as failed:
        run_job(spec, tmp_path / "run")
    assert "given up after" not in str(failed.value), "trying again cannot help"
    assert set(grants_of(tmp_path / "run").values()) == {1}


# --- which images count ---


def test_of_equal_images_only_the_first_is_a_hit_where_asked(
    tmp_path: Path, run_job: RunJob
) -> None:
    """Copies lie in the same batch, in other batches of a shard, and in other shards."""
    folder = tmp_path / "images"
    places = write_photographs(folder, 6)
    for number in range(24):
        shutil.copy(places[number % 6], folder / "b" / f"copy{number:02d}.png")
    data = {"uri": str(folder), "distinct": True}
    run_job(small_spec(data=data, layers=["relu2", "logits"]), tmp_path / "run")
    job, _ = pipeline.reopen(str(tmp_path / "run"))
    seen: dict[bytes, int] = {}
    first = [
        (number, image)
        for number, image in images_of(job)
        if seen.setdefault(image.numpy().tobytes(), number) == number
    ]
    assert len(first) == 6
    expected = reference.brute_force(model_of(job), first)
    run = deconvoy.open(tmp_path / "run")
    for place, layer in zip(places_of(job), job.layers, strict=True):
        for index, hits in enumerate(expected[place]):
            images = run.unit(layer.name, index).image
            assert images[images >= 0].tolist() == [hit.image for hit in hits if hit.image >= 0]
    # they are counted all the same
    assert run.attributes["results"]["images"] == 30


def test_only_images_that_are_predicted_wrongly_take_part_where_asked(
    tmp_path: Path, run_job: RunJob
) -> None:
    url = tmp_path / "run"
    data = {"uri": "shapes?size=40&seed=1", "where": {"wrong": True}}
    summary = run_job(small_spec(data=data, layers=["relu2"]), url)
    run = deconvoy.open(url)
    images = run.images().to_pydict()
    wrong = [
        number
        for number, label, predicted in zip(
            images["id"], images["label"], images["predicted"], strict=True
        )
        if label != predicted
    ]
    assert 0 < len(wrong) < 40
    assert (summary["images"], summary["skipped"]) == (len(wrong), 0)
    told = dict(zip(images["id"], images["skipped"], strict=True))
    assert {number for number, why in told.items() if why is None} == set(wrong)
    job, _ = pipeline.reopen(str(url))
    taken = [(number, image) for number, image in images_of(job) if number in wrong]
    for unit, hits in enumerate(reference.brute_force(model_of(job), taken)[1]):
        images_ = run.unit("relu2", unit).image
        assert images_[images_ >= 0].tolist() == [hit.image for hit in hits if hit.image >= 0]


def test_wrong_predictions_cannot_be_told_without_labels(tmp_path: Path, run_job: RunJob) -> None:
    write_photographs(tmp_path / "images", 4)
    data = {"uri": str(tmp_path / "images"), "where": {"wrong": True}}
    with pytest.raises(RequestError, match=r"data\.where\.wrong needs labels, but there are none"):
        run_job(small_spec(data=data), tmp_path / "run")
