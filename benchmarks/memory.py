"""How much memory the scan takes over n and over 10 n images: about the same.

Each measurement is a process of its own, since peak memory never comes down again.
``python -m benchmarks.memory IMAGES`` prints the peak of one.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deconvoy.spec import JobSpec

IMAGES = (1000, 10_000)


def measure() -> Iterator[dict[str, Any]]:
    """One row a number of images; ``growth`` is the peak over that of the first."""
    first = None
    for images in IMAGES:
        command = [sys.executable, "-m", "benchmarks.memory", str(images)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        row = json.loads(done.stdout)
        first = first or row["peak_mb"]
        yield {**row, "growth": row["peak_mb"] / first}


def _scan(images: int) -> dict[str, Any]:
    from workers.executors.inline import InlineExecutor
    from workers.pipeline import create, execute

    spec = JobSpec.parse(
        {
            "model": {"name": "deconvoy/zfnet_small"},
            "data": {"uri": f"shapes?size={images}"},
            "analyses": [{"kind": "top"}],
        }
    )
    with tempfile.TemporaryDirectory(prefix="deconvoy-bench-") as folder:
        began = time.perf_counter()
        job, run = create(spec, str(Path(folder) / "run"))
        execute(job, run, InlineExecutor(), lambda advance: None)
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    megabytes = peak / (2**20 if sys.platform == "darwin" else 2**10)
    return {"model": spec.model.name, "images": images, "seconds": seconds, "peak_mb": megabytes}


if __name__ == "__main__":
    print(json.dumps(_scan(int(sys.argv[1]))))
