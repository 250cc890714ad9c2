"""What a job costs beside its own engines: leases, the ledger and Ray over a bare loop.

The bare loop is a process that answers the leases of the same job one after the other: no Ray, no
driver, no leases.  A job's time is from its first lease to its last commit, as its log tells.
``python -m benchmarks.end_to_end SPEC`` runs one bare loop and prints its seconds.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.comparison import Comparison
from deconvoy.spec import JobSpec

MODEL = "squeezenet1_1"
TURNS = 2
OVERHEAD = 1.15
SIDE_BY_SIDE = 0.9


def measure(folder: Path | None, images: int, units: float) -> Iterator[Comparison]:
    """Two rows: one worker of two threads, and two workers of one thread each.

    Args:
        folder: of photographs; None for built-in shapes.
        images: taken of it.
        units: share of them that is projected.
    """
    spec = {
        "model": {"name": f"torchvision/{MODEL}"},
        "data": {"uri": str(folder) if folder else "shapes?size=10000", "limit": images},
        "analyses": [{"kind": "top"}, {"kind": "projection", "units": {"sample": units}}],
        "compute": {"shard_size": 32, "threads": 2},
    }
    details = {"images": images, "units_share": units}
    with tempfile.TemporaryDirectory(prefix="deconvoy-bench-") as place:
        turns = [(_bare(spec, 1), _job(spec, 1, Path(place) / f"one-{i}")) for i in range(TURNS)]
        yield Comparison(
            "job", MODEL, "its engines in a bare loop", "run",
            ours=[job for _, job in turns], theirs=[bare for bare, _ in turns],
            at_least=1 / OVERHEAD, details=details,
        )  # fmt: skip
        spec["compute"] = {"shard_size": 32, "threads": 1}
        turns = [(_bare(spec, 2), _job(spec, 2, Path(place) / f"two-{i}")) for i in range(TURNS)]
        # Each of the two bare loops answers all leases, so half their time is what two could reach.
        yield Comparison(
            "two workers", MODEL, "two bare loops side by side", "run",
            ours=[job for _, job in turns], theirs=[bare / 2 for bare, _ in turns],
            at_least=SIDE_BY_SIDE, details=details,
        )  # fmt: skip


def _bare(spec: dict[str, Any], processes: int) -> float:
    """Seconds of bare loops side by side, the longer one's."""
    command = [sys.executable, "-m", "benchmarks.end_to_end", json.dumps(spec)]
    begun = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    printed = [process.communicate()[0] for process in begun]
    if any(process.returncode for process in begun):
        raise RuntimeError("A bare loop failed; its message is above.")
    return max(float(seconds) for seconds in printed)


def _job(spec: dict[str, Any], workers: int, url: Path) -> float:
    path = url.with_suffix(".json")
    path.write_text(json.dumps(spec), encoding="utf-8")
    command = [sys.executable, "-m", "service.cli", "run", str(path), "--out", str(url)]
    subprocess.run([*command, "--workers", str(workers)], check=True, capture_output=True)
    lines = (url / "ledger" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    first = min(event["time"] for event in events if event["event"] == "granted")
    return float(max(event["time"] for event in events if event["event"] == "committed") - first)


def _bare_loop(spec: JobSpec) -> float:
    """Seconds, without building the model."""
    from workers.actor import Actor
    from workers.leases import ProjectionLease, ScanLease
    from workers.machine import keep_freed_memory
    from workers.pipeline import create
    from workers.shards import CommittedShards
    from workers.writer import create_layer, create_pictures

    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="deconvoy-bench-") as folder:
        job, run = create(spec, str(Path(folder) / "run"))
        threads = spec.compute.threads
        assert threads != "auto"
        actor = Actor(job.assignment(run.url, threads))
        for layer in job.projected_layers():
            create_layer(run, layer, job.k)
            create_pictures(run, layer, job.k, spec.storage)
        begin = time.perf_counter()
        shards = CommittedShards(job, run)
        for part in range(job.shards):
            shards.commit(part, actor.scan(ScanLease("", job.refs(part), shards.fold.floor)))
        fold = shards.fold
        for item in job.projection_items():
            units = item.units + job.index.offsets[job.layers.index(item.layer)]
            tables = fold.score[units], fold.image[units], fold.position[units]
            place = item.layer.name, item.start, item.stop, item.units
            actor.project(ProjectionLease("", *place, *tables, reuse=item.reuse))
        return time.perf_counter() - begin


if __name__ == "__main__":
    print(_bare_loop(JobSpec.parse(json.loads(sys.argv[1]))))
