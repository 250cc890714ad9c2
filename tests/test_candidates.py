"""A fast scan finds candidates, an exact one decides: the run has the hits of an exact scan."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import deconvoy
from deconvoy.errors import RequestError
from deconvoy.spec import JobSpec
from service import tables
from tests.runs import resume_inline, run_inline, small_spec
from tests.typing_in import Type, type_
from workers import extend, numerics, pipeline
from workers.candidates import judge
from workers.executors.inline import InlineExecutor
from workers.job import settle
from workers.plan import plan
from workers.topk import Fold, Hits, UnitIndex
from workers.verify import verify

__all__ = ["type_"]

HITS = ("score", "image", "label", "position", "box", "window", "patch", "projection", "scale")

COMPUTE = {"shard_size": 8, "batch_size": 4}


def fast_spec() -> JobSpec:
    return small_spec(compute={**COMPUTE, "precision": "bfloat16"})


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> deconvoy.Run:
    url = tmp_path_factory.mktemp("exact") / "run"
    run_inline(small_spec(), url)
    return deconvoy.open(url)


@pytest.fixture(autouse=True)
def computing_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly."""
    monkeypatch.setattr(numerics, "fast_types", lambda device: (torch.float32, torch.bfloat16))


def assert_same_hits(run: deconvoy.Run, exact: deconvoy.Run) -> None:
    for layer in exact.layer_names:
        ours, theirs = run.layer_group(layer), exact.layer_group(layer)
        for name in HITS:
            if name in theirs:
                here, there = np.asarray(ours[name]), np.asarray(theirs[name])
                assert here.tobytes() == there.tobytes(), (layer, name)


def test_the_hits_are_those_of_an_exact_scan_bit_for_bit(
    exact: deconvoy.Run, tmp_path: Path
) -> None:
    found = run_inline(fast_spec(), tmp_path / "run")
    run = deconvoy.open(tmp_path / "run")
    assert_same_hits(run, exact)
    judged = found["candidates"]
    assert 0 < judged["images"] <= 40
    assert judged["largest_difference"] < 0.05
    kept = run.attributes["provenance"]["candidates"]["kept"]
    assert kept == 18
    assert found["dead_units"] == exact.attributes["results"]["dead_units"]
    assert "candidate images (" in tables.summary(found)
    assert not verify(str(tmp_path / "run"), sample=20).faults


def test_bfloat16_really_scans_in_bfloat16(exact: deconvoy.Run, tmp_path: Path) -> None:
    run_inline(fast_spec(), tmp_path / "run")
    run = deconvoy.open(tmp_path / "run")
    ours, theirs = (np.asarray(r.layer_group("relu5")["mean"]) for r in (run, exact))
    apart = np.abs(ours - theirs).max() / theirs.max()
    assert 1e-5 < apart < 0.02


def test_an_interrupted_rescan_goes_on(exact: deconvoy.Run, tmp_path: Path) -> None:
    job, store = pipeline.create(fast_spec(), str(tmp_path / "run"))

    def interrupt(advance: pipeline.Advance) -> None:
        if advance.stage == "rescan" and advance.done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(deconvoy.errors.JobStopped):
        pipeline.execute(job, store, InlineExecutor(), interrupt)
    done = sorted(path.name for path in (tmp_path / "run/ledger/rescan").iterdir())
    assert done
    resume_inline(tmp_path / "run")
    assert_same_hits(deconvoy.open(tmp_path / "run"), exact)
    lines = (tmp_path / "run/ledger/log.jsonl").read_text().splitlines()
    granted = [e["item"] for e in map(json.loads, lines) if e["event"] == "committed"]
    assert all(granted.count(f"rescan/{name.partition('.')[0]}") == 1 for name in done)


