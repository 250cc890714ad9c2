"""Test whole jobs, inline: what they find, what they survive, and what they refuse.

The oracle for what they find is `tests/reference.py`.  For what they survive it is a calm run: byte
for byte the same files, and nothing computed twice.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

import deconvoy
from deconvoy.errors import (
    DiskTooSmall,
    JobFailed,
    JobStopped,
    RequestError,
    RunBusy,
    RunExists,
    RunUnreadable,
)
from deconvoy.spec import JobSpec
from deconvoy.store import FolderStore, RunStore
from tests.runs import (
    assert_same_results,
    committed_in,
    grants_of,
    ignore,
    log_of,
    results_of,
    resume_inline,
    run_inline,
    small_spec,
    write_photographs,
)
from workers import executors, leasing, pipeline, shards
from workers.actor import TorchSettings
from workers.executors import Executor, Lease
from workers.executors.inline import InlineExecutor
from workers.job import settle
from workers.leases import ScanLease
from workers.topk import Partial

SCORES_AGREE = 1e-5
"""Relative: BatchNorm folded or not, batches of one or of four."""

ONE_MAP = {"layers": ["relu2"], "analyses": [{"kind": "top"}]}
"""Changes of the small spec to the quickest job there is."""


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small job, undisturbed."""
    url = tmp_path_factory.mktemp("calm") / "run"
    run_inline(small_spec(), url)
    return url


class PowerCut(Exception):
    """The driver stops here, without a chance to tidy up."""


def test_a_cluster_without_a_free_worker_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Crowded(InlineExecutor):
        waits = 0

        def start(self, assignment_of: Any) -> None:
            self._later = assignment_of

        def wait(self, seconds: float) -> Any:
            self.waits += 1
            if self.waits == 4:
                super().start(self._later)
            return super().wait(0.01)

    monkeypatch.setattr(leasing, "SLOW_START_SECONDS", 0.0)
    job, run = pipeline.create(small_spec(**ONE_MAP), str(tmp_path / "run"))
    pipeline.execute(job, run, Crowded(), ignore)
    told = [r.getMessage() for r in caplog.records if "No worker is ready" in r.getMessage()]
    assert len(told) == 1


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_no_bit(calm: Path, tmp_path: Path, threads: int) -> None:
    job, run = pipeline.create(small_spec(), str(tmp_path / "run"))
    pipeline.execute(job, run, InlineExecutor(threads=threads), ignore)
    assert_same_results(calm, tmp_path / "run")


# --- what it survives ----------------------------------------------------------------------------


