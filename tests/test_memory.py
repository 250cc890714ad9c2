"""Test a worker that runs out of memory: it tells, is tried again with less, and keeps its bits."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from deconvoy.errors import JobFailed
from tests.runs import assert_same_results, ignore, log_of, run_inline, small_spec
from workers import memory, pipeline
from workers.actor import Actor
from workers.executors.inline import InlineExecutor
from workers.leases import InvarianceLease, InvarianceResult
from workers.ledger import MAX_ATTEMPTS
from workers.scan import ShardScan

SPEC = small_spec(compute={"threads": 2, "shard_size": 20})


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("calm") / "run"
    run_inline(SPEC, url)
    return url


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError("out of memory"), False),
    ],
)
def test_what_says_that_memory_is_short(error: Exception, short: bool) -> None:
    assert memory.is_short(error) == short


def test_an_allocation_that_is_refused_says_so() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert memory.is_short(caught.value)


class Room:
    """For so many batches at once; another gets the error of a machine without memory."""

    def __init__(self, batches: int) -> None:
        self.batches, self.most = batches, 0
        self._now, self._lock = 0, threading.Lock()
        self._whole = ShardScan.add

    def add(self, scan: ShardScan, *batch: Any) -> Any:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            full = self._now > self.batches
        try:
            if full:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: error code 12")
            if self.most == 1:  # give the other lane the time to come in
                threading.Event().wait(0.2)
            return self._whole(scan, *batch)
        finally:
            with self._lock:
                self._now -= 1


def room_for(batches: int, patch: pytest.MonkeyPatch) -> Room:
    room = Room(batches)
    patch.setattr(ShardScan, "add", lambda scan, *batch: room.add(scan, *batch))
    return room


def test_a_worker_without_room_for_all_its_lanes_goes_on_with_one_to_the_same_bits(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    room = room_for(1, monkeypatch)
    run_inline_with_two_threads(tmp_path / "run")
    assert room.most == 2
    assert_same_results(calm, tmp_path / "run")
    log = log_of(tmp_path / "run")
    (raised,) = [event for event in log if event["event"] == "raised"]
    assert raised["reason"].startswith("MemoryShort: A worker ran out of memory with up to 2 batch")
    again = [e for e in log if e["event"] == "granted" and e["item"] == raised["item"]]
    assert [event["attempt"] for event in again] == [1, 2]
    (told,) = [r.getMessage() for r in caplog.records if "ran out of memory" in r.getMessage()]
    assert "compute.batch_size = 4 images at a time" in told and "error code 12" in told


def test_a_worker_without_room_for_one_batch_fails_the_job_with_what_to_do(
    calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        room_for(0, patch)
        with pytest.raises(JobFailed, match="with one batch of compute.batch_size = 4") as caught:
            run_inline_with_two_threads(tmp_path / "run")
    told = str(caught.value)
    assert f"given up after {MAX_ATTEMPTS} attempts" in told and "lower compute.batch_size" in told
    job, run = pipeline.reopen(str(tmp_path / "run"))
    pipeline.execute(job, run, InlineExecutor(threads=2), ignore)
    assert_same_results(calm, tmp_path / "run")


def test_whoever_takes_over_from_a_worker_that_died_computes_one_batch_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been killed for its memory."""
    job, run = pipeline.create(SPEC, str(tmp_path / "run"))
    actor, one_by_one = Actor(job.assignment(run.url, 2)), list[bool]()

    def answer(_: InvarianceLease) -> InvarianceResult:
        one_by_one.append(actor._one_by_one)
        return InvarianceResult(0)

    monkeypatch.setattr(actor, "_answer", answer)
    lease = InvarianceLease("item", 0, 0, None, (), "mean", (0.0,))
    for attempt in (1, 2, 1):
        actor.work(lease.granted(attempt))
    actor.stop()
    assert one_by_one == [False, True, False]


def run_inline_with_two_threads(url: Path) -> None:
    job, run = pipeline.create(SPEC, str(url))
    pipeline.execute(job, run, InlineExecutor(threads=2), ignore)