def test_verify_misses_a_part_of_the_rescan(tmp_path: Path) -> None:
    run_inline(fast_spec(), tmp_path / "run")
    (tmp_path / "run/ledger/rescan/part-000001.npz").unlink()
    places = {fault.place for fault in verify(str(tmp_path / "run"), sample=0).faults}
    assert "ledger/rescan/part-000001.npz" in places


def test_a_processor_without_bfloat16_refuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numerics, "fast_types", lambda device: (torch.float32,))
    with pytest.raises(deconvoy.errors.JobFailed, match="take float32"):
        run_inline(fast_spec(), tmp_path / "run")  # without asking the executor first


def test_it_is_refused_before_anything_is_written(
    tmp_path: Path, type_: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numerics, "fast_types", lambda device: (torch.float32,))
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(fast_spec().to_json()))
    code, _, err = type_("run", spec, "--out", tmp_path / "run", "--executor", "inline")
    assert code == 2
    assert "take float32" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
@pytest.mark.skipif(
    torch.bfloat16 in numerics.fast_types(torch.device("cpu")), reason="bfloat16 is fast here"
)
def test_workers_on_ray_are_asked_before_anything_is_written(
    ray_cluster: str, tmp_path: Path
) -> None:
    compute = fast_spec().compute.model_copy(update={"workers": 1, "gpus_per_worker": 0.0})
    from workers.executors.ray import RayExecutor

    executor = RayExecutor(compute)
    with pytest.raises(RequestError, match="take float32"):
        executor.require_fast("bfloat16")
    executor.require_fast("float32")
    executor.shutdown()


@pytest.mark.parametrize(
    "changes",
    [
        {"analyses": [{"kind": "top", "bottom": 3}]},
        {"analyses": [{"kind": "top", "per_class": 2}]},
        {"analyses": [{"kind": "top", "bands": {}}]},
        {"analyses": [{"kind": "top", "outliers": {}}]},
        {"data": {"where": {"wrong": True}}},
    ],
)
def test_what_needs_exact_scores_of_all_images_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="candidates for the strongest hits"):
        small_spec(**changes, compute={"precision": "bfloat16"})


def test_a_run_of_candidates_is_not_extended(tmp_path: Path) -> None:
    run_inline(fast_spec(), tmp_path / "run")
    with pytest.raises(RequestError, match="chose|choose"):
        extend.create(str(tmp_path / "run"), "shapes?size=8&seed=9", str(tmp_path / "more"))
    assert not (tmp_path / "more").exists()


def test_the_rescan_is_foretold() -> None:
    seconds = plan(settle(fast_spec())).seconds
    assert 0 < seconds["rescan"] and 0 < seconds["scan"]
    assert "rescan" not in plan(settle(small_spec())).seconds


def _fold(scores: list[float], k: int) -> Fold:
    """Of one unit, images 0, 1, …"""
    fold, count = Fold(1, k), len(scores)
    image = np.arange(count, dtype=np.int64)
    fold.add_hits(
        Hits(
            np.zeros(count, np.int32),
            np.array(scores, np.float32),
            image,
            np.zeros((count, 2), np.int32),
            image,
        )
    )
    return fold


def test_a_unit_is_open_where_an_unseen_image_could_reach_the_last_rank() -> None:
    index = UnitIndex.of([1])
    exact = _fold([10.0, 8.0], k=2)
    settled = judge(_fold([10.1, 8.0, 5.0], k=3), exact, index)
    assert settled.open_units == 0
    assert settled.largest_difference == pytest.approx(0.01, rel=1e-3)
    assert settled.images == 3
    close = judge(_fold([10.1, 8.0, 7.95], k=3), exact, index)
    assert close.open_units == 1
    few = judge(_fold([10.1, 8.0], k=3), exact, index)
    assert (few.open_units, few.faint_units) == (0, 0)  # every image that excites it is a candidate
    fewer = judge(_fold([10.1], k=3), _fold([10.0], k=2), index)
    assert (fewer.open_units, fewer.faint_units) == (0, 1)
