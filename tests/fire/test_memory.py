"""Too little memory for all that a worker computes at once: a real limit, of two kinds.

The system kills who takes more than a control group may have, or refuses what a process asks for
beyond its address space.  Either way the work is done again with one batch at a time, is told, and
has the bits of a run with room enough.  (On a GPU the second way is tried by tests/test_gpu.py.)
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.fire.conftest import Fire, Tell
from tests.runs import assert_same_results, log_of
from tests.upped import eventually
from workers.leasing import LOG

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).resolve().parents[2]

GROUPS = Path("/sys/fs/cgroup/memory")
"""Of the first version of control groups, or of the second."""
UNIFIED = Path("/sys/fs/cgroup")

MODEL = """
import torch
from torch import nn

def wide():
    '''Much to hold: 400 MiB of maps for 32 images.'''
    torch.manual_seed(0)
    maps, top = [nn.Conv2d(3, 64, 15, padding=7), nn.ReLU()], [nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*maps, *top, nn.Flatten(), nn.Linear(64, 4))
"""


def spec_of(folder: Path) -> dict[str, Any]:
    """Four batches, so that a worker with four threads would hold 1,600 MiB of maps."""
    (folder / "wide.py").write_text(MODEL)
    return {
        "model": {"name": f"{folder / 'wide.py'}:wide"},
        "data": {"uri": "shapes?size=128&seed=3", "transform": {"resize": 224, "crop": 224}},
        "layers": ["1"],
        "analyses": [{"kind": "top"}],
        "compute": {"batch_size": 32, "shard_size": 128, "gpus_per_worker": 0},
    }


LANES = 4

ROOM = 900 * 2**20
"""Bytes for what is computed at once: one batch of it, not four."""

RUN = """
import json, resource, sys
from pathlib import Path
from deconvoy.spec import JobSpec
from workers import pipeline
from workers.executors.inline import InlineExecutor

spec, url, threads, room = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
job, run = pipeline.create(JobSpec.parse(spec), url)
if room:
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
pipeline.execute(job, run, InlineExecutor(threads=threads), lambda advance: None)
status = Path("/proc/self/status").read_text()
print(status.split("VmPeak:")[1].split()[0])
"""


def run_apart(url: Path, threads: int, room: int = 0) -> int:
    """Inline, in a process of its own; its largest address space in bytes."""
    words = [json.dumps(spec_of(url.parent)), str(url), str(threads), str(room)]
    ran = subprocess.run(
        [sys.executable, "-c", RUN, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return int(ran.stdout.split()[-1]) * 1024


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run with room, one batch at a time, and the address space it took."""
    url = tmp_path_factory.mktemp("calm") / "run"
    return url, run_apart(url, 1)


def attempts_of(url: Path) -> list[int]:
    if not (url / LOG).exists():
        return []
    return [event["attempt"] for event in log_of(url) if event["event"] == "granted"]


def test_a_worker_that_is_refused_memory_goes_on_with_less_to_the_same_bits(
    calm: tuple[Path, int], tmp_path: Path, tell: Tell
) -> None:
    room = calm[1] + 300 * 2**20
    run_apart(tmp_path / "run", LANES, room)
    assert_same_results(calm[0], tmp_path / "run")
    (raised,) = [event for event in log_of(tmp_path / "run") if event["event"] == "raised"]
    assert raised["reason"].startswith("MemoryShort: A worker ran out of memory with up to 4")
    assert attempts_of(tmp_path / "run") == [1, 2]
    tell("short of memory", refused_and_tried_again_with_less=1)


class Group:
    """A control group of the system, whose processes may have so much memory together."""

    def __init__(self) -> None:
        name = f"deconvoy-{os.getpid()}"
        first = GROUPS.is_dir()
        self._folder = (GROUPS if first else UNIFIED) / name
        self._limit = "memory.limit_in_bytes" if first else "memory.max"
        self._held = "total_rss " if first else "anon "
        self._folder.mkdir()

    def limit(self, most: int) -> None:
        (self._folder / self._limit).write_text(str(most))

    def popen(self, command: list[str], **how: Any) -> "subprocess.Popen[str]":
        """Start a process in it."""
        begin = f'echo $$ > {self._folder}/cgroup.procs && exec "$@"'
        return subprocess.Popen(["sh", "-c", begin, "sh", *command], text=True, **how)

    def held(self) -> int:
        """By its processes, beside files that the system keeps in memory."""
        told = (self._folder / "memory.stat").read_text().splitlines()
        return int(next(line for line in told if line.startswith(self._held)).split()[1])

    def remove(self) -> None:
        while pids := (self._folder / "cgroup.procs").read_text().split():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.05)
        self._folder.rmdir()


@pytest.fixture
def group() -> Iterator[Group]:
    try:
        made = Group()
        made.limit(2**40)
    except OSError as error:
        pytest.skip(f"no control groups of memory here: {error}")
    yield made
    made.remove()


@pytest.mark.ray
def test_a_worker_that_is_killed_for_its_memory_is_followed_by_one_that_takes_less(
    fire: Fire, calm: tuple[Path, int], group: Group, tmp_path: Path, tell: Tell
) -> None:
    """`deconvoy run` on a Ray of its own, all in the group."""
    fire.skip_short()
    url = tmp_path / "run"
    (tmp_path / "job.json").write_text(json.dumps(spec_of(tmp_path)))
    words = ["run", str(tmp_path / "job.json"), "--out", str(url), "--workers", "1"]
    words += ["--set", f"compute.threads={LANES}"]
    with group.popen(
        [sys.executable, "-m", "service.cli", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        eventually(lambda: attempts_of(url), 240.0)
        group.limit(group.held() + ROOM)  # before the first batch is computed
        told = process.communicate(timeout=300)[0]
    assert process.returncode == 0, told[-3000:]
    assert_same_results(calm[0], url)
    lost = [event for event in log_of(url) if event["event"] == "lost"]
    assert lost and attempts_of(url) == [*range(1, len(lost) + 2)]
    tell("short of memory", killed_for_it_and_followed=len(lost), lost=0)
