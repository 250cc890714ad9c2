"""A scan of any size without a model, in a process of its own: what its driver takes.

``python -m tests.fire.simulation FOLDER LEASES UNITS IMAGES WORKERS`` scans LEASES shards of IMAGES
images each for UNITS units by workers that invent their answers, and prints one line of JSON.  The
ledger, the leasing, the fold, the merge and the store are those of every job; a lease and its
answer are pickled on their way, as Ray does, where ``PICKLED`` says so.
"""

import gc
import json
import pickle
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.fire.synthetic import SyntheticExecutor, Truth, listing_of, packed, spec_of
from workers import pipeline
from workers.executors import Report, Returned
from workers.leases import Lease
from workers.leasing import Advance
from workers.parts import number_of

TOLD = (0.01, 0.1, 0.2, 0.5, 0.9)
"""Shares of the leases after which memory and time are noted."""

PICKLED = 64
"""One lease in so many is pickled, to know how large leases and answers are."""

WATCHED = 5
"""Units whose hits are found a second time, without the pipeline."""


def resident_mb(key: str = "VmRSS") -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(key)


class MeasuredExecutor(SyntheticExecutor):
    """Keeps apart what the workers would do, and how much goes to and fro."""

    def __init__(self, *args: Any, truth: Truth) -> None:
        super().__init__(*args)
        self.truth = truth
        self.seconds = 0.0
        """Of the processor, that are the workers'."""
        self.sent: list[int] = []
        self.answered: list[int] = []
        self._count = 0

    def submit(self, worker: str, lease: Lease) -> None:
        super().submit(worker, lease)
        self._count += 1
        if self._count % PICKLED == 0:
            begin = time.process_time()
            self.sent.append(len(pickle.dumps(lease)))
            self.seconds += time.process_time() - begin

    def wait(self, seconds: float) -> list[Report]:
        begin = time.process_time()
        found = super().wait(seconds)
        for report in found:
            if isinstance(report, Returned):
                lease: Any = report.lease
                part = number_of(lease.item)
                self.truth.add(part, len(lease.floor), len(lease.images))
                if part % PICKLED == 0:
                    self.answered.append(len(pickle.dumps(report.result)))
        self.seconds += time.process_time() - begin
        return found


@dataclass
class Noted:
    """Memory and time as the scan goes on."""

    leases: int
    executor: MeasuredExecutor | None = None
    begin: float = 0.0
    rows: list[tuple[float, float, float]] = field(default_factory=list)
    """Share done, MB, seconds of the driver."""

    def __call__(self, advance: Advance) -> None:
        assert self.executor is not None
        if len(self.rows) < len(TOLD) and advance.done >= TOLD[len(self.rows)] * advance.total:
            driver = time.process_time() - self.begin - self.executor.seconds
            self.rows.append((TOLD[len(self.rows)], resident_mb(), driver))
            print(*self.rows[-1], file=sys.stderr, flush=True)


def simulate(folder: Path, leases: int, units: int, images: int, workers: int) -> dict[str, Any]:
    base = resident_mb()
    listing = listing_of(leases * images)
    listed = resident_mb()
    layers = max(1, units // 1000)
    spec = spec_of(images, False)
    job, run = pipeline.create(
        spec, str(folder), packed=packed(units // layers, layers), listing=listing
    )
    truth = Truth(np.linspace(0, units - 1, WATCHED, dtype=int).tolist())
    executor = MeasuredExecutor(workers, run, truth=truth)
    noted = Noted(leases, executor)
    gc.collect()
    before = resident_mb()
    noted.begin, begin = time.process_time(), time.perf_counter()
    summary = pipeline.execute(job, run, executor, noted)
    whole, wall = time.process_time() - noted.begin, time.perf_counter() - begin
    same = _as_the_truth(job, run, truth)
    scanned_at = dict((share, seconds) for share, _, seconds in noted.rows)
    return {
        "leases": leases,
        "units": units,
        "images": summary["images"],
        "as_the_truth": same,
        "base_mb": base,
        "listing_mb": listed - base,
        "before_mb": before,
        "mb": {f"{share:.0%}": mb for share, mb, _ in noted.rows},
        "peak_mb": resident_mb("VmHWM"),
        "seconds": wall,
        "driver_seconds": whole - executor.seconds,
        "worker_seconds": executor.seconds,
        "ms_a_lease": 1e3 * (scanned_at[0.9] - scanned_at[0.1]) / (0.8 * leases),
        "lease_bytes": int(np.mean(executor.sent)) if executor.sent else 0,
        "answer_bytes": int(np.mean(executor.answered)) if executor.answered else 0,
        "files": sum(1 for _ in run.paths()),
        "run_bytes": run.bytes_used(),
    }


def _as_the_truth(job: Any, run: Any, truth: Truth) -> bool:
    """Whether the run holds the strongest of all images of the units that were watched."""
    import deconvoy

    opened = deconvoy.open(run.url)
    index = job.index
    expected = truth.settle()
    for unit, scores in zip(truth.units, expected, strict=True):
        number = int(np.searchsorted(index.offsets, unit, side="right")) - 1
        layer, row = job.layers[number].name, unit - index.offsets[number]
        if not np.array_equal(opened.hit_table(layer, "score")[row], scores):
            return False
    return True


if __name__ == "__main__":
    print(json.dumps(simulate(Path(sys.argv[1]), *map(int, sys.argv[2:6]))))
