"""Test correspondence as an analysis of a job: a run holds what the oracle finds, whoever computes
it and however often it is cut off.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deconvoy
from deconvoy import queries
from deconvoy.errors import RequestError, RunNotFound
from deconvoy.spec import JobSpec
from tests import reference
from tests.runs import (
    Killed,
    assert_same_files,
    committed_in,
    grants_of,
    ignore,
    images_of,
    killed_at,
    model_of,
    places_of,
    resume_inline,
    run_inline,
    run_on_ray,
    small_spec,
)
from workers import pipeline
from workers.correspondence import random_boxes
from workers.executors.inline import InlineExecutor
from workers.job import settle
from workers.part_boxes import parts_in_input
from workers.plan import plan
from workers.verify import verify

COVERED: dict[str, Any] = {
    "kind": "correspondence",
    "images": {"sample": 3},
    "parts": ["nose", "left_eye"],
    "random": 9,
}


FOLDERS = ("correspondence", "ledger/correspondence", "layers", "images")
"""What two runs must agree in."""


def spec_of(correspondence: dict[str, Any], **changes: Any) -> JobSpec:
    """40 images in five shards, of which four are faces."""
    fields = {
        "layers": ["relu1", "relu5", "logits"],
        "analyses": [{"kind": "top", "k": 2}, correspondence],
    }
    return small_spec(**(fields | changes))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("calm") / "run"
    run_inline(spec_of(COVERED), url)
    return url


def test_a_run_equals_the_oracles(calm: Path) -> None:
    job, _ = pipeline.reopen(str(calm))
    model, transform, images = model_of(job), job.packed.transform, dict(images_of(job))
    found = deconvoy.open(calm).correspondence()
    assert found.parts == ("nose", "left_eye") and len(found.image) == 3
    assert set(found.image.tolist()) <= {0, 10, 20, 30}  # the faces
    assert found.random.shape == (2, 9, 3)
    assert job.part_boxes is not None
    boxes = [
        parts_in_input(job.part_boxes.of(str(image)), (64, 64), transform)["left_eye"]
        for image in found.image.tolist()
    ]
    sizes = np.array([box[2:] - box[:2] for box in boxes])
    own = [images[image] for image in found.image.tolist()]
    fill = torch.zeros(3)  # the mean, normalised
    drawn = random_boxes(sizes, 64, job.spec.seed, "left_eye", 8, found.image.tolist())
    for wanted, covered in ((found.delta[1], boxes), (found.random[1, 8], drawn)):
        expected = reference.correspondence(model, own, [list(box) for box in covered], fill)
        for number, place in enumerate(places_of(job)):
            # A sign that rounding flips is one of as many as the layer has features.
            assert wanted[number] == pytest.approx(expected[place][0], abs=2e-3)


def test_the_query_is_table_1(calm: Path) -> None:
    run = deconvoy.open(calm)
    found = run.correspondence()
    table = queries.ask(run, "correspondence", ["relu5"])
    assert table["part"].to_pylist() == ["nose", "left_eye"]
    assert table["delta"].to_pylist() == found.delta[:, 1].tolist()
    assert table["random"].to_pylist() == pytest.approx(found.random[:, :, 1].mean(1).tolist())
    low = (found.random[0, :, 1] <= found.delta[0, 1]).sum()
    assert table["p"][0].as_py() == pytest.approx((1 + low) / 10)
    with pytest.raises(RunNotFound, match="no layer 'relu9'"):
        queries.ask(run, "correspondence", ["relu9"])


def test_the_number_of_threads_changes_no_bit_and_progress_counts_images(
    calm: Path, tmp_path: Path
) -> None:
    seen: list[pipeline.Advance] = []
    job, run = pipeline.create(spec_of(COVERED), str(tmp_path / "run"))
    pipeline.execute(job, run, InlineExecutor(threads=3), seen.append)
    assert_same_files(calm, tmp_path / "run", *FOLDERS)
    done = [advance.done for advance in seen if advance.stage == "correspondence"]
    assert done[0] == 0 and done == sorted(done) and done[-1] == 2 * 10 * 3


@pytest.mark.ray
def test_any_workers_give_the_bits_of_the_inline_executor(
    ray_cluster: str, calm: Path, tmp_path: Path
) -> None:
    run_on_ray(spec_of(COVERED), tmp_path / "run", workers=2)
    assert_same_files(calm, tmp_path / "run", *FOLDERS)


def test_a_run_cut_off_goes_on_to_the_same_bits_and_does_nothing_twice(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "run"
    job, run = pipeline.create(spec_of(COVERED), str(url))
    killed_at(monkeypatch, "ledger/correspondence", 3)
    with pytest.raises(Killed):
        pipeline.execute(job, run, InlineExecutor(), ignore)
    with pytest.raises(RunNotFound, match="is not finished: the run is failed"):
        deconvoy.open(url).correspondence()
    resume_inline(url)
    assert_same_files(calm, url, *FOLDERS)
    grants = {item: n for item, n in grants_of(url).items() if "correspondence" in item}
    assert sorted(grants.values()) == [1, 1, 1, 2] and set(grants) <= committed_in(url)


def test_the_plan_foretells_it() -> None:
    told = plan(settle(spec_of(COVERED)))
    assert told.further == {"correspondence": 60}
    assert told.seconds["correspondence"] > 0 < told.bytes["correspondence"]


def test_parts_that_no_image_has_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    for parts, words in (
        (["ear"], "no image has a part of that name"),
        (["nose", "wheel"], "'wheel', but no image has"),
        (["nose", "roof"], "none of them have all of the parts"),
    ):
        with pytest.raises(RequestError, match=words):
            pipeline.create(spec_of(COVERED | {"parts": parts}), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_without_the_analysis_says_how_to_get_it(tmp_path: Path) -> None:
    run_inline(small_spec(layers=["relu1"], analyses=[{"kind": "top"}]), tmp_path / "run")
    with pytest.raises(RunNotFound, match="an analysis of kind correspondence in the spec"):
        deconvoy.open(tmp_path / "run").correspondence()


def test_verify_finds_what_is_missing_or_changed(calm: Path, tmp_path: Path) -> None:
    assert verify(str(calm), sample=0).faults == []
    url = tmp_path / "run"
    shutil.copytree(calm, url)
    (url / "ledger/correspondence/nose/item-000001.json").unlink()
    (url / "correspondence/delta/c/1/0/0").unlink()
    faults = {fault.place for fault in verify(str(url), sample=0).faults}
    assert faults == {
        "ledger/correspondence/nose/item-000001.json",
        "correspondence/delta/c/1/0/0",
    }
