"""Lease out the items of a stage until all are committed.

The driver alone commits: it writes a marker when an item's result has come from the attempt that
holds the lease.  All decisions about leases are the ledger's; all decisions about where workers
live are the executor's.
"""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from deconvoy.errors import DeconvoyError, JobFailed, MemoryShort
from deconvoy.store import RunStore
from workers.executors import Executor, Lost, Moved, Raised, Ready, Report, Returned
from workers.leases import Lease
from workers.ledger import (
    Abort,
    Commit,
    Event,
    Grant,
    ItemFailed,
    ItemFinished,
    Ledger,
    Progressed,
    Replace,
    Tick,
    WorkerLost,
    WorkerReady,
)
from workers.stages import Stage, Work

logger = logging.getLogger(__name__)

WAIT_SECONDS = 0.5
"""Longest wait for news from the workers; also how often progress is told."""

SLOW_START_SECONDS = 120.0
"""Time without any worker after which a person is told; loading torch takes a tenth of it."""

LOG = "ledger/log.jsonl"

_Results = dict[tuple[str, int], Any]
"""What has come back for an item and an attempt and is not committed yet."""


@dataclass(frozen=True)
class Advance:
    """How far a stage is: images scanned, projections, positions of a square or moves done."""

    stage: Stage
    done: int
    total: int


Observe = Callable[[Advance], None]


@dataclass
class Leasing:
    """The workers of one run, and what they are asked."""

    run: RunStore
    executor: Executor
    observe: Observe
    ready: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Workers at hand, and what they say of themselves."""

    def carry_out(self, work: Work) -> None:
        """Lease out the items of one stage until all are committed."""
        lease_of, commit, done = work.lease_of, work.commit, work.done
        ledger = Ledger(workers=self.executor.workers)
        ledger.add(work.left)
        results: _Results = {}
        within: dict[str, int] = {}
        self.observe(Advance(work.stage, done, work.total))
        for worker in self.ready:
            done += self._obey(ledger, WorkerReady(worker), lease_of, commit, results)
        patient_until = time.monotonic() + SLOW_START_SECONDS
        while not ledger.finished:
            if not self.ready and time.monotonic() > patient_until:
                patient_until = math.inf
                logger.warning(
                    "No worker is ready after %.0f s: is the cluster busy with other jobs? "
                    "`ray status` shows it. The job begins as soon as one is.",
                    SLOW_START_SECONDS,
                )
            for report in self.executor.wait(WAIT_SECONDS):
                event = self._event(report, results, within)
                if event is not None:
                    done += self._obey(ledger, event, lease_of, commit, results)
            done += self._obey(ledger, Tick(), lease_of, commit, results)
            self.observe(Advance(work.stage, done + sum(within.values()), work.total))

    def _event(self, report: Report, results: _Results, within: dict[str, int]) -> Event | None:
        match report:
            case Ready(worker, about):
                self.ready[worker] = about
                self._note_device(about["device"])
                self.log(event="ready", worker=worker, **about)
                return WorkerReady(worker)
            case Lost(worker, reason):
                self.ready.pop(worker, None)
                within.pop(worker, None)
                self.log(event="lost", worker=worker, reason=reason)
                return WorkerLost(worker, reason)
            case Moved(worker, done):
                moved = within.get(worker) != done
                within[worker] = done
                return Progressed(worker) if moved else None
            case Returned(worker, lease, result):
                within.pop(worker, None)
                results[lease.item, lease.attempt] = result
                return ItemFinished(worker, lease.item, lease.attempt)
            case Raised(worker, lease, error):
                within.pop(worker, None)
                reason = f"{type(error).__name__}: {error}"
                ours, short = isinstance(error, DeconvoyError), isinstance(error, MemoryShort)
                final = ours and not short
                self.log(event="raised", worker=worker, item=lease.item, reason=reason)
                if short:
                    logger.warning("%s, %s: %s", worker, lease.item, error)
                reason = str(error) if ours else reason
                return ItemFailed(worker, lease.item, lease.attempt, reason, final)

    def _obey(
        self,
        ledger: Ledger,
        event: Event,
        lease_of: Callable[[str], Lease],
        commit: Callable[[str, Any], int],
        results: _Results,
    ) -> int:
        """Carry out what the ledger says; returns how much more is done now."""
        done = 0
        for instruction in ledger.handle(event, time.monotonic()):
            match instruction:
                case Grant(worker, item, attempt):
                    pid = self.ready[worker].get("pid")
                    self.log(event="granted", item=item, attempt=attempt, worker=worker, pid=pid)
                    self.executor.submit(worker, lease_of(item).granted(attempt))
                case Commit(item, attempt, worker):
                    done += commit(item, results.pop((item, attempt)))
                    self.log(event="committed", item=item, attempt=attempt, worker=worker)
                case Replace(worker, reason):
                    self.ready.pop(worker, None)
                    logger.warning("Replacing %s: %s", worker, reason)
                    self.log(event="replaced", worker=worker, reason=reason)
                    self.executor.replace(worker)
                case Abort(item, reason):
                    self.log(event="aborted", item=item, reason=reason)
                    raise JobFailed(_failure(item, reason))
        return done

    def _note_device(self, device: str) -> None:
        """The bits depend on the kind of device: provenance lists all that took part."""
        attributes = self.run.zarr("r+").attrs
        provenance: Any = attributes["provenance"]
        known = provenance.get("device", [])
        if device not in known:
            attributes.update({"provenance": {**provenance, "device": sorted([*known, device])}})

    def log(self, **fields: Any) -> None:
        self.run.append(LOG, json.dumps({"time": round(time.time(), 3), **fields}))


def _failure(item: str | None, reason: str) -> str:
    if item is None:
        return f"No worker starts: {reason}"
    return f"The work item {item} failed: {reason}"
