"""A scan larger than any that was ever run, without its model: ``docs/scale.md`` says what follows.

The driver is a process of its own (``tests.fire.simulation``).  Asserted is what must not depend on
the machine: nothing is lost, memory does not grow with the leases beyond what is said, and neither
do the files beyond one a shard.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fire.conftest import Fire, Tell
from workers.shards import COMPACT_EVERY

pytestmark = pytest.mark.timeout(6 * 3600)

WORKERS = 100

BYTES_A_LEASE = 100
"""Of the driver's memory, that a lease which is done leaves behind, at most."""

MEGABYTES = 64
"""That memory may differ by for other reasons: allocators, markers that wait."""


def simulated(folder: Path, leases: int, units: int, images: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.fire.simulation", str(folder)]
    ended = subprocess.run(
        [*command, *map(str, (leases, units, images, WORKERS))],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def hold(found: dict[str, Any], images: int) -> None:
    """What holds of any simulated scan."""
    leases = found["leases"]
    assert found["images"] == leases * images
    assert found["as_the_truth"]
    grown = found["mb"]["90%"] - found["mb"]["50%"]  # by then all that is made once is there
    assert grown < MEGABYTES / 2 + 0.4 * leases * BYTES_A_LEASE / 2**20, found["mb"]
    # An images table a shard; of markers at most those since the last were folded into one.
    assert found["files"] < leases + 2 * COMPACT_EVERY + WORKERS + 200


def told(found: dict[str, Any]) -> dict[str, Any]:
    """For the figures."""
    name = f"{found['leases']}_leases_of_{found['units']}_units"
    return {
        f"{name}_driver_cpu_seconds": found["driver_seconds"],
        f"{name}_driver_cpu_ms_a_lease": found["ms_a_lease"],
        f"{name}_peak_mb": found["peak_mb"],
        f"{name}_mb_above_what_was_loaded": found["peak_mb"] - found["base_mb"],
        f"{name}_mb_grown_from_half_to_nine_tenths": found["mb"]["90%"] - found["mb"]["50%"],
        f"{name}_bytes_of_a_lease": found["lease_bytes"],
        f"{name}_bytes_of_an_answer": found["answer_bytes"],
        f"{name}_files": found["files"],
    }


def test_many_leases_of_few_units(fire: Fire, tell: Tell, tmp_path: Path) -> None:
    found = simulated(tmp_path / "run", fire.of(1_000, 1_000_000), 100, 1)
    hold(found, 1)
    tell("scale", **told(found))


def test_few_leases_of_many_units(fire: Fire, tell: Tell, tmp_path: Path) -> None:
    found = simulated(tmp_path / "run", fire.of(60, 2_000), 10_000, 256)
    hold(found, 256)
    tell("scale", **told(found))
