"""Test the Ray executor: the same bits from any number of workers, a GPU each, and no hanging.

One cluster serves the session; its two GPUs are pretended, which is all that placement needs.
"""

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import deconvoy
from deconvoy.errors import ClusterTooSmall, DeconvoyError, JobFailed
from deconvoy.spec import ComputeSpec
from tests.runs import assert_same_results, grants_of, ignore, log_of, run_inline, small_spec
from workers import pipeline

pytestmark = pytest.mark.ray


def run_on_ray(spec: deconvoy.JobSpec, url: Path) -> dict[str, Any]:
    from workers.executors.ray import RayExecutor

    job, run = pipeline.create(spec, str(url))
    return pipeline.execute(job, run, RayExecutor(spec.compute), ignore)


def on_workers(workers: int, gpus: float = 0.0, **more: Any) -> dict[str, Any]:
    """The compute section of a small job."""
    return {"compute": {"workers": workers, "gpus_per_worker": gpus, **more}}


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All projectable layers of the small job, done without Ray."""
    url = tmp_path_factory.mktemp("inline") / "run"
    run_inline(small_spec(layers="all"), url)
    return url


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_bits_of_the_inline_executor(
    ray_cluster: str, inline: Path, tmp_path: Path, workers: int
) -> None:
    summary = run_on_ray(small_spec(layers="all", **on_workers(workers)), tmp_path / "run")
    assert_same_results(inline, tmp_path / "run")
    run = deconvoy.open(tmp_path / "run")
    assert run.attributes["results"] == summary == deconvoy.open(inline).attributes["results"]
    assert set(grants_of(tmp_path / "run").values()) == {1}
    busy = {e["worker"] for e in log_of(tmp_path / "run") if e["event"] == "granted"}
    assert len(busy) <= workers


def test_nodes_that_join_are_taken_in_where_the_number_of_workers_is_left_to_us(
    ray_cluster: str, inline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.executors import ray as on_ray

    monkeypatch.setattr(on_ray, "GROW_SECONDS", 0.0)
    whole = on_ray._alive()
    cores = int(sum(node.get("CPU", 0) for node in whole))
    compute = {"workers": "auto", "gpus_per_worker": 0.0, "threads": 1}
    spec = small_spec(layers="all", compute=compute)
    with monkeypatch.context() as patch:
        patch.setattr(on_ray, "_alive", lambda: [{**whole[0], "CPU": 1.0}])
        executor = on_ray.RayExecutor(spec.compute)
    assert executor.workers == 1 < cores
    job, run = pipeline.create(spec, str(tmp_path / "run"))
    pipeline.execute(job, run, executor, ignore)
    assert executor.workers == cores
    ready = {event["worker"] for event in log_of(tmp_path / "run") if event["event"] == "ready"}
    assert 1 < len(ready) <= cores
    assert_same_results(inline, tmp_path / "run")


def test_each_of_two_workers_sees_its_own_gpu_and_a_third_waits_while_they_do_the_job(
    ray_cluster: str, tmp_path: Path
) -> None:
    # So many images that the second worker is ready long before the first has done them all.
    many = {"layers": "all", "data": {"uri": "shapes?size=1200&seed=1"}}
    run_inline(small_spec(**many), tmp_path / "inline")
    run_on_ray(small_spec(**many, **on_workers(3, gpus=1.0)), tmp_path / "run")
    ready = [event for event in log_of(tmp_path / "run") if event["event"] == "ready"]
    assert sorted(event["gpus"] for event in ready) == ["0", "1"]
    busy = {e["worker"] for e in log_of(tmp_path / "run") if e["event"] == "granted"}
    assert busy <= {event["worker"] for event in ready}
    assert_same_results(tmp_path / "inline", tmp_path / "run")


def test_workers_that_can_never_be_scheduled_are_refused_at_once(ray_cluster: str) -> None:
    from workers.executors.ray import RayExecutor

    with pytest.raises(ClusterTooSmall, match=r"4 GPUs .* 2 GPUs .*compute\.gpus_per_worker"):
        RayExecutor(ComputeSpec(workers=1, gpus_per_worker=4.0))


def test_a_cluster_whose_head_alone_is_there_is_waited_for(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else workers ask for no core, and all land on the head."""
    from workers.executors import ray as ray_executor

    head, node = ({"Alive": True, "Resources": cores} for cores in ({}, {"CPU": 4.0}))
    looks = iter([[head], [head], [head, node]])
    monkeypatch.setattr(ray_executor, "_nodes", lambda: next(looks))
    executor = ray_executor.RayExecutor(ComputeSpec())
    assert (executor.workers, executor._cpus) == (2, 2.0)

    monkeypatch.setattr(ray_executor, "_nodes", lambda: [head])
    monkeypatch.setattr(ray_executor, "JOIN_SECONDS", 0.1)
    with pytest.raises(ClusterTooSmall, match="none has joined in 0 s: add a node"):
        ray_executor.RayExecutor(ComputeSpec())