@contextmanager
def power_cut_at(write: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The ``write``-th whole file of the driver (from 1) is never written, nor anything later."""
    written = 0
    whole = FolderStore.write

    def write_or_die(self: FolderStore, path: str, content: bytes) -> None:
        nonlocal written
        written += 1
        if written >= write:
            raise PowerCut(path)
        whole(self, path, content)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "write", write_or_die)
        with pytest.raises(PowerCut):
            yield


# Two files a shard (its images, its marker), five shards; then one marker a projection item.
@pytest.mark.parametrize("write", [1, 2, 3, 4, 9, 10, 11, 12])
def test_a_driver_that_dies_at_any_write_goes_on_to_the_same_bits(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    url = tmp_path / "run"
    job, run = pipeline.create(small_spec(), str(url))
    with power_cut_at(write, monkeypatch):
        pipeline.execute(job, run, InlineExecutor(), ignore)
    finished = committed_in(url)
    assert len(finished) == ((write - 1) // 2 if write < 11 else write - 6)
    resume_inline(url)
    assert_same_results(calm, url)
    grants = grants_of(url)
    assert {item for item in finished if grants[item] != 1} == set()
    assert committed_in(url) == set(grants)


def test_a_driver_that_dies_in_the_merge_goes_on_to_the_same_bits(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "run"

    def write_or_die(run: RunStore, layer: Any, *tables: Any) -> None:
        if layer.name == "relu5":
            raise PowerCut
        whole(run, layer, *tables)

    whole = pipeline.write_hits
    monkeypatch.setattr(pipeline, "write_hits", write_or_die)
    with pytest.raises(PowerCut):
        run_inline(small_spec(), url)
    monkeypatch.undo()
    resume_inline(url)
    assert_same_results(calm, url)
    assert set(grants_of(url).values()) == {1}


@pytest.mark.parametrize("told", [1, 3, 8])
def test_an_observer_that_raises_stops_a_job_that_can_go_on(
    calm: Path, tmp_path: Path, told: int
) -> None:
    url, count = tmp_path / "run", 0

    def observe(_: pipeline.Advance) -> None:
        nonlocal count
        count += 1
        if count == told:
            raise PowerCut("closed")

    with pytest.raises(PowerCut):
        run_inline(small_spec(), url, observe)
    assert deconvoy.open(url).status == "failed"
    assert deconvoy.open(url).attributes["state"]["error"] == "closed"
    resume_inline(url)
    assert_same_results(calm, url)
    assert deconvoy.open(url).status == "done"
    assert "error" not in deconvoy.open(url).attributes["state"]


def test_resuming_a_finished_run_computes_nothing_and_changes_no_bit(
    calm: Path, tmp_path: Path
) -> None:
    url = tmp_path / "run"
    shutil.copytree(calm, url)
    before = grants_of(url)
    resume_inline(url)
    assert grants_of(url) == before
    assert_same_results(calm, url)


def test_compacted_markers_give_the_same_bits(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "COMPACT_EVERY", 2)
    run_inline(small_spec(), tmp_path / "run")
    assert_same_results(calm, tmp_path / "run")
    kept = sorted(p.name for p in (tmp_path / "run/ledger/scan").iterdir())
    assert kept == ["part-000004.npz", "prefix-000003.npz"]


@pytest.mark.parametrize("write", [6, 7, 10, 13])
def test_a_driver_that_dies_around_a_compaction_goes_on_to_the_same_bits(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    monkeypatch.setattr(shards, "COMPACT_EVERY", 2)
    url = tmp_path / "run"
    job, run = pipeline.create(small_spec(), str(url))
    with power_cut_at(write, monkeypatch):
        pipeline.execute(job, run, InlineExecutor(), ignore)
    resume_inline(url)
    assert_same_results(calm, url)
    scans = {item: n for item, n in grants_of(url).items() if item.startswith("scan/")}
    assert sum(scans.values()) <= 6, "only the shard whose marker was lost is scanned again"


def test_markers_a_compaction_left_behind_are_not_folded_twice(calm: Path, tmp_path: Path) -> None:
    url = tmp_path / "run"
    shutil.copytree(calm, url)
    job, run = pipeline.reopen(str(url))
    fold = pipeline.Fold(job.index.total, job.k)
    for part in range(3):
        name = f"ledger/scan/part-{part:06d}.npz"
        fold.add(Partial.from_bytes(run.read(name), name))
    run.write("ledger/scan/prefix-000002.npz", fold.to_partial().to_bytes())
    resume_inline(url)
    assert_same_results(calm, url)


class Shuffled(InlineExecutor):
    """Works on the leases of three workers in one thread, the last one first."""

    def __init__(self) -> None:
        super().__init__()
        self.workers = 3
        self._leases: list[tuple[str, Lease]] = []

    def start(self, assignment_of: Callable[[int], Any]) -> None:
        super().start(assignment_of)
        (ready,) = super().wait(60.0)
        assert isinstance(ready, executors.Ready), ready
        for name in ("first", "second", "third"):
            self._reports.put(executors.Ready(name, ready.about))

    def submit(self, worker: str, lease: Lease) -> None:
        self._leases.append((worker, lease))

    def wait(self, seconds: float) -> list[Any]:
        if self._reports.empty() and self._leases:
            super().submit(*self._leases.pop())
        return super().wait(60.0)


def test_shards_committed_out_of_order_fold_in_order(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded: list[str] = []
    add = pipeline.Fold.add

    def spy(self: pipeline.Fold, partial: Partial) -> None:
        folded.append(str(partial.hits.image.max() // 8))  # eight images a shard
        add(self, partial)

    monkeypatch.setattr(pipeline.Fold, "add", spy)
    url = tmp_path / "run"
    job, run = pipeline.create(small_spec(), str(url))
    pipeline.execute(job, run, Shuffled(), ignore)
    order = [e["item"] for e in log_of(url) if e["event"] == "committed"]
    assert order != sorted(order), "the shards came in order, so nothing was tested"
    assert folded == ["0", "1", "2", "3", "4"]
    assert_same_results(calm, url)


def test_a_resume_after_shards_out_of_order_scans_only_the_missing_ones(
    calm: Path, tmp_path: Path
) -> None:
    url = tmp_path / "run"
    shutil.copytree(calm, url)
    (url / "ledger/scan/part-000001.npz").unlink()
    (url / pipeline.LOG).unlink()
    resume_inline(url)
    assert grants_of(url) == {"scan/part-000001": 1}
    assert_same_results(calm, url)


def test_what_killed_writers_left_half_written_is_swept_on_resume(
    calm: Path, tmp_path: Path
) -> None:
    url = tmp_path / "run"
    shutil.copytree(calm, url)
    drafts = [url / "ledger/scan/part-000001.npz.77.partial", url / "layers/relu2/x.partial"]
    for draft in drafts:
        draft.write_bytes(b"half")
    resume_inline(url)
    assert not any(draft.exists() for draft in drafts)


def test_a_marker_cut_short_is_refused_by_name_and_not_taken_for_a_result(
    calm: Path, tmp_path: Path
) -> None:
    url = tmp_path / "run"
    shutil.copytree(calm, url)
    marker = url / "ledger/scan/part-000001.npz"
    marker.write_bytes(marker.read_bytes()[:-100])
    with pytest.raises(RunUnreadable, match=r"part-000001\.npz.*delete it"):
        resume_inline(url)
    marker.unlink()
    resume_inline(url)
    assert_same_results(calm, url)


def test_ctrl_c_stops_the_job_says_how_to_go_on_and_loses_nothing(
    calm: Path, tmp_path: Path
) -> None:
    url, count = tmp_path / "run", 0

    def observe(_: pipeline.Advance) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt

    with pytest.raises(JobStopped, match=f"deconvoy resume {url}") as stopped:
        run_inline(small_spec(), url, observe)
    assert stopped.value.exit_code == 130
    assert deconvoy.open(url).status == "stopped"
    finished = committed_in(url)
    assert finished
    resume_inline(url)
    assert_same_results(calm, url)
    assert {item for item in finished if grants_of(url)[item] != 1} == set()


def test_a_worker_that_is_stopped_gives_up_its_lease_within_a_batch(tmp_path: Path) -> None:
    job, run = pipeline.create(small_spec(**ONE_MAP), str(tmp_path / "run"))
    executor = InlineExecutor()
    executor.start(lambda threads: job.assignment(run.url, threads))
    executor.wait(60.0)
    floor = np.full(job.index.total, -np.inf, np.float32)
    executor.submit(
        "inline",
        ScanLease(
            "scan/all", [ref for part in range(5) for ref in job.refs(part)] * 1000, floor, 1
        ),
    )
    executor.wait(1.0)
    executor.shutdown()  # would last minutes otherwise
    reports = executor.wait(0.0)
    assert [type(r) for r in reports if not isinstance(r, executors.Moved)] == [executors.Raised]


@pytest.mark.parametrize("where", ["a marker", "the images table", "a table of a layer"])
def test_a_full_disk_fails_the_job_with_everything_committed_intact(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    url = tmp_path / "run"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    path = {"a marker": "ledger/scan/part-000003.npz", "the images table": "images/part-000003"}
    whole = FolderStore.write

    def write(self: FolderStore, name: str, content: bytes) -> None:
        if name.startswith(path.get(where, "nowhere")):
            raise full
        whole(self, name, content)

    def write_hits(*_: Any) -> None:
        raise full

    monkeypatch.setattr(FolderStore, "write", write)
    if where == "a table of a layer":
        monkeypatch.setattr(pipeline, "write_hits", write_hits)
    with pytest.raises(DiskTooSmall, match=f"No space left on device.*deconvoy resume {url}"):
        run_inline(small_spec(), url)
    monkeypatch.undo()
    run = deconvoy.open(url)
    assert run.status == "failed"
    assert "No space left" in run.attributes["state"]["error"]
    assert run.images().num_rows >= 24
    resume_inline(url)
    assert_same_results(calm, url)


def test_a_disk_that_is_full_where_the_worker_is_fails_the_job_at_the_first_attempt(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "run"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("workers.actor.write_pictures", full)
    with pytest.raises(JobFailed, match=f"projection/relu2.*No space left.*resume {url}"):
        run_inline(small_spec(), url)
    monkeypatch.undo()
    assert grants_of(url)["projection/relu2/item-000000"] == 1
    resume_inline(url)
    assert_same_results(calm, url)


def test_what_a_killed_worker_left_half_written_is_swept_at_the_end(tmp_path: Path) -> None:
    url = tmp_path / "run"

    def observe(advance: pipeline.Advance) -> None:
        if advance.stage == "projection":
            (url / "layers/relu2/c.0.partial").write_bytes(b"half")

    run_inline(small_spec(), url, observe)
    assert not list(url.rglob("*.partial"))


def test_a_reader_of_the_progress_that_goes_away_is_not_taken_for_a_full_disk(
    tmp_path: Path,
) -> None:
    def observe(_: pipeline.Advance) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        run_inline(small_spec(**ONE_MAP), tmp_path / "run", observe)
    assert deconvoy.open(tmp_path / "run").status == "failed"


def test_torch_is_left_as_it_was(tmp_path: Path) -> None:
    before = TorchSettings.now()
    torch.backends.cudnn.allow_tf32 = True
    try:
        run_inline(small_spec(**ONE_MAP), tmp_path / "run")
        assert torch.backends.cudnn.allow_tf32
        assert torch.get_num_threads() == before.threads
    finally:
        before.restore()


def test_without_gpus_asked_for_none_is_used_by_any_executor() -> None:
    job = settle(small_spec(compute={"gpus_per_worker": 0}))
    assert not job.assignment("run", 1).cuda
    assert settle(small_spec()).assignment("run", 1).cuda


def test_a_disk_too_full_for_the_state_still_tells_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "run"
    job, run = pipeline.create(small_spec(**ONE_MAP), str(url))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def observe(_: pipeline.Advance) -> None:
        monkeypatch.setattr(FolderStore, "write", full)
        monkeypatch.setattr(FolderStore, "zarr", full)

    with pytest.raises(DiskTooSmall, match="No space left on device"):
        pipeline.execute(job, run, InlineExecutor(), observe)


def test_a_worker_that_cannot_be_built_fails_the_job_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise MemoryError("the model is too large")

    url = tmp_path / "run"
    job, run = pipeline.create(small_spec(**ONE_MAP), str(url))
    monkeypatch.setattr("workers.executors.inline.worker_of", refuse)
    with pytest.raises(JobFailed, match="No worker starts.*MemoryError: the model is too large"):
        pipeline.execute(job, run, InlineExecutor(), ignore)
    monkeypatch.undo()
    resume_inline(url)


def test_an_item_that_raises_now_and_then_is_tried_again(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.actor import Actor

    work, failed = Actor.work, set()

    def flaky(self: Actor, lease: Lease) -> Any:
        if lease.item.endswith("2") and lease.item not in failed:
            failed.add(lease.item)
            raise RuntimeError("the network hiccuped")
        return work(self, lease)

    monkeypatch.setattr(Actor, "work", flaky)
    run_inline(small_spec(), tmp_path / "run")
    assert grants_of(tmp_path / "run")["scan/part-000002"] == 2
    raised = [e for e in log_of(tmp_path / "run") if e["event"] == "raised"]
    assert [e["reason"] for e in raised] == ["RuntimeError: the network hiccuped"]
    assert_same_results(calm, tmp_path / "run")


# --- what it refuses -----------------------------------------------------------------------------


def test_a_place_that_is_taken_is_left_alone(calm: Path, tmp_path: Path) -> None:
    with pytest.raises(RunExists, match="--overwrite"):
        pipeline.create(small_spec(), str(calm))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunExists, match="file' is a file that is no run, and stays"):
        pipeline.create(small_spec(), str(tmp_path / "file"))


def test_an_empty_folder_is_a_place_for_a_run(tmp_path: Path) -> None:
    pipeline.create(small_spec(**ONE_MAP), str(tmp_path))
    assert (tmp_path / "zarr.json").is_file()


def test_overwrite_replaces_a_run_wholly(calm: Path, tmp_path: Path) -> None:
    url = tmp_path / "run"
    shutil.copytree(calm, url)
    pipeline.create(small_spec(**ONE_MAP), str(url), overwrite=True)
    assert not results_of(url)
    assert not committed_in(url)


@pytest.mark.parametrize("theirs", ["a folder", "a Zarr group"])
def test_overwrite_never_touches_what_is_no_run(tmp_path: Path, theirs: str) -> None:
    if theirs == "a Zarr group":
        zarr.create_group(tmp_path / "precious", attributes={"format": "years of work"})
    (tmp_path / "precious").mkdir(exist_ok=True)
    (tmp_path / "precious/thesis.txt").write_text("years of work")
    with pytest.raises(RunExists, match="is a folder that is no run"):
        pipeline.create(small_spec(), str(tmp_path / "precious"), overwrite=True)
    assert (tmp_path / "precious/thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": {"name": "torchvision/resnet81"}},
        {"data": {"uri": "nowhere"}},
        {"layers": ["relu99"]},
        {"analyses": [{"kind": "top"}, {"kind": "projection", "layers": ["conv9"]}]},
    ],
    ids=["model", "data", "layers", "projection"],
)
def test_a_job_that_does_not_fit_writes_nothing(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        pipeline.create(small_spec(**wrong), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_wrong_job_does_not_cost_the_run_it_was_to_replace(calm: Path) -> None:
    before = results_of(calm)
    with pytest.raises(RequestError):
        pipeline.create(small_spec(layers=["relu99"]), str(calm), overwrite=True)
    assert results_of(calm) == before


def test_a_second_driver_is_told_of_the_first_and_disturbs_nothing(
    calm: Path, tmp_path: Path
) -> None:
    url = tmp_path / "run"
    draft = url / "images" / "part-000009.parquet.1.partial"

    def observe(advance: pipeline.Advance) -> None:
        if advance.done == 8:
            draft.write_bytes(b"being written")
            job, run = pipeline.reopen(str(url))
            with pytest.raises(RunBusy, match=f"process {os.getpid()}"):
                pipeline.execute(job, run, InlineExecutor(), ignore)
            assert draft.exists(), "swept away under the hands of the first driver"
            with pytest.raises(RunBusy):
                pipeline.create(small_spec(), str(url), overwrite=True)
            draft.unlink()

    run_inline(small_spec(), url, observe)
    assert_same_results(calm, url)


def test_only_a_run_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nothing to resume"):
        pipeline.reopen(str(tmp_path))


def test_a_run_of_another_format_is_not_touched(calm: Path, tmp_path: Path) -> None:
    url = tmp_path / "run"
    shutil.copytree(calm, url)
    group = zarr.open_group(url)
    group.attrs["format"] = "deconvoy-run/99"
    with pytest.raises(RunUnreadable, match="deconvoy-run/99"):
        pipeline.reopen(str(url))


def _begun(tmp_path: Path, **changes: Any) -> tuple[Path, JobSpec]:
    """A run over files of ours, begun and not finished."""
    write_photographs(tmp_path / "images", 6)
    torch.save(_weights(), tmp_path / "weights.pt")
    file = tmp_path / "mine.py"
    file.write_text("from workers.zfnet import zfnet_small as small\n")
    model = {"name": f"{file}:small", "weights": str(tmp_path / "weights.pt")}
    data = {"uri": str(tmp_path / "images")}
    spec = small_spec(model=model, data=data, **ONE_MAP, **changes)
    pipeline.create(spec, str(tmp_path / "run"))
    return tmp_path / "run", spec


def _weights(shift: float = 0.0) -> dict[str, torch.Tensor]:
    from workers.zfnet import zfnet_small

    torch.manual_seed(0)
    return {name: value + shift for name, value in zfnet_small().state_dict().items()}


def test_a_run_goes_on_only_with_the_weights_it_began_with(tmp_path: Path) -> None:
    url, _ = _begun(tmp_path)
    torch.save(_weights(shift=0.1), tmp_path / "weights.pt")
    with pytest.raises(RequestError, match="another model_sha256"):
        pipeline.reopen(str(url))
    torch.save(_weights(), tmp_path / "weights.pt")
    resume_inline(url)


def test_a_run_goes_on_only_with_the_code_it_began_with(tmp_path: Path) -> None:
    url, _ = _begun(tmp_path)
    with (tmp_path / "mine.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(RequestError, match="another model_sha256"):
        pipeline.reopen(str(url))


@pytest.mark.parametrize("change", ["added", "removed", "other pixels", "renamed"])
def test_a_run_goes_on_only_with_the_images_it_began_with(tmp_path: Path, change: str) -> None:
    url, _ = _begun(tmp_path)
    place = tmp_path / "images/a/000.png"
    if change == "added":
        shutil.copy(place, tmp_path / "images/a/more.png")
    elif change == "removed":
        place.unlink()
    elif change == "renamed":
        place.rename(tmp_path / "images/a/0000.png")
    else:
        place.write_bytes(place.read_bytes() + b"\0")
    with pytest.raises(RequestError, match="another listing_fingerprint"):
        pipeline.reopen(str(url))


def test_a_run_goes_on_only_with_the_transform_it_began_with(tmp_path: Path) -> None:
    url, _ = _begun(tmp_path)
    group = zarr.open_group(url)
    spec: Any = group.attrs["spec"]
    spec["data"]["transform"] = {"resize": 72, "crop": 64}
    group.attrs["spec"] = spec
    with pytest.raises(RequestError, match="another transform"):
        pipeline.reopen(str(url))


def test_a_run_keeps_the_batch_size_it_began_with(calm: Path, tmp_path: Path) -> None:
    url = tmp_path / "run"
    automatic = small_spec(compute={"batch_size": "auto"})
    job, _ = pipeline.create(automatic, str(url))
    began = job.batch_size
    group = zarr.open_group(url)
    provenance: Any = group.attrs["provenance"]
    group.attrs["provenance"] = {**provenance, "batch_size": began + 1}
    resumed, _ = pipeline.reopen(str(url))
    assert resumed.batch_size == began + 1


def test_the_inline_executor_has_one_worker() -> None:
    with pytest.raises(RequestError, match=r"compute\.workers is 3.*ray executor"):
        InlineExecutor(3)


def test_a_hung_inline_worker_ends_the_job_in_a_sentence(tmp_path: Path) -> None:
    executor: Executor = InlineExecutor()
    executor._busy.set()  # type: ignore[attr-defined]
    with pytest.raises(JobFailed, match="ray executor"):
        executor.replace("inline")


def test_the_log_tells_who_had_which_lease(calm: Path) -> None:
    granted = [event for event in log_of(calm) if event["event"] == "granted"]
    assert granted[0] == granted[0] | {
        "item": "scan/part-000000",
        "attempt": 1,
        "worker": "inline",
        "pid": os.getpid(),
    }