def test_one_worker_a_gpu_is_what_a_cluster_with_gpus_gives(ray_cluster: str) -> None:
    from workers.executors.ray import RayExecutor

    assert RayExecutor(ComputeSpec()).workers == 2
    assert RayExecutor(ComputeSpec(gpus_per_worker=0.5)).workers == 4


def test_folders_of_clusters_long_dead_are_removed_and_others_stay() -> None:
    from workers.executors.clusters import sweep_folders

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead, fresh, living = (
        Path(tempfile.mkdtemp(prefix=f"dv-{pid}-", dir="/tmp"))
        for pid in (gone.pid, gone.pid, os.getpid())
    )
    for folder in (dead, living):
        os.utime(folder, (0, 0))
    sweep_folders()
    assert [folder.exists() for folder in (dead, fresh, living)] == [False, True, True]
    fresh.rmdir()
    living.rmdir()


def test_a_worker_reserves_whole_cores_or_a_share_of_one_and_never_more_than_a_node_has() -> None:
    from workers.executors.clusters import share

    assert share([8.0], 2) == 4
    assert share([8.0], 3) == 2
    assert share([2.0], 3) == 0.666
    assert share([4.0, 4.0], 1) == 4


def write_factory(folder: Path, body: str) -> str:
    """A model file whose factory behaves elsewhere than in this process; returns its name."""
    file = folder / "mine.py"
    head = f"""
        import os
        from workers.zfnet import zfnet_small

        def elsewhere():
            return os.getpid() != {os.getpid()}
    """
    file.write_text(textwrap.dedent(head) + textwrap.dedent(body))
    return f"{file}:small"


def test_a_model_that_cannot_be_built_on_the_workers_fails_the_job_with_the_reason(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.ledger.MAX_STILLBORN", 1)  # its tests count to three
    name = write_factory(
        tmp_path,
        """
        def small():
            if elsewhere():
                raise LookupError("no licence on this node")
            return zfnet_small()
        """,
    )
    spec = small_spec(model={"name": name}, layers=["relu2"], **on_workers(1))
    with pytest.raises(JobFailed, match="No worker starts.*LookupError: no licence on this node"):
        run_on_ray(spec, tmp_path / "run")
    assert deconvoy.open(tmp_path / "run").status == "failed"


def test_an_error_of_ours_arrives_from_a_worker_as_it_was_raised(
    ray_cluster: str, tmp_path: Path
) -> None:
    name = write_factory(
        tmp_path,
        """
        import torch

        def small():
            model = zfnet_small()
            with torch.no_grad():
                model.conv2.bias[3] = float("inf")
            return model
        """,
    )
    spec = small_spec(model={"name": name}, layers=["relu2"], **on_workers(1))
    with pytest.raises(JobFailed, match=r"Layer 'relu2', unit 3.*is inf") as failed:
        run_on_ray(spec, tmp_path / "run")
    assert "ray::" not in str(failed.value)
    assert set(grants_of(tmp_path / "run").values()) == {1}


def test_a_cluster_that_does_not_answer_is_told_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from workers.executors import ray as ray_executor

    def refuse(**_: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance\nand much more")

    monkeypatch.setattr(ray_executor.ray, "init", refuse)
    with pytest.raises(DeconvoyError, match=r"'10\.0\.0\.1:6379'.*running Ray.*RAY_AUTH_TOKEN"):
        ray_executor.connect("10.0.0.1:6379", None)


@pytest.fixture(autouse=True)
def nothing_is_left_on_the_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every actor of a job is gone when it is over, however it ended."""
    yield
    if "ray_cluster" not in request.fixturenames:
        return
    import ray

    for _ in range(100):
        if ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            return
        time.sleep(0.1)
    raise AssertionError(f"actors hold on: {ray.available_resources()}")
